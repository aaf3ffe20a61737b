"""LoRA: which layers it adapts, and how its low-rank parts come onto a model, out of it, and into other files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from .checkpoint import EXTRA_MODULES, LORA_KEY, Checkpoint, CheckpointError, adapted_modules, normal_key
from .config import LoRAConfig
from .dit import OmniAvatarDiT


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


def with_low_rank(weight: Tensor, low_rank: Mapping[str, Tensor], module: str, scale: float) -> Tensor:
    """`weight + scale * B A` of a module, summed in float32, in the format of the weight."""
    down, up = (low_rank[f"{module}.lora_{part}.weight"].to(weight.device, torch.float32) for part in "AB")
    return torch.add(weight.float(), up @ down, alpha=scale).to(weight.dtype)


@torch.no_grad()
def fuse_lora(dit: nn.Module, low_rank: Mapping[str, Tensor], scale: float) -> None:
    """Add `scale * B A` to the adapted weights, summing in float32."""
    for name in adapted_modules(low_rank):
        weight = dit.get_parameter(f"{name}.weight")
        weight.copy_(with_low_rank(weight, low_rank, name, scale))


def add_adapters(
    dit: OmniAvatarDiT,
    settings: LoRAConfig,
    modules: list[str],
    low_rank: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Inject peft adapters named "default" at `modules` and load them strictly."""
    from peft import LoraConfig, inject_adapter_in_model

    # peft only divides alpha by the rank: any number will do.
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=modules)  # type: ignore[arg-type]
    inject_adapter_in_model(config, dit)
    for name in modules:
        layer = dit.get_submodule(name)
        for part in "AB":
            adapter = getattr(layer, f"lora_{part}")["default"]
            adapter.load_state_dict({"weight": low_rank[f"{name}.lora_{part}.weight"]}, strict=True)
            adapter.to(dtype=dtype, device=layer.get_base_layer().weight.device)


def trained_tensors(dit: OmniAvatarDiT) -> dict[str, Tensor]:
    """The tensors of a LoRA checkpoint from a model with peft adapters: adapters, patch embedding, audio modules."""
    return {
        normal_key(key): tensor
        for key, tensor in dit.state_dict().items()
        if LORA_KEY.match(key) or key.startswith(EXTRA_MODULES)
    }


def lora_file_tensors(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], LoRAConfig]:
    """The tensors of a LoRA file that DiffSynth and ComfyUI load with strength 1.

    DiffSynth 1.1.9 multiplies with 1 and the others with alpha / rank, so the scale is folded into B and alpha is
    the rank. The patch embedding and the audio modules stay in the file: those programs pass over them, and this
    package reads them.
    """
    lora = checkpoint.config.lora
    if lora is None:
        raise CheckpointError(f"{checkpoint.source} holds full weights; there is no LoRA in it to write.")
    tensors: dict[str, Tensor] = {}
    for key, tensor in checkpoint.tensors.items():
        is_up = key.endswith(".lora_B.weight")
        tensors[f"diffusion_model.{key}"] = (tensor.float() * lora.scale).to(tensor.dtype) if is_up else tensor
    for module in checkpoint.lora_modules:
        tensors[f"diffusion_model.{module}.alpha"] = torch.tensor(float(lora.rank))
    return tensors, replace(lora, alpha=float(lora.rank))
