"""The alpha that peft and diffusers write beside a LoRA's tensors instead of among them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..system.tensor_files import open_safetensors
from ..system.text_files import parse_json, read_text
from .checkpoint import CheckpointError, low_rank_part

PEFT_CONFIG = "adapter_config.json"
"""In the folder of peft's files."""
PEFT_PREFIX = "base_model.model."
DIFFUSERS_METADATA = "lora_adapter_metadata"
"""Of safetensors files: peft's configuration with the name of the network before each key."""


def stated_alphas(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys `.alpha` for a file's low-rank pairs, from what stands beside its tensors; {} if nothing does.

    Raises:
        CheckpointError: what stands there is no configuration, or has an alpha for each of several modules.
    """
    config, source = _config(path, tensors)
    if config.get("lora_alpha") is None:
        return {}
    alpha = config["lora_alpha"]
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise CheckpointError(f"{source}: lora_alpha is {alpha!r}, wanted a number.")
    if config.get("alpha_pattern"):
        raise CheckpointError(f"{source}: alpha_pattern, which gives modules an alpha of their own, is not supported.")
    found = {}
    for key, down in tensors.items():
        part = low_rank_part(key)
        if part and part[1] == "lora_A.weight" and f"{part[0]}.alpha" not in tensors:
            scaled = alpha * math.sqrt(len(down)) if config.get("use_rslora") else alpha
            found[f"{part[0]}.alpha"] = torch.tensor(float(scaled), dtype=torch.float64)
    return found


def _config(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Any], str]:
    """peft's configuration of a file, {} if there is none, and where it stands."""
    text, source, beside = None, f"{path}: {DIFFUSERS_METADATA}", path.parent / PEFT_CONFIG
    if path.suffix == ".safetensors":
        with open_safetensors(path) as content:
            text = (content.metadata() or {}).get(DIFFUSERS_METADATA)
    if text is None and beside.is_file() and any(key.startswith(PEFT_PREFIX) for key in tensors):
        text, source = read_text(beside), str(beside)
    try:
        content = {} if text is None else parse_json(text, source)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, wanted a JSON object.")
    return {str(key).removeprefix("transformer."): value for key, value in content.items()}, source
