"""Measures videos: groups of figures for each clip, and what clips say together.

results = evaluate([ClipFiles(generated=Path("talk.mp4"), reference=Path("real.mp4"))], ["lips", "picture"])
results.table()
"""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .clip import PROTOCOL, Clip, ClipFiles, Window
from .crops import cut_squares
from .distribution import Fvd, fid
from .groups import FACE_SIZE, GROUPS, Group
from .networks import Networks, missing_for

logger = logging.getLogger(__name__)

SET_GROUPS = {
    "fid": "FID of all frames, whole and face, to the references'",
    "fvd": "FVD of all clips to the references",
}
"""Figures of all clips together."""
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
    on_clip: Callable[[int, ClipResult | None], None] | None = None,
) -> Evaluation:
    """Measure clips. One that cannot be read is listed, and the others are measured.

    Args:
        clips: their files.
        groups: names out of `ALL_GROUPS`; none for all. Those whose package or weights are missing are listed so.
        networks: where weights lie, and the device.
        on_clip: called after each clip with its place and result, None if it failed.

    Raises:
        ValueError: an unknown group; or weights that are given cannot be used.
    """
    networks = networks or Networks()
    names = check_groups(groups)
    missing = {name: why for name in names if (why := missing_for(name, networks)) is not None}
    usable = [name for name in names if name not in missing]
    _load_all(usable, networks)
    results: list[ClipResult] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        together = _Together([name for name in usable if name in SET_GROUPS], networks, Path(scratch))
        for place, files in enumerate(clips):
            result = None
            try:
                result = _evaluate_clip(files, [GROUPS[name] for name in usable if name in GROUPS], networks, together)
                results.append(result)
            except (ValueError, OSError) as error:
                failed[files.name] = str(error)
            if on_clip is not None:
                on_clip(place, result)
        values = together.compute(missing)
    return Evaluation(clips=results, values=values, missing=missing, failed=failed)


def _load_all(names: Sequence[str], networks: Networks) -> None:
    """Wrong weights are told before any clip is read."""
    loaders = {"sync": "syncnet", "stable_sync": "stable_syncnet", "lpips": "lpips", "identity": "embedder"}
    for name in names:
        if name in loaders:
            getattr(networks, loaders[name])


def _evaluate_clip(
    files: ClipFiles, groups: Sequence[type[Group]], networks: Networks, together: _Together
) -> ClipResult:
    clip = Clip(files)
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
    together.end_clip()
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
    return ClipResult(files=files, values=values, curves=curves, missing=missing)


def _lacks(clip: Clip, group: type[Group]) -> str | None:
    if "reference" in group.needs and clip.files.reference is None:
        return "no reference is given"
    if "sound" in group.needs and clip.waveform is None:
        return "there is no sound"
    if "face" in group.needs and not any(face is not None for face in clip.faces):
        return "there is no face in any frame"
    return None


class _Together:
    """Collects what FID and FVD need: pictures in folders, and pieces of clips."""

    def __init__(self, names: Sequence[str], networks: Networks, scratch: Path) -> None:
        self._networks = networks
        self._scratch = scratch if "fid" in names else None
        self._fvd = Fvd(weights=networks.fvd_path or "", device=networks.device) if "fvd" in names else None
        self._frames = 0
        self._clips = 0
        self._pieces: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def watch(self, clip: Clip, window: Window) -> None:
        """Take the next frames of a clip that has a reference."""
        if window.reference is None:
            return
        if self._scratch is not None:
            pairs = {"whole": (window.frames, window.reference)}
            if any(face is not None for face in clip.reference_faces or ()):
                boxes = clip.boxes[window.places]
                pairs["face"] = tuple(cut_squares(video, boxes, FACE_SIZE) for video in pairs["whole"])  # type: ignore[assignment]
            for what, videos in pairs.items():
                for side, frames in zip(("generated", "reference"), videos, strict=True):
                    folder = self._scratch / what / side
                    folder.mkdir(parents=True, exist_ok=True)
                    for place, frame in enumerate(frames):
                        Image.fromarray(frame.numpy()).save(
                            folder / f"{self._frames + place:08d}.png", compress_level=1
                        )
            self._frames += len(window.frames)
        if self._fvd is not None:
            self._pieces[0].append(window.frames.numpy())
            self._pieces[1].append(window.reference.numpy())

    def end_clip(self) -> None:
        """The clip's frames are all there."""
        ours, theirs = (np.concatenate(parts) if parts else None for parts in self._pieces)
        self._pieces = ([], [])
        if self._fvd is not None and ours is not None and theirs is not None:
            self._fvd.add(ours, theirs)
            self._clips += 1

    def compute(self, missing: dict[str, str]) -> dict[str, float]:
        """The figures; what cannot be computed goes into `missing`."""
        values: dict[str, float] = {}
        if self._scratch is not None:
            for name, what in (("fid", "whole"), ("fid_face", "face")):
                folder = self._scratch / what
                if folder.exists():
                    weights, device = self._networks.inception_path or "", self._networks.device
                    values[name] = fid(folder / "generated", folder / "reference", weights=weights, device=device)
            if not self._frames:
                missing["fid"] = "no clip has a reference"
        if self._fvd is not None:
            if self._clips:
                values["fvd"] = self._fvd.compute()
            else:
                missing["fvd"] = "no clip has a reference"
        return values


def measured_rows(evaluation: Evaluation) -> Iterator[dict[str, float | str]]:
    """A row for each clip: its files and figures."""
    for clip in evaluation.clips:
        yield {"clip": clip.files.name, **clip.values}
