"""Measures one clip: its groups of figures, and its part in those of all clips together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from .clip import Clip, ClipFiles
from .distribution import FVD_FRAMES, Features
from .groups import GROUPS, NO_FACE, NO_REFERENCE, NO_SOUND, Group, has_square, no_square
from .meanings import UNKNOWN
from .networks import Networks
from .together import SET_GROUPS, Together

TOO_SHORT = f"needs {FVD_FRAMES} frames"


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What was measured on a clip."""

    files: ClipFiles
    values: Mapping[str, float]
    """NaN where a figure cannot be told; `missing` says why."""
    curves: Mapping[str, np.ndarray]
    """By name, a number for each frame at 25 per second."""
    missing: dict[str, str]
    """Groups and figures that this clip does not have, and why."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that comes of a clip."""

    result: ClipResult | str
    """Or why it cannot be measured."""
    together: Mapping[str, Features] = field(default_factory=dict)
    """For `Together.take`."""


@dataclass(kw_only=True)
class Measuring:
    """Measures clips, one at a time; can be sent to another process before it has measured any.

    Args:
        groups: names out of `GROUPS` and `SET_GROUPS` that can all be had.
        networks: where weights lie, and the device.
        threads: of torch, for a process that shares the machine with others; None leaves their number.
    """

    groups: Sequence[str]
    networks: Networks
    threads: int | None = None

    def __call__(self, files: ClipFiles) -> Seen:
        """The figures of a clip, or why it cannot be measured."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            clip = Clip(files)
            result = self._measure(clip)
        except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            self._together.end_clip()
            return Seen(result=str(error) or type(error).__name__)
        seen = self._together.end_clip()
        if files.reference is not None:
            why = {"fid_face": no_square(clip), "fvd": TOO_SHORT, "fvd_videomae": TOO_SHORT}
            result.missing.update({name: why[name] for name, (ours, _) in seen.items() if not len(ours)})
        return Seen(result=result, together=seen)

    @cached_property
    def _together(self) -> Together:
        return Together([name for name in self.groups if name in SET_GROUPS], self.networks)

    def _measure(self, clip: Clip) -> ClipResult:
        missing: dict[str, str] = {}
        active: list[Group] = []
        for name in self.groups:
            lacks = _lacks(clip, GROUPS[name].needs if name in GROUPS else ("reference",))
            if lacks is not None:
                missing[name] = lacks
            elif name in GROUPS:
                active.append(GROUPS[name](clip, self.networks))
        for window in clip.windows():
            for group in active:
                group.watch(window)
            self._together.watch(clip, window)
        values: dict[str, float] = {}
        curves: dict[str, np.ndarray] = {}
        for group in active:
            try:
                measured = group.result()
            except ValueError as error:
                missing[group.name] = str(error)
                continue
            values |= measured.values
            curves |= measured.curves
            missing |= measured.missing
        missing |= {name: UNKNOWN.get(name, "it is no number") for name in values if not math.isfinite(values[name])}
        return ClipResult(files=clip.files, values=values, curves=curves, missing=missing)


def _lacks(clip: Clip, needs: Sequence[str]) -> str | None:
    if "reference" in needs and clip.files.reference is None:
        return NO_REFERENCE
    if "sound" in needs and clip.waveform is None:
        return NO_SOUND
    if "face" in needs and not any(face is not None for face in clip.faces):
        return NO_FACE
    if "square" in needs and not has_square(clip):
        return no_square(clip)
    return None


def by_reason(missing: Mapping[str, str]) -> dict[str, list[str]]:
    """Reasons, and what is missing for each."""
    found: dict[str, list[str]] = {}
    for name, why in missing.items():
        found.setdefault(why, []).append(name)
    return found
