"""From a Wan transformer to an OmniAvatar denoiser, in place: with a LoRA checkpoint, or to train from; more input
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from .. import host
from .architecture import audio_sizes_of, check_shapes, config_on_wan
from .checkpoint import EXTRA_MODULES, Checkpoint, CheckpointError, shapes_of
from .config import LATENT_CHANNELS, OmniAvatarConfig
from .dit import OmniAvatarDiT, state_dict_shapes
from .lora import adapted_layers, add_adapters, fresh_shapes, own_lora, split_lora
from .lora_files import LoRA
from .lora_merge import merge

XAVIER_GAIN = 0.05


def grow_channels(weight: Tensor, in_dim: int) -> Tensor:
    """Give a patch embedding [D, c, 1, 2, 2] the channels up to `in_dim`, the new ones zero.

    Raises:
        CheckpointError: it already has more.
    """
    channels = weight.shape[1]
    if channels > in_dim:
        raise CheckpointError(f"A patch embedding of {channels} channels does not fit a model of {in_dim}.")
    grown = weight.new_zeros(weight.shape[0], in_dim, *weight.shape[2:])
    grown[:, :channels] = weight
    return grown


def grow_model(dit: OmniAvatarDiT, in_dim: int) -> None:
    """Give a loaded model more input channels, the new ones zero, in place."""
    weight = grow_channels(dit.patch_embedding.weight.data, in_dim)
    extras = {"patch_embedding.weight": weight, "patch_embedding.bias": dit.patch_embedding.bias.data}
    extras.update({key: t for key, t in dit.state_dict().items() if key.startswith(EXTRA_MODULES[1:])})
    OmniAvatarDiT.upgrade(dit, replace(dit.config, in_dim=in_dim))
    load_extras(dit, extras, weight.dtype, weight.device)


def apply_checkpoint(
    wan: host.WanModel,
    checkpoint: Checkpoint,
    *,
    in_dim: int | None = None,
    lora: Literal["fused", "adapters"] = "fused",
    dtype: torch.dtype,
    device: torch.device | str,
    loras: Sequence[LoRA] = (),
    sums_on: torch.device | str | None = None,
    hot_load: Callable[[OmniAvatarDiT, dict[str, Tensor], float], None] | None = None,
) -> OmniAvatarDiT:
    """Make a Wan transformer the checkpoint's model, in place.

    Args:
        wan: the base transformer.
        checkpoint: in LoRA form.
        in_dim: input channels to grow to (the new ones zero); None for the checkpoint's.
        lora: add the low-rank parts to the weights (`W + alpha / rank * B A`, summed in float32), or keep them as peft
            adapters named "default" that can be switched and trained.
        dtype, device: of the new modules and adapters.
        loras: others, added to the weights after the checkpoint's.
        sums_on: device that adds; None for where each weight is.
        hot_load: the host's way to put LoRA on weights that cannot be added to (quantised or offloaded); used instead
            of fusing if given.

    Raises:
        CheckpointError: keys or shapes do not fit; the message names them.
    """
    if checkpoint.form != "lora":
        raise CheckpointError(f"{checkpoint.source} holds full weights and takes no base model; load it alone.")
    in_dim = in_dim or checkpoint.in_dim
    config = config_on_wan(wan, in_dim, **audio_sizes_of(shapes_of(checkpoint.tensors)))
    tensors = dict(checkpoint.tensors)
    tensors["patch_embedding.weight"] = grow_channels(tensors["patch_embedding.weight"], in_dim)
    check_shapes(shapes_of(tensors), _wanted_lora_shapes(wan, config, checkpoint), checkpoint.source)

    dit = OmniAvatarDiT.upgrade(wan, config)
    low_rank, extras = split_lora(tensors)
    load_extras(dit, extras, dtype, device)
    settings = checkpoint.config.lora
    assert settings is not None
    if lora == "fused" and hot_load is not None and settings.kind != "lora":
        raise CheckpointError(
            f"{checkpoint.source} is a {settings.name}, which needs the whole weights: load it without quantising and "
            "offloading by DiffSynth, or merge it (omniavatar convert --to merged)."
        )
    if lora == "fused" and hot_load is None:
        merge(dit, [own_lora(low_rank, settings, checkpoint.source), *loras], sums_on)
        return dit.eval()
    refuse_dora(loras, "OmniAvatar's LoRA is kept apart from the weights")
    merge(dit, loras, sums_on)
    if lora == "adapters":
        add_adapters(dit, settings, checkpoint.lora_modules, low_rank, dtype)
    elif hot_load is not None:
        hot_load(dit, low_rank, settings.scale)
    return dit.eval()


def refuse_dora(loras: Sequence[LoRA], why: str) -> None:
    """Raise CheckpointError if one of the LoRAs needs the whole weights, which it would not see."""
    for lora in loras:
        if lora.has_dora:
            raise CheckpointError(f"{lora.source} is a DoRA, whose change depends on the whole weights, and {why}.")


def _wanted_lora_shapes(wan: host.WanModel, config: OmniAvatarConfig, checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Keys and shapes that a LoRA checkpoint of these target modules must have."""
    settings = checkpoint.config.lora
    assert settings is not None
    wanted = {key: shape for key, shape in state_dict_shapes(config).items() if key.startswith(EXTRA_MODULES)}
    layers = adapted_layers(wan, settings.target_modules)
    if settings.kind in ("lokr", "loha"):
        return wanted | fresh_shapes(layers, settings)
    for name, layer in layers.items():
        rank = settings.rank_of(name)
        wanted[f"{name}.lora_A.weight"] = [rank, layer.in_features]
        wanted[f"{name}.lora_B.weight"] = [layer.out_features, rank]
        if settings.kind == "dora":
            wanted[f"{name}.lora_magnitude_vector.weight"] = [layer.out_features]
    return wanted


