"""The architecture that a checkpoint's shapes or a Wan transformer tell, and whether all shapes are those of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import host
from .checkpoint import CheckpointError
from .config import AUDIO_WINDOW, CheckpointConfig, OmniAvatarConfig

WAN_HEAD_WIDTH = 128


def full_config(
    shapes: Mapping[str, Sequence[int]], stated: CheckpointConfig, source: str, num_heads: int | None = None
) -> OmniAvatarConfig:
    """The architecture of a full checkpoint, from its config.json or else from the shapes.

    Args:
        shapes: of all its tensors, keys in the one spelling.
        stated: its config.json.
        source: the path, for messages.
        num_heads: attention heads, if known; else heads of Wan's width 128.

    Raises:
        CheckpointError: the shapes do not tell it (the number of heads, if the head width is not Wan's 128).
    """
    try:
        dim, in_dim = shapes["patch_embedding.weight"][:2]
        if stated.model is not None:
            return replace(stated.model, in_dim=in_dim)
        sizes: dict[str, Any] = {
            "num_layers": 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
            "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
            "text_dim": shapes["text_embedding.0.weight"][1],
            "freq_dim": shapes["time_embedding.0.weight"][1],
            **audio_sizes_of(shapes),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{source} is no full OmniAvatar checkpoint: {error} is missing.") from error
    if num_heads is None and dim % WAN_HEAD_WIDTH:
        raise CheckpointError(
            f"{source}: a width of {dim} does not tell the number of heads; put a config.json with omniavatar.model "
            "beside it."
        )
    try:
        return OmniAvatarConfig(dim=dim, num_heads=num_heads or dim // WAN_HEAD_WIDTH, in_dim=in_dim, **sizes)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def audio_sizes_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes of the audio part, as `OmniAvatarConfig` names them."""
    hidden, width = shapes["audio_proj.proj.weight"]
    return {"audio_dim": width // AUDIO_WINDOW, "audio_hidden_size": hidden}


def config_on_wan(wan: host.WanModel, in_dim: int, **audio_sizes: int) -> OmniAvatarConfig:
    """The architecture that a Wan transformer gets with `in_dim` input channels and an audio part."""
    block = wan.blocks[0]
    return OmniAvatarConfig(
        dim=wan.dim,
        ffn_dim=block.ffn[0].out_features,
        num_heads=block.num_heads,
        num_layers=len(wan.blocks),
        in_dim=in_dim,
        text_dim=wan.text_embedding[0].in_features,
        freq_dim=wan.freq_dim,
        eps=block.norm1.eps,
        patch_size=tuple(wan.patch_size),
        **audio_sizes,
    )


def check_shapes(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], source: str) -> None:
    """Whether the shapes of all tensors are the wanted ones.

    Raises:
        CheckpointError: they are not; the message names the faults.
    """
    faults = [f"missing {name}" for name in wanted if name not in found]
    faults += [f"unknown {name}" for name in found if name not in wanted]
    faults += [
        f"{name} is {list(found[name])}, wanted {list(shape)}"
        for name, shape in wanted.items()
        if name in found and list(found[name]) != list(shape)
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise CheckpointError(f"{source} does not fit the model: {shown}.")
