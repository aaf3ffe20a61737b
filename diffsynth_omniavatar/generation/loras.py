"""LoRAs of other programs on a loaded pipeline: added, and taken off again."""

from __future__ import annotations

from pathlib import Path

from ..model.checkpoint import LORA_KEY
from ..model.lora_files import ReadLoRA
from ..model.lora_merge import fitted, merge, restore
from ..model.upgrade import refuse_dora
from .loading import local_lora
from .pipeline import OmniAvatarPipeline


def add_lora(pipe: OmniAvatarPipeline, file: str | Path, strength: float = 1.0) -> str:
    """Add a LoRA file of another program to the denoiser's weights.

    The weights that it changes are kept on the CPU, for `remove_loras`. Several LoRAs add up in their order, from those
    weights, in float32, rounded once. `load_pipeline(loras=...)` keeps nothing, and rounds OmniAvatar's LoRA together
    with the others.

    Args:
        pipe: from `load_pipeline` or `from_pretrained`.
        file: .safetensors or .pt, or OWNER/NAME:FILE of a hub.
        strength: by which its changes are multiplied.

    Returns:
        A line: what of the file is used, and what is not.

    Raises:
        FileNotFoundError: there is no such file; OSError: it cannot be downloaded.
        CheckpointError: it is damaged, no LoRA, or does not fit, or the weights are quantised. Nothing is changed.
    """
    lora = fitted(ReadLoRA.of((local_lora(file), strength)), pipe.dit)
    if _has_adapters(pipe):
        refuse_dora([lora], "OmniAvatar's LoRA is kept apart from the weights")
    merge(pipe.dit, [*pipe.loras, lora], pipe.device, pipe.kept_weights)
    pipe.loras.append(lora)
    return lora.report()


def remove_loras(pipe: OmniAvatarPipeline) -> None:
    """Take off all LoRAs that `add_lora` has added: the weights are what they were, to the bit. Those of
    `load_pipeline(loras=...)` stay.
    """
    restore(pipe.dit, pipe.kept_weights)
    pipe.loras.clear()
    pipe.kept_weights.clear()


def _has_adapters(pipe: OmniAvatarPipeline) -> bool:
    """Whether OmniAvatar's LoRA is kept apart, by peft or by the host."""
    names = [name for name, _ in pipe.dit.named_parameters()]
    return any(map(LORA_KEY.match, names)) or any(getattr(one, "lora_A_weights", None) for one in pipe.dit.modules())
