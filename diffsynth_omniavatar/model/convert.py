"""A checkpoint in another form: as released, as a LoRA file for other programs, merged with its base; more channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..system.text_files import parse_json, read_text
from .architecture import check_shapes, full_config
from .blocks.quantized import Method
from .checkpoint import (
    Checkpoint,
    CheckpointError,
    adapted_modules,
    has_scales,
    load_checkpoint,
    normalise_keys,
    read_shapes,
    read_tensors,
    save_omniavatar,
    save_safetensors,
    shapes_of,
    weight_files,
)
from .checkpoint_presets import preset_conventions
from .config import OmniAvatarConfig
from .dit import state_dict_shapes
from .lora import lora_file_tensors, own_lora, split_lora
from .lora_merge import summed
from .quantize import check_quantize, layer_names
from .quantized_files import quantized_tensors
from .upgrade import grow_channels

Target = Literal["omniavatar", "lora", "merged"]


def merged_tensors(
    checkpoint: Checkpoint, base: str | Path | Iterable[str | Path]
) -> tuple[dict[str, Tensor], OmniAvatarConfig]:
    """All weights of the denoiser: the base's with the checkpoint's on top, in the base's number format.

    Args:
        checkpoint: in LoRA form.
        base: the Wan transformer's weight files; the config.json beside them, if any, tells the number of heads.
    """
    files = weight_files(base)
    tensors = normalise_keys(read_tensors(files))
    low_rank, extras = split_lora(checkpoint.tensors)
    adapted = adapted_modules(low_rank)
    missing = [name for name in adapted if f"{name}.weight" not in tensors]
    if missing:
        raise CheckpointError(f"{checkpoint.source} adapts {missing[0]} and others, which {files[0]} does not have.")
    assert checkpoint.config.lora is not None
    lora = own_lora(low_rank, checkpoint.config.lora, checkpoint.source)
    for name in lora.changes:
        tensors[name] = summed(tensors[name], name, [lora]).to(tensors[name].dtype)
    dtype = tensors["patch_embedding.weight"].dtype
    tensors.update({key: tensor.to(dtype) for key, tensor in extras.items()})
    config = full_config(shapes_of(tensors), checkpoint.config, str(files[0]), _heads(files[0].parent / "config.json"))
    check_shapes(shapes_of(tensors), state_dict_shapes(config), f"{checkpoint.source} on {files[0]}")
    return tensors, config


def _heads(wan_config: Path) -> int | None:
    """Attention heads, as a Wan transformer's config.json has them; None if nothing tells."""
    if not wan_config.is_file():
        return None
    content = parse_json(read_text(wan_config), str(wan_config))
    if not isinstance(content, dict):
        raise CheckpointError(f"{wan_config} holds a {type(content).__name__}, wanted a JSON object.")
    heads = content.get("num_heads")
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or heads < 1):
        raise CheckpointError(f"{wan_config}: num_heads is {heads!r}, wanted a whole number of at least 1.")
    return heads


def _grown(checkpoint: Checkpoint, in_dim: int) -> Checkpoint:
    weight = grow_channels(checkpoint.tensors["patch_embedding.weight"], in_dim)
    model = None if checkpoint.config.model is None else replace(checkpoint.config.model, in_dim=in_dim)
    config = replace(checkpoint.config, in_dim=in_dim, model=model)
    return replace(checkpoint, tensors={**checkpoint.tensors, "patch_embedding.weight": weight}, config=config)


def convert(
    source: str | Path,
    out: str | Path,
    to: Target,
    *,
    base: str | Path | Iterable[str | Path] | None = None,
    in_dim: int | None = None,
    quantize: Method | None = None,
    keep_bf16: str | Iterable[str] = (),
    lora_form: str | None = None,
    checkpoint_preset: str | None = None,
) -> Path:
    """Write a checkpoint in another form.

    Args:
        source: checkpoint of any form.
        out: a folder for "omniavatar", a .safetensors file for "lora" and "merged".
        to: "omniavatar" (pytorch_model.pt and config.json), "lora" (a LoRA file for DiffSynth and ComfyUI) or "merged"
            (all weights in one file).
        base: weight files of the Wan transformer, needed to merge a LoRA checkpoint.
        in_dim: grow the input channels (33 -> 49 -> 65), the new ones zero.
        quantize: "merged": write the denoiser's layers in 8 bits, for generation.
        keep_bf16: layers that stay as they are; see `quantize.check_quantize`.
        lora_form: of "lora": one of `lora_keys.SPELLINGS`, by default "comfyui"; see `lora.lora_file_tensors`.
        checkpoint_preset: how the checkpoint was trained, where no config.json says so; one of `CHECKPOINT_PRESETS`.

    Returns:
        The file written.

    Raises:
        CheckpointError: the conversion is not possible; the message says why.
        ValueError: no such preset, or that of a checkpoint which cannot be used.
    """
    conventions = None if checkpoint_preset is None else preset_conventions(checkpoint_preset)
    check_quantize(quantize, layer_names(keep_bf16), "cpu")
    if quantize is not None and to != "merged":
        raise CheckpointError(f"quantize {quantize} writes all weights in 8 bits: it goes with --to merged alone.")
    if lora_form is not None and to != "lora":
        raise CheckpointError(f"lora_form {lora_form} says how a LoRA file is written: it goes with --to lora alone.")
    if has_scales(read_shapes(weight_files(source))):
        raise CheckpointError(f"{source} is in 8 bits, which nothing is made of: convert what it was made of.")
    checkpoint = load_checkpoint(source)
    if conventions is not None:
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, conventions=conventions))
    if in_dim is not None:
        checkpoint = _grown(checkpoint, in_dim)
    out = Path(out)
    if to == "omniavatar":
        save_omniavatar(out, checkpoint.tensors, checkpoint.config)
        return out / "pytorch_model.pt"
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out} must end in .safetensors for --to {to}.")

    def in_8_bits(tensors: dict[str, Tensor], model: OmniAvatarConfig) -> dict[str, Tensor]:
        if quantize is None:
            return tensors
        return quantized_tensors(tensors, model.num_layers, quantize, layer_names(keep_bf16))

    if to == "lora":
        tensors, lora = lora_file_tensors(checkpoint, lora_form or "comfyui")
        save_safetensors(out, tensors, replace(checkpoint.config, lora=lora))
    elif checkpoint.form == "full":
        model = full_config(shapes_of(checkpoint.tensors), checkpoint.config, checkpoint.source)
        tensors = in_8_bits(checkpoint.tensors, model)
        save_safetensors(out, tensors, replace(checkpoint.config, model=model))
    elif base is None:
        raise CheckpointError(f"{source} is a LoRA checkpoint: name the Wan transformer to merge it into with --base.")
    else:
        tensors, merged = merged_tensors(checkpoint, base)
        save_safetensors(out, in_8_bits(tensors, merged), replace(checkpoint.config, lora=None, model=merged))
    return out
