"""Checkpoints of full weights in 8 bits: as others, with factors `weight_scale` beside each weight in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor

from ..system.tensor_files import open_safetensors
from .architecture import check_shapes, full_config
from .blocks.quantized import Method, QuantizedLinear, QuantizedWeight, quantize_weight
from .checkpoint import SCALE, CheckpointError, normal_key, read_config, read_shapes, weight_files
from .dit import OmniAvatarDiT, state_dict_shapes
from .quantize import chosen_layers


def quantized_tensors(
    tensors: Mapping[str, Tensor], blocks: int, method: Method, keep: Iterable[str]
) -> dict[str, Tensor]:
    """All weights of a denoiser of so many blocks, with its layers in 8 bits; see `quantize.quantize_blocks`."""
    found = dict(tensors)
    for layer in chosen_layers(blocks, keep):
        weight = quantize_weight(found[f"{layer}.weight"], method)
        found[f"{layer}.weight"], found[layer + SCALE] = weight.values, weight.scale
    return found


def load_quantized(
    path: str | Path | Iterable[str | Path],
    *,
    quantize: Method | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> OmniAvatarDiT:
    """A denoiser from a checkpoint in 8 bits; its weights are in memory once.

    Args:
        path: as for `checkpoint.weight_files`, safetensors.
        quantize: how to multiply: "fp8" or "fp8_weights" for a file in float8, "int8" for one in int8. None for
            products in 8 bits.
        dtype, device: of the other weights; of all.

    Raises:
        CheckpointError: the file has other keys or shapes, or its format is not that of `quantize`.
    """
    files = weight_files(path)
    shapes = {normal_key(key): shape for key, shape in read_shapes(files).items()}
    config = full_config(shapes, read_config(files), str(files[0]))
    plain = {key: shape for key, shape in shapes.items() if not key.endswith(SCALE)}
    check_shapes(plain, state_dict_shapes(config), str(files[0]))
    with init_empty_weights():
        dit = OmniAvatarDiT(config)
    tensors: dict[str, Tensor] = {}
    for file in files:
        with open_safetensors(file) as content:
            tensors.update({normal_key(key): content.get_tensor(key).to(device) for key in content.keys()})  # noqa: SIM118
    for key in [key for key in tensors if key.endswith(SCALE)]:
        layer = key.removesuffix(SCALE)
        values, bias = tensors.pop(f"{layer}.weight"), tensors.pop(f"{layer}.bias").to(dtype)
        _check_format(values, quantize, str(files[0]))
        weight = QuantizedWeight(values, tensors.pop(key).float(), products=quantize != "fp8_weights")
        dit.set_submodule(layer, QuantizedLinear(weight, bias))
    rest = {key: value.to(dtype) for key, value in tensors.items()}
    dit.load_state_dict(rest, strict=False, assign=True)
    return dit.eval().requires_grad_(False)


def _check_format(values: Tensor, quantize: Method | None, source: str) -> None:
    wanted = {torch.float8_e4m3fn: (None, "fp8", "fp8_weights"), torch.int8: (None, "int8")}
    if values.dtype not in wanted:
        raise CheckpointError(f"{source} has layers in {values.dtype}; wanted float8_e4m3fn or int8.")
    if quantize not in wanted[values.dtype]:
        raise CheckpointError(f"{source} is in {values.dtype} already, which quantize {quantize!r} does not go with.")
