"""Other programs' LoRAs in the frozen weights that a LoRA trains on: `--base_lora`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..generation.loading import local_lora
from ..model.checkpoint import denoiser_shapes, read_config
from ..model.config import BaseLoRA
from ..model.files import parse_lora
from ..model.lora_files import LoRASource, base_lora, lora_of, read_header
from .flags import DENOISER_FILES, FlagError


def named_loras(args: argparse.Namespace) -> list[LoRASource]:
    """Files, downloaded if need be, and strengths of --base_lora; OSError if there is no such file."""
    return [(local_lora(file), strength) for file, strength in map(parse_lora, args.base_lora or ())]


def recorded_loras(args: argparse.Namespace) -> tuple[BaseLoRA, ...]:
    """What the checkpoints of the run say of --base_lora."""
    return tuple(base_lora(one) for one in named_loras(args))


def base_lora_faults(args: argparse.Namespace) -> Iterator[str]:
    """What tells, before anything is loaded, that --base_lora cannot be."""
    for text in args.base_lora or ():
        try:
            path = local_lora(parse_lora(text)[0])
            tensors = read_header(path)
            if any("dora_scale" in key or "lora_magnitude_vector" in key for key in tensors):
                raise FlagError(f"{path} is a DoRA, whose change would depend on the LoRA that trains")
            shapes = _shapes(args.model_paths)
            if shapes is not None:
                lora_of(tensors, shapes, str(path))
        except (OSError, ValueError) as error:
            yield f"--base_lora: {str(error).rstrip('.')}"


def _shapes(model_paths: str | None) -> Mapping[str, Sequence[int]] | None:
    """Of the denoiser among --model_paths; None if that cannot be told."""
    try:
        entries: list[Any] = json.loads(model_paths or "[]")
        for entry in entries:
            paths = [entry] if isinstance(entry, str) else entry
            if all(DENOISER_FILES in Path(path).name for path in paths):
                return denoiser_shapes(tuple(map(Path, paths)))
    except (ValueError, OSError, TypeError):  # of --model_paths, of which others tell
        return None
    return None


def check_same_base(checkpoint: Path, args: argparse.Namespace) -> None:
    """Raise ValueError if a checkpoint was trained on weights with other LoRAs than --base_lora names."""
    file = checkpoint / "model.safetensors"
    if not file.is_file():
        return
    before, now = read_config([file]).base_loras, recorded_loras(args)
    content = [[(one.sha256, one.strength) for one in loras] for loras in (before, now)]
    if content[0] != content[1]:
        shown = [", ".join(map(str, loras)) or "no LoRA" for loras in (before, now)]
        raise ValueError(
            f"{checkpoint} was trained on weights with {shown[0]}, this run has {shown[1]}; give the same --base_lora, "
            "or start a new run from its weights"
        )
