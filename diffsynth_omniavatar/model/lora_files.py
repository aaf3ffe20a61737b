"""LoRA files of other programs: their spellings as tables, and what they add to a denoiser's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..system.tensor_files import read_pickle, read_safetensors
from .checkpoint import CheckpointError

PREFIXES = ("base_model.model.", "pipe.dit.", "diffusion_model.", "transformer.")
FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lycoris_")
"""Before module names whose dots are underscores."""
DIFFUSERS = (
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])$", r".\1"),
    (r"\.to_out\.0$", ".o"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
    (r"\.add_([kv])_proj$", r".\1_img"),
    (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
    (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^proj_out$", "head.head"),
)
PARTS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "lora_B.bias": "up_bias",
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
    "diff_m": "diff_m",
}
"""Ending of a key -> what the tensor is."""
ONLY_I2V = re.compile(r"(^|\.)(k_img|v_img|norm_k_img|img_emb|image_embedder)(\.|$)|(k|v|norm_k)_img$|^img_emb_")
OWN_PATCHES = "patch_embedding"
"""OmniAvatar's own replaces Wan's, for which the file was trained."""


def read_lora(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pt file; raises OSError and DamagedFileError."""
    if Path(path).suffix == ".safetensors":
        return read_safetensors(path)
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} holds no table of tensors; wanted a LoRA file.")
    return content


def _split(key: str, flat: Mapping[str, str]) -> tuple[str, str] | None:
    """Module, in Wan's names, and part of a key; None if it is of no known form."""
    ending = next((ending for ending in PARTS if key.endswith(f".{ending}")), None)
    if ending is None:
        return None
    module = key.removesuffix(f".{ending}")
    for prefix in PREFIXES:
        module = module.removeprefix(prefix)
    for prefix in FLAT_PREFIXES:
        if module.startswith(prefix):
            name = module.removeprefix(prefix)
            return flat.get(name, name), PARTS[ending]
    for pattern, name in DIFFUSERS:
        module = re.sub(pattern, name, module)
    return module, PARTS[ending]


def _changes(parts: Mapping[str, Tensor], module: str, source: str) -> dict[str, Tensor]:
    """Name of a parameter -> what the module's parts add to it with strength 1, float32."""
    changes = {}
    if ("down" in parts) != ("up" in parts):
        raise CheckpointError(f"{source}: {module} has only one of its two low-rank parts.")
    scale = 1.0
    if "down" in parts:
        down, up = parts["down"].float(), parts["up"].float()
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise CheckpointError(f"{source}: {module}: parts of {[*up.shape]} and {[*down.shape]} do not fit.")
        scale = float(parts["alpha"]) / len(down) if "alpha" in parts else 1.0
        changes[f"{module}.weight"] = scale * (up @ down)
    for part, name in (("diff", ".weight"), ("diff_b", ".bias"), ("diff_m", ".modulation"), ("up_bias", ".bias")):
        if part in parts:
            change = parts[part].float() * (scale if part == "up_bias" else 1.0)
            changes[module + name] = changes[module + name] + change if module + name in changes else change
    return changes


def lora_changes(
    tensors: Mapping[str, Tensor], dit: nn.Module, source: str
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """What a LoRA file adds to a denoiser.

    Returns:
        parameter -> what is added with strength 1, float32; keys passed over, that are of I2V models or of the patch
        embedding; keys that nothing is known of.

    Raises:
        CheckpointError: no key fits, or a shape does not.
    """
    wanted = {name: parameter.shape for name, parameter in dit.named_parameters()}
    flat = {name.rpartition(".")[0].replace(".", "_"): name.rpartition(".")[0] for name in wanted}
    modules: dict[str, dict[str, Tensor]] = {}
    keys: dict[str, list[str]] = {}
    passed, unknown = [], []
    for key, tensor in tensors.items():
        found = _split(key, flat)
        if found is None:
            unknown.append(key)
        elif ONLY_I2V.search(found[0]) or found[0] == OWN_PATCHES:
            passed.append(key)
        else:
            if found[1] in modules.setdefault(found[0], {}):
                raise CheckpointError(f"{source}: {key} is there twice, in two spellings.")
            modules[found[0]][found[1]] = tensor
            keys.setdefault(found[0], []).append(key)
    changes: dict[str, Tensor] = {}
    for module, parts in modules.items():
        of_module = _changes(parts, module, source)
        if not of_module or any(name not in wanted for name in of_module):
            unknown += keys[module]
            continue
        for name, change in of_module.items():
            if change.shape != wanted[name]:
                raise CheckpointError(f"{source}: {name} is {[*change.shape]}, the model's is {[*wanted[name]]}.")
        changes.update(of_module)
    if not changes:
        raise CheckpointError(
            f"{source}: none of its {len(tensors)} keys fits the model, like {next(iter(tensors), '')!r}."
        )
    return changes, passed, unknown


@torch.no_grad()
def merge_changes(dit: nn.Module, loras: list[tuple[Mapping[str, Tensor], float]]) -> dict[str, Tensor]:
    """Add changes times strengths, summed in float32 and cast once; returns the weights as they were, on the CPU."""
    kept = {}
    for name in dict.fromkeys(name for changes, _ in loras for name in changes):
        weight = dit.get_parameter(name)
        kept[name] = weight.detach().to("cpu", copy=True)
        total = weight.to(torch.float32, copy=True)
        for changes, strength in loras:
            if name in changes:
                total.add_(changes[name].to(weight.device), alpha=strength)
        weight.copy_(total)
    return kept


@torch.no_grad()
def restore_weights(dit: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Undo `merge_changes`, to the bit."""
    for name, weight in kept.items():
        dit.get_parameter(name).copy_(weight)
