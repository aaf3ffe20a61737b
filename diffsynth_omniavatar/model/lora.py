"""LoRA: which layers it adapts, and how its low-rank parts come onto a model, out of it, and into other files."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .architecture import check_shapes
from .checkpoint import (
    EXTRA_MODULES,
    LORA_KEY,
    Checkpoint,
    CheckpointError,
    adapted_modules,
    low_rank_part,
    normal_key,
    shapes_of,
)
from .config import LoRAConfig
from .dit import OmniAvatarDiT
from .lora_changes import Change
from .lora_files import LoRA
from .lora_keys import PARTS, SPELLINGS


def split_lora(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The low-rank parts, and all others."""
    low_rank = {key: tensor for key, tensor in tensors.items() if LORA_KEY.match(key)}
    return low_rank, {key: tensor for key, tensor in tensors.items() if key not in low_rank}


def adapted_layers(wan: nn.Module, targets: Iterable[str]) -> dict[str, nn.Linear]:
    """The linear layers of a transformer's blocks whose names end in one of `targets`, by name."""
    endings = tuple(f".{target}" for target in targets)
    # Blocks that the host keeps in CPU memory are wrapped.
    named = ((path.replace(".module.", "."), module) for path, module in wan.named_modules())
    return {
        name: module
        for name, module in named
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and name.endswith(endings)
    }


def own_lora(low_rank: Mapping[str, Tensor], settings: LoRAConfig, source: str) -> LoRA:
    """A checkpoint's low-rank parts as the LoRA that is added to the weights."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in low_rank.items():
        part = low_rank_part(key)
        assert part is not None
        modules.setdefault(part[0], {})[PARTS[part[1]]] = tensor
    for module, parts in modules.items():
        if settings.kind == "lokr":  # peft scales it too where neither factor is a product
            first = "lokr_w1" if "lokr_w1" in parts else "lokr_w1_a"
            parts[first] = parts[first].float() * settings.scale
        else:
            parts["alpha"] = torch.tensor(settings.alpha_of(module), dtype=torch.float64)
    return LoRA(source, {f"{module}.weight": Change(parts) for module, parts in modules.items()})


def inject_adapters(dit: nn.Module, settings: LoRAConfig, modules: Sequence[str], name: str = "default") -> None:
    """Put fresh peft adapters of the settings' kind on the modules; they change nothing yet."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

    others = [module for module in modules if settings.rank_of(module) != settings.rank]
    given: dict[str, Any] = {
        "r": settings.rank,
        "target_modules": [*modules],
        "rank_pattern": {re.escape(module): settings.rank_of(module) for module in others},
        "alpha_pattern": {re.escape(module): settings.alpha_of(module) for module in others},
    }
    if settings.kind in ("lora", "dora"):  # peft only divides alpha by the rank: any number will do
        config = LoraConfig(lora_alpha=settings.alpha, use_dora=settings.kind == "dora", **given)  # type: ignore[arg-type]
    else:
        config = {"lokr": LoKrConfig, "loha": LoHaConfig}[settings.kind](alpha=settings.alpha, **given)
    inject_adapter_in_model(config, dit, name)


def fresh_shapes(layers: Mapping[str, nn.Linear], settings: LoRAConfig) -> dict[str, list[int]]:
    """Keys and shapes of the low-rank parts that `inject_adapters` makes for these layers, by their names."""

    @functools.cache
    def parts_of(inputs: int, outputs: int, rank: int) -> dict[str, list[int]]:
        with torch.device("meta"):
            holder = nn.ModuleDict({"layer": nn.Linear(inputs, outputs)})
            inject_adapters(holder, replace(settings, rank=rank, rank_pattern=()), ["layer"])
        parts = {low_rank_part(name): value for name, value in holder.named_parameters()}
        return {part[1]: list(value.shape) for part, value in parts.items() if part is not None}

    return {
        f"{name}.{part}": shape
        for name, layer in layers.items()
        for part, shape in parts_of(layer.in_features, layer.out_features, settings.rank_of(name)).items()
    }


