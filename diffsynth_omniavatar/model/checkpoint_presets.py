"""Checkpoints of others that have no config.json: told by the name of their file, or by a flag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .config import Conventions
from .sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class CheckpointPreset:
    """What is known of a published file."""

    file: str
    """Its name there."""
    conventions: Conventions | None
    """How it was trained, and is sampled; None for one that cannot be used."""
    reason: str = ""
    """Why it cannot be used."""


CHECKPOINT_PRESETS = {
    "lipforcing_teacher": CheckpointPreset(
        file="omniavatar_ls_14b.pt",
        conventions=Conventions(
            leading_audio_rows=0,
            first_frame="masked",
            prefix_frames=(),
            max_tokens=81 * 512 * 512 // 1024,
            image_sizes=((512, 512),),
            sampling=Sampling(steps=25, cfg_scale=4.5),
        ),
    ),
    "lipforcing_student": CheckpointPreset(
        file="lipforcing_14b.pth",
        conventions=None,
        reason="Lip Forcing's student makes a video a few frames at a time, each seeing only those before (causal "
        "attention). This package runs models whose frames see one another: with these weights that gives wrong "
        "videos. Take its teacher, omniavatar_ls_14b.pt",
    ),
}
"""By their name: the files of Lip Forcing (JinhyukJang/lipforcing on Hugging Face)."""


def preset_conventions(name: str) -> Conventions:
    """The conventions of a preset.

    Raises:
        ValueError: there is no such preset, or its checkpoint cannot be used.
    """
    if name not in CHECKPOINT_PRESETS:
        raise ValueError(f"checkpoint_preset is {name!r}, wanted one of {', '.join(CHECKPOINT_PRESETS)}.")
    preset = CHECKPOINT_PRESETS[name]
    if preset.conventions is None:
        raise ValueError(f"checkpoint_preset {name}: {preset.reason}.")
    return preset.conventions


def preset_of_file(file: Path) -> CheckpointPreset | None:
    """The preset of a file with a published name."""
    return next((preset for preset in CHECKPOINT_PRESETS.values() if preset.file == file.name.lower()), None)
