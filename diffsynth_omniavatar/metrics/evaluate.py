"""Measures videos: groups of figures for each clip, and what clips say together.

found = evaluate([ClipFiles(generated=Path("talk.mp4"), reference=Path("real.mp4"))], ["lips", "picture"])
found.summary(), found.clips[0].values
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .clip import PROTOCOL, Clip, ClipFiles
from .groups import GROUPS, Group, has_square
from .networks import Networks, missing_for
from .together import SET_GROUPS, Together

ALL_GROUPS = (*GROUPS, *SET_GROUPS)

LOWER_IS_BETTER = frozenset(
    "lmd sync_d lpips lpips_face flicker frozen_share colour_drift fid fid_face fvd".split()  # noqa: SIM905
)
HIGHER_IS_BETTER = frozenset(
    "sync_c stable_sync csim psnr psnr_face psnr_outside ssim ssim_face ssim_outside "  # noqa: SIM905
    "openness_heard_r openness_r width_r sharpness".split()
)
"""Which end of a figure is the better one; of all others neither."""


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What was measured on a clip."""

    files: ClipFiles
    values: Mapping[str, float]
    curves: Mapping[str, np.ndarray]
    """By name, a number for each frame at 25 per second."""
    missing: Mapping[str, str]
    """Groups that this clip has no figures of, and why."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured on several clips."""

    clips: Sequence[ClipResult]
    values: Mapping[str, float] = field(default_factory=dict)
    """Figures of all clips together: FID, FVD."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Groups that could not be measured at all, and what brings them."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Clips that could not be read, and why."""
    protocol: Mapping[str, object] = field(default_factory=lambda: dict(PROTOCOL))

    def summary(self) -> dict[str, dict[str, float | str]]:
        """Of each figure its mean, median, the worst value and its clip (only where one end is better), and the number
        of clips that have it."""
        found: dict[str, dict[str, float | str]] = {}
        for name in dict.fromkeys(name for clip in self.clips for name in clip.values):
            known = [(clip.values[name], clip.files.name) for clip in self.clips if _is_known(clip.values.get(name))]
            if not known:
                continue
            numbers = [value for value, _ in known]
            row: dict[str, float | str] = {
                "mean": statistics.fmean(numbers),
                "median": statistics.median(numbers),
                "clips": len(known),
            }
            if name in LOWER_IS_BETTER | HIGHER_IS_BETTER:
                value, clip_name = (max if name in LOWER_IS_BETTER else min)(known)
                row |= {"worst": value, "worst_clip": clip_name}
            found[name] = row
        return found


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def check_groups(names: Sequence[str]) -> list[str]:
    """The names, if all are groups; an empty list stands for all.

    Raises:
        ValueError: there is no such group.
    """
    unknown = [name for name in names if name not in ALL_GROUPS]
    if unknown:
        raise ValueError(f"there are no figures {', '.join(unknown)}; wanted some of {', '.join(ALL_GROUPS)}")
    return list(names) or list(ALL_GROUPS)


def evaluate(
    clips: Sequence[ClipFiles],
    groups: Sequence[str] = (),
    networks: Networks | None = None,
    *,
    on_clip: Callable[[int, ClipResult | str], None] | None = None,
) -> Evaluation:
    """Measure clips. One that cannot be read is listed, and the others are measured.

    Args:
        clips: their files.
        groups: names out of `ALL_GROUPS`; none for all. Those whose package or weights are missing are listed so.
        networks: where weights lie, and the device.
        on_clip: called for each clip with its place and result, or why it failed. Files that cannot be opened are told
            before anything is measured.

    Raises:
        ValueError: an unknown group; or weights that are given cannot be used; or of the groups that were asked for
            none can be had.
    """
    networks = networks or Networks()
    usable, missing = usable_groups(groups, networks)
    results: list[ClipResult] = []
    failed: dict[str, str] = {}

    def tell(place: int, result: ClipResult | str) -> None:
        if isinstance(result, str):
            failed[clips[place].name] = result
        else:
            results.append(result)
        if on_clip is not None:
            on_clip(place, result)

    opened: list[int] = []
    for place, files in enumerate(clips):
        try:
            Clip(files)
            opened.append(place)
        except (ValueError, OSError) as error:
            tell(place, str(error))
    together = Together([name for name in usable if name in SET_GROUPS], networks)
    chosen = [GROUPS[name] for name in usable if name in GROUPS]
    for place in opened:
        tell(place, _measured_or_why(clips[place], chosen, networks, together))
    values: dict[str, float] = {}
    for name, value in together.results():
        if value is not None:
            values[name] = value
        elif name in SET_GROUPS:
            missing[name] = "fewer than two frames, or pieces of 16 frames, have a reference"
    protocol = PROTOCOL | {"weights": {name: _sha256(path) for name in usable if (path := networks.file(name))}}
    return Evaluation(clips=results, values=values, missing=missing, failed=failed, protocol=protocol)


def usable_groups(groups: Sequence[str], networks: Networks) -> tuple[list[str], dict[str, str]]:
    """The groups that can be measured, with their networks loaded, and why others cannot; raises as `evaluate`."""
    names = check_groups(groups)
    missing = {name: why for name in names if (why := missing_for(name, networks)) is not None}
    for name in names:
        if name not in missing:
            try:
                networks.load(name)
            except ImportError as error:
                missing[name] = str(error)
    usable = [name for name in names if name not in missing]
    if not usable:
        raise ValueError("nothing can be measured: " + "; ".join(f"{name}: {why}" for name, why in missing.items()))
    return usable, missing


def load_networks(names: Sequence[str], networks: Networks) -> None:
    """Load what groups need, so that wrong weights are told before any clip is read."""
    for name in names:
        networks.load(name)


def _sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _measured_or_why(
    files: ClipFiles, groups: Sequence[type[Group]], networks: Networks, together: Together
) -> ClipResult | str:
    """The figures of a clip, or why it cannot be measured."""
    complete = False
    try:
        result = _evaluate_clip(Clip(files), groups, networks, together)
        complete = True
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        return str(error) or type(error).__name__
    finally:
        together.end_clip(complete)
    return result


def _evaluate_clip(clip: Clip, groups: Sequence[type[Group]], networks: Networks, together: Together) -> ClipResult:
    missing: dict[str, str] = {}
    active: list[Group] = []
    for group in groups:
        lacks = _lacks(clip, group)
        if lacks is None:
            active.append(group(clip, networks))
        else:
            missing[group.name] = lacks
    for window in clip.windows():
        for watching in active:
            watching.watch(window)
        together.watch(clip, window)
    values: dict[str, float] = {}
    curves: dict[str, np.ndarray] = {}
    for watching in active:
        try:
            measured = watching.result()
        except ValueError as error:
            missing[watching.name] = str(error)
            continue
        values |= measured.values
        curves |= measured.curves
    return ClipResult(files=clip.files, values=values, curves=curves, missing=missing)


def _lacks(clip: Clip, group: type[Group]) -> str | None:
    if "reference" in group.needs and clip.files.reference is None:
        return "no reference is given"
    if "sound" in group.needs and clip.waveform is None:
        return "there is no sound"
    if "face" in group.needs and not any(face is not None for face in clip.faces):
        return "there is no face in any frame"
    if "square" in group.needs and not has_square(clip):
        return f"there is no face in any frame{'' if clip.files.reference is None else ' of the reference'}"
    return None


def measured_rows(evaluation: Evaluation) -> Iterator[dict[str, float | str]]:
    """A row for each clip: its files and figures."""
    for clip in evaluation.clips:
        yield {"clip": clip.files.name, **clip.values}
