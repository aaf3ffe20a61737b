"""Clips that show the same: by how their speech swells and falls, and by small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...media.timeline import FRAME_RATE
from .look import Look
from .records import ClipRecord

CONTOUR = 75
"""Frames at the start of a clip whose loudness is compared."""

LAGS = range(-10, 11)
"""Frames by which one clip may begin later than the other."""

ALIKE = 0.9
"""Correlation of two contours from which on they are of the same sound; of different speech about 0.6 at most."""

DIFFERENT_BITS = 12
"""Of the 64 bits of a picture those in which copies may differ."""

_BLOCK = 1024


def fingerprint(look: Look, frames: range) -> dict[str, Any]:
    """What near-duplicates are found by: bits of a picture in the middle, and the loudness of the first frames in dB.

    A bit of the picture (dHash) tells whether a place is brighter than the one to its right.
    """
    middle = (frames.start + len(frames) // 2) // FRAME_RATE
    grey = look.thumbnails[middle].int().numpy()
    bits = np.packbits(grey[:, :-1] > grey[:, 1:])
    power = look.power[frames.start : frames.start + CONTOUR].numpy()
    loudness = 10 * np.log10(np.maximum(power, 1e-8))
    return {"picture": bits.tobytes().hex(), "loudness": [int(level) for level in loudness.round()]}


def reject_duplicates(clips: Sequence[ClipRecord]) -> list[ClipRecord]:
    """The clips; of kept ones that show the same, all but the first are rejected.

    Copies that were encoded again, scaled, mirrored or cut a little differently are found.
    """
    kept = [index for index, clip in enumerate(clips) if clip.is_kept and _is_known(clip.fingerprint)]
    result = list(clips)
    first = dict[int, int]()
    for one, other in _pairs([clips[index].fingerprint for index in kept]):
        first.setdefault(other, first.get(one, one))
    for other, one in first.items():
        copy, original = clips[kept[other]], clips[kept[one]]
        reason = f"it shows the same as {original.source} from {original.start / FRAME_RATE:.1f} s on"
        result[kept[other]] = replace(copy, reasons={"duplicate": reason})
    return result


def _is_known(print_: Mapping[str, Any]) -> bool:
    return bool(print_) and len(print_["loudness"]) > len(LAGS)


def _pairs(prints: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Places of two that show the same, the earlier first, in the order of the earlier ones."""
    if len(prints) < 2:
        return []
    raw = np.array([np.frombuffer(bytes.fromhex(print_["picture"]), np.uint8) for print_ in prints])
    pictures = np.unpackbits(raw, axis=1).reshape(-1, 8, 8).astype(np.float32) * 2 - 1
    bits = pictures.reshape(-1, 64)
    # A mirrored picture has the columns the other way round, and brighter is darker.
    mirrored = -pictures[:, :, ::-1].reshape(-1, 64)
    found = []
    for start in range(0, len(prints), _BLOCK):
        block = bits[start : start + _BLOCK]
        same = np.maximum(block @ bits.T, block @ mirrored.T)
        for row, other in np.argwhere(same >= 64 - 2 * DIFFERENT_BITS).tolist():
            one = start + row
            if one < other and _sound_alike(prints[one]["loudness"], prints[other]["loudness"]):
                found.append((one, other))
    return found


def _sound_alike(one: Sequence[int], other: Sequence[int]) -> bool:
    return any(_correlation(one[max(0, lag) :], other[max(0, -lag) :]) >= ALIKE for lag in LAGS)


def _correlation(one: Sequence[int], other: Sequence[int]) -> float:
    count = min(len(one), len(other))
    first, second = np.array(one[:count], float), np.array(other[:count], float)
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale else 0.0