def load_extras(
    dit: OmniAvatarDiT, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
) -> None:
    """Load the patch embedding and the audio modules, cast to `dtype` on `device`."""
    for module_name in ("patch_embedding", "audio_proj", "audio_cond_projs"):
        part = {
            key.removeprefix(f"{module_name}."): tensor.to(dtype=dtype, device=device)
            for key, tensor in tensors.items()
            if key.startswith(f"{module_name}.")
        }
        getattr(dit, module_name).load_state_dict(part, strict=True, assign=True)


@torch.no_grad()
def initialise_on_wan(
    wan: host.WanModel,
    in_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: torch.Generator | None = None,
    **audio_sizes: int,
) -> OmniAvatarDiT:
    """Start training from a Wan text-to-video transformer as upstream's loader does, in place.

    New matrices are `xavier_uniform_(gain=0.05)` and new vectors zero, so the audio has no effect at the first step.
    The patch embedding keeps the base's 16 channels; its others come from the xavier draw of the whole tensor.

    Source: `smart_load_weights` of upstream's inference code, with the fill before it.
    """
    base = {key: tensor.detach().clone() for key, tensor in wan.patch_embedding.state_dict().items()}
    config = config_on_wan(wan, in_dim, **audio_sizes)
    dit = OmniAvatarDiT.upgrade(wan, config)
    extras: dict[str, Tensor] = {}
    for key, shape in state_dict_shapes(config).items():
        if not key.startswith(EXTRA_MODULES):
            continue
        extras[key] = torch.zeros(shape)
        if len(shape) > 1:
            nn.init.xavier_uniform_(extras[key], gain=XAVIER_GAIN, generator=generator)
    extras["patch_embedding.weight"][:, :LATENT_CHANNELS] = base["weight"].float().cpu()
    extras["patch_embedding.bias"] = base["bias"].float().cpu()
    load_extras(dit, extras, dtype, device)
    return dit
