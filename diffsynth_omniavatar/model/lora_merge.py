"""LoRAs added to a denoiser's weights: in float32, one after the other, and rounded once."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor, nn

from .checkpoint import LORA_KEY, CheckpointError
from .lora_files import LoRA, ReadLoRA, lora_of
from .quantize import is_quantized

logger = logging.getLogger(__name__)

WRAPPERS = re.compile(r"\.(?:module|base_layer)(?=\.)")
"""In the names of weights that the host keeps in CPU memory, and of those below peft's adapters."""


def named_weights(dit: nn.Module) -> dict[str, nn.Parameter]:
    """A denoiser's parameters by Wan's names, whatever wraps its layers, without adapters."""
    return {WRAPPERS.sub("", name): parameter for name, parameter in dit.named_parameters() if not LORA_KEY.match(name)}


def fitted(lora: ReadLoRA, dit: nn.Module) -> LoRA:
    """What a denoiser takes of a LoRA file.

    Raises:
        CheckpointError: see `lora_of`; or the weights are in 8 bits or streamed.
    """
    if is_quantized(dit) or any(not weight.numel() for weight in dit.parameters()):
        raise CheckpointError(
            f"{lora.source} cannot be added to a denoiser that is quantised or streamed already: load it together with "
            "the model (--lora, or loras= of load_pipeline)."
        )
    shapes = {name: weight.shape for name, weight in named_weights(dit).items()}
    return lora_of(lora.tensors, shapes, lora.source, lora.strength)


def takes_changes(weight: Tensor) -> bool:
    """Whether a weight can be added to where it is: neither quantised nor sharded, empty or on the disk."""
    return type(weight) is nn.Parameter and weight.is_floating_point() and not weight.is_meta and weight.numel() > 0


def summed(weight: Tensor, name: str, loras: Sequence[LoRA], device: torch.device | str | None = None) -> Tensor:
    """A weight with what LoRAs change of the parameter `name`, in float32; CheckpointError if a change does not fit."""
    total = weight.detach().to(device or weight.device, torch.float32, copy=True)
    for lora in loras:
        if name in lora.changes:
            try:
                total = lora.changes[name].applied(total, lora.strength)
            except ValueError as error:
                raise CheckpointError(f"{lora.source}: {name} {error}.") from error
    return total


@torch.no_grad()
def merge(
    dit: nn.Module,
    loras: Sequence[LoRA],
    device: torch.device | str | None = None,
    kept: MutableMapping[str, Tensor] | None = None,
) -> None:
    """Add LoRAs to the weights, in their order, summed in float32 and rounded once.

    Args:
        dit: weights that the host offloads, and those below peft's adapters, are added to where they are.
        loras: what is added.
        device: where sums are made; None for where each weight is.
        kept: name -> a weight on the CPU from which the sum starts, instead of the model's; those that are missing are
            put there, so that `restore` takes everything back.

    Raises:
        CheckpointError: a weight is quantised, sharded or not in memory; nothing is changed then.
    """
    weights = named_weights(dit)
    for lora in loras:
        for name in lora.changes:
            if not takes_changes(weights[name]):
                raise CheckpointError(
                    f"{lora.source} cannot be added to {name}, a {type(weights[name]).__name__} of "
                    f"{str(weights[name].dtype).removeprefix('torch.')} on {weights[name].device}: LoRAs go on weights "
                    "in memory that are not quantised or sharded yet."
                )
    if any(weights[name].dtype.itemsize == 1 for lora in loras for name in lora.changes):
        logger.warning("The weights are in 8 bits, in which most of what a LoRA adds is rounded away; load bfloat16.")
    for name in dict.fromkeys(name for lora in loras for name in lora.changes):
        weight = weights[name]
        if kept is not None and name not in kept:
            kept[name] = weight.detach().to("cpu", copy=True)
        start = weight if kept is None else kept[name]
        weight.copy_(summed(start, name, loras, device or weight.device))


@torch.no_grad()
def restore(dit: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Undo `merge`, to the bit."""
    weights = named_weights(dit)
    for name, weight in kept.items():
        weights[name].copy_(weight)
