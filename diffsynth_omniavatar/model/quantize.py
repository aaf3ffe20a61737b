"""Which layers of a denoiser are held in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .blocks.quantized import FP8_PRODUCTS, METHODS, Method, QuantizedLinear, quantize_weight

LAYERS = (*(f"{part}.{name}" for part in ("self_attn", "cross_attn") for name in "qkvo"), "ffn.0", "ffn.2")
"""The linear layers of a block: nearly all weights. The others stay as they are, as elsewhere in the field."""
PLACES = ("first", "last")
"""Of blocks."""


def layer_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names in a list, or in a text between commas."""
    parts = names.split(",") if isinstance(names, str) else names
    return tuple(part.strip() for part in parts if part.strip())


def check_quantize(method: str | None, keep: Iterable[str], device: torch.device | str) -> None:
    """Raises ValueError: no such method, no such layer, or the device cannot do it."""
    keep = tuple(keep)
    if method is None:
        if keep:
            raise ValueError("keep_bf16 names layers that quantize leaves as they are: give quantize, too.")
        return
    if method not in METHODS:
        raise ValueError(f"quantize {method!r}: wanted one of {', '.join(METHODS)}.")
    for name in keep:
        if name not in (*LAYERS, *PLACES, "self_attn", "cross_attn", "ffn"):
            raise ValueError(
                f"keep_bf16 {name!r}: wanted first, last (the blocks), self_attn, cross_attn, ffn, or a layer like "
                f"{LAYERS[0]} or {LAYERS[-1]}."
            )
    device = torch.device(device)
    if method == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_PRODUCTS:
        raise ValueError(
            f"quantize fp8: {torch.cuda.get_device_name(device)} cannot multiply float8 (Ada and Hopper can); use "
            "int8, or fp8_weights, which saves the same memory."
        )


def chosen_layers(blocks: int, keep: Iterable[str]) -> list[str]:
    """Names of the layers that are held in 8 bits, of a denoiser of so many blocks."""
    keep = set(keep)
    places = range("first" in keep, blocks - ("last" in keep))
    names = [name for name in LAYERS if name not in keep and name.partition(".")[0] not in keep]
    return [f"blocks.{index}.{name}" for index in places for name in names]


def is_quantized(dit: Any) -> bool:
    """Whether this package or the host, which leaves a mark, holds layers of the denoiser in 8 bits."""
    return hasattr(dit, "quantize_config") or any(isinstance(layer, QuantizedLinear) for layer in dit.modules())


@torch.no_grad()
def quantize_blocks(
    dit: Any,
    method: Method,
    keep: Iterable[str] = (),
    *,
    worker: torch.device | str | None = None,
    home: torch.device | str | None = None,
) -> int:
    """Hold the blocks' linear layers in 8 bits; with peft adapters, the layers below them. Returns how many.

    Args:
        dit: the denoiser, whose weights are final: fused LoRAs cannot be taken out afterwards.
        method: "fp8" and "int8" multiply in 8 bits, "fp8_weights" only saves memory.
        keep: layers that stay: a name of `LAYERS`, its first part, "first" or "last" block.
        worker: device that computes; None for where the layers are.
        home: where they are to lie; None for there.
    """
    names = chosen_layers(len(dit.blocks), keep)
    for name in names:
        layer = dit.get_submodule(name)
        if hasattr(layer, "base_layer"):
            name, layer = f"{name}.base_layer", layer.base_layer
        dit.set_submodule(name, _quantized(layer, method, worker).to(home))
    return len(names)


def _quantized(layer: nn.Linear, method: Method, worker: torch.device | str | None) -> QuantizedLinear:
    weight = quantize_weight(layer.weight.detach().to(worker), method)
    return QuantizedLinear(weight, None if layer.bias is None else layer.bias.detach())
