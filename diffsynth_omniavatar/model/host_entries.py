"""What the host's loader is told of full checkpoints, so that it loads them like its own models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .. import host
from .architecture import check_shapes, full_config
from .checkpoint import CheckpointError, has_scales, normalise_keys, read_config, read_shapes, weight_files
from .config import PRESETS, CheckpointConfig
from .dit import config_fields, state_dict_shapes

MERGED_HASHES: dict[str, tuple[str, int]] = {
    "2bf9513c7a3e908015f11a800fc9b820": ("1.3B", 33),
    "ff371243ce4d362b6012c29dc5fda0e5": ("1.3B", 49),
    "959e16c2c680898689a756808f122a39": ("1.3B", 65),
    "883a90b12576b9b8693a08cf690998dd": ("14B", 33),
    "5f50137dbdd202536e1d524015c46d1c": ("14B", 49),
    "2d122b4a8242aa070ca06cdf2b132dd4": ("14B", 65),
}
"""The host's hash of a full checkpoint of the published sizes -> (preset, input channels)."""


def add_merged_entries() -> None:
    """Tell the host's loader the full checkpoints of the published sizes."""
    for hash_, (preset, in_dim) in MERGED_HASHES.items():
        fields = config_fields(replace(PRESETS[preset], in_dim=in_dim))
        host.add_model_entry(hash_, "wan_video_dit", f"{__package__}.dit.build_dit", None, fields)


def add_full_entry(path: str | Path | Iterable[str | Path]) -> CheckpointConfig:
    """Tell the host's loader a full checkpoint of any size, so that it loads it like its own models.

    Raises:
        CheckpointError: keys or shapes are not those of a full checkpoint.
    """
    files = weight_files(path)
    raw, stated = read_shapes(files), read_config(files)
    shapes = normalise_keys(raw)
    if has_scales(shapes):
        raise CheckpointError(f"{files[0]} is in 8 bits: load_pipeline takes it, to generate; training does not.")
    config = full_config(shapes, stated, str(files[0]))
    check_shapes(shapes, state_dict_shapes(config), str(files[0]))
    host.add_model_entry(
        host.model_hash(raw),
        "wan_video_dit",
        f"{__package__}.dit.build_dit",
        None if list(raw) == list(shapes) else f"{__package__}.checkpoint.normalise_keys",
        config_fields(config),
    )
    return replace(stated, model=config)
