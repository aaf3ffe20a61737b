"""Clips that show the same: by how their speech swells and falls, and by small pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...media.timeline import FRAME_RATE
from .look import Look
from .records import ClipRecord

ALIKE = ((50, 0.9), (38, 0.94))
"""Frames that two clips have in common -> correlation of their loudness from which on they are of the same sound.
Different speech of the same person reaches 0.89 and 0.93 at most; copies that begin between two frames 0.88 at least,
mostly 0.93, others 0.98."""

DIFFERENT_BITS = 12
"""Of the 64 bits of a picture those in which copies may differ."""

_BLOCK = 1024


def fingerprint(look: Look, frames: range) -> dict[str, Any]:
    """What near-duplicates are found by: bits of the first, middle and last picture, and the loudness in dB.

    A bit of a picture (dHash) tells whether a place is brighter than the one to its right.
    """
    seconds = (frames.start // FRAME_RATE, (frames.start + len(frames) // 2) // FRAME_RATE, frames[-1] // FRAME_RATE)
    grey = [look.thumbnails[second].int().numpy() for second in seconds]
    bits = [np.packbits(picture[:, :-1] > picture[:, 1:]).tobytes().hex() for picture in grey]
    power = look.power[frames.start : frames.stop].numpy()
    loudness = 10 * np.log10(np.maximum(power, 1e-8))
    return {"pictures": bits, "loudness": [int(level) for level in loudness.round()]}


def reject_duplicates(clips: Sequence[ClipRecord]) -> list[ClipRecord]:
    """The clips; of kept ones that show the same for 1.5 seconds or more, all but the first are rejected.

    Copies that were encoded again, scaled, mirrored or cut elsewhere are found.
    """
    kept = [index for index, clip in enumerate(clips) if clip.is_kept and clip.fingerprint]
    result = list(clips)
    rejected = set[int]()
    for one, other, lag in _pairs([clips[index].fingerprint for index in kept]):
        if one in rejected or other in rejected:
            continue
        rejected.add(other)
        copy, original = clips[kept[other]], clips[kept[one]]
        start = (original.start + max(0, lag)) / FRAME_RATE
        result[kept[other]] = replace(
            copy, reasons={"duplicate": f"it shows the same as {original.source} from {start:.1f} s on"}
        )
    return result


def _pairs(prints: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int, int]]:
    """Places of two that show the same, the earlier first, in the order of the earlier ones; and the frame of the one
    at which the other begins.
    """
    if len(prints) < 2:
        return
    raw = np.array([[np.frombuffer(bytes.fromhex(bits), np.uint8) for bits in print_["pictures"]] for print_ in prints])
    pictures = np.unpackbits(raw, axis=2).reshape(len(prints), -1, 8, 8).astype(np.float32) * 2 - 1
    bits = pictures.reshape(*pictures.shape[:2], 64)
    # A mirrored picture has the columns the other way round, and brighter is darker.
    mirrored = -pictures[..., ::-1].reshape(bits.shape)
    for start in range(0, len(prints), _BLOCK):
        same = _most_alike(bits[start : start + _BLOCK], bits, mirrored)
        for row, other in np.argwhere(same >= 64 - 2 * DIFFERENT_BITS).tolist():
            one = start + row
            lag = _shared_sound(prints[one]["loudness"], prints[other]["loudness"]) if one < other else None
            if lag is not None:
                yield one, other, lag


def _most_alike(block: np.ndarray, bits: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Equal less different bits, [n, N], of the most alike pictures of each of n clips [n, 3, 64] and each of all."""
    found = np.full((len(block), len(bits)), -64, np.float32)
    for one in range(block.shape[1]):
        for other in range(bits.shape[1]):
            for pictures in (bits, mirrored):
                np.maximum(found, block[:, one] @ pictures[:, other].T, out=found)
    return found


def _shared_sound(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Frames from the start of the one to that of the other, if they have a part in common; else None."""
    first, second = np.array(one, float), np.array(other, float)
    power = 10 ** (first / 10)
    between = 10 * np.log10((power[:-1] + power[1:]) / 2)  # as if it began half a frame later
    for contour in (first, between):
        lags, counts, correlations = _correlations(contour, second)
        for frames, alike in ALIKE:
            found = np.flatnonzero((counts >= frames) & (correlations >= alike))
            if len(found):
                return int(lags[found[correlations[found].argmax()]])
    return None


def _correlations(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all lags at which the two meet: frames from the start of a to that of b, frames in common, and the correlation
    of these.
    """
    a, b = a - a.mean(), b - b.mean()
    lags = np.arange(1 - len(b), len(a))
    starts, stops = np.maximum(lags, 0), np.minimum(lags + len(b), len(a))
    counts = stops - starts

    def sums(values: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
        total = np.concatenate([[0.0], values.cumsum()])
        return total[stops - shift] - total[starts - shift]

    of_a, of_b = sums(a, 0), sums(b, lags)
    together = np.correlate(a, b, "full") - of_a * of_b / counts
    spread = (sums(a * a, 0) - of_a**2 / counts) * (sums(b * b, lags) - of_b**2 / counts)
    known = spread > 1e-6 * counts**2
    return lags, counts, np.where(known, together / np.sqrt(np.where(known, spread, 1.0)), 0.0)