def add_adapters(
    dit: OmniAvatarDiT,
    settings: LoRAConfig,
    modules: list[str],
    low_rank: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Inject peft adapters named "default" at `modules` and load them strictly.

    Raises:
        CheckpointError: names or shapes of the parts are others.
    """
    inject_adapters(dit, settings, modules)
    adapters = {normal_key(name): value for name, value in dit.named_parameters() if LORA_KEY.match(name)}
    check_shapes(shapes_of(low_rank), shapes_of(adapters), "the checkpoint's low-rank part")
    for name, value in adapters.items():
        value.data = low_rank[name].to(dtype=dtype, device=value.device, copy=True)


def trained_tensors(dit: OmniAvatarDiT) -> dict[str, Tensor]:
    """The tensors of a LoRA checkpoint from a model with peft adapters: adapters, patch embedding, audio modules."""
    return {
        normal_key(key): tensor
        for key, tensor in dit.state_dict().items()
        if LORA_KEY.match(key) or key.startswith(EXTRA_MODULES)
    }


def joined_lora(parts: Sequence[tuple[Mapping[str, Tensor], LoRAConfig]]) -> tuple[dict[str, Tensor], LoRAConfig]:
    """Several LoRAs as one that changes the weights by their sum: [B_1 s_1, B_2 s_2, ...] times [A_1; A_2; ...].

    Args:
        parts: low-rank parts, in the one spelling, and settings of each.

    Returns:
        Low-rank parts and settings, whose scale is 1. A layer that a LoRA lacks has zeros in its place.
    """
    joined: dict[str, Tensor] = {}
    for module in sorted(set().union(*(adapted_modules(tensors) for tensors, _ in parts))):
        down, up = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        like = next(tensors for tensors, _ in parts if down in tensors)
        dtype, device = like[down].dtype, like[down].device
        downs, ups = [], []
        for tensors, lora in parts:
            if down in tensors:
                downs.append(tensors[down].to(device, dtype))
                ups.append((tensors[up].to(device).float() * lora.scale).to(dtype))
            else:
                downs.append(like[down].new_zeros(lora.rank, like[down].shape[1]))
                ups.append(like[up].new_zeros(like[up].shape[0], lora.rank))
        joined |= {down: torch.cat(downs), up: torch.cat(ups, dim=1)}
    rank = sum(lora.rank for _, lora in parts)
    targets = dict.fromkeys(target for _, lora in parts for target in lora.target_modules)
    return joined, LoRAConfig(rank=rank, alpha=float(rank), target_modules=tuple(targets))


def lora_file_tensors(checkpoint: Checkpoint, form: str = "comfyui") -> tuple[dict[str, Tensor], LoRAConfig]:
    """The tensors of a LoRA file that other programs load with strength 1.

    Some multiply with 1 and others with alpha / rank, so the scale is folded into B and alpha is the rank.

    Args:
        checkpoint: in LoRA form.
        form: one of `lora_keys.SPELLINGS`. In "comfyui" the patch embedding and the audio modules stay in the file:
            DiffSynth and ComfyUI pass over them, and this package reads them. Others have the low-rank parts alone.

    Raises:
        CheckpointError: it holds full weights, or there is no such form.
    """
    lora = checkpoint.config.lora
    if lora is None:
        raise CheckpointError(f"{checkpoint.source} holds full weights; there is no LoRA in it to write.")
    if lora.kind != "lora":
        raise CheckpointError(
            f"{checkpoint.source} is a {lora.name}, which is not written as a LoRA file: --to merged."
        )
    if form not in SPELLINGS:
        raise CheckpointError(f"There is no form {form!r} of LoRA files; the forms are {', '.join(SPELLINGS)}.")
    spelling = SPELLINGS[form]
    low_rank, others = split_lora(checkpoint.tensors)
    tensors = {f"{spelling.prefix}{key}": tensor for key, tensor in others.items()} if form == "comfyui" else {}
    for module in checkpoint.lora_modules:
        name = spelling.module(module)
        down, up = (low_rank[f"{module}.lora_{part}.weight"] for part in "AB")
        tensors[f"{name}.{spelling.down}"] = down
        tensors[f"{name}.{spelling.up}"] = (up.float() * lora.scale).to(up.dtype)
        if spelling.has_alpha:
            tensors[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return tensors, replace(lora, alpha=float(lora.rank))
