"""Distributions of what nothing decides: how far those of generated clips are from those of true ones.

No single clip can be right or wrong in these: a blink may come now or later. Many clips together are, in how often
they blink, how long their eyes rest, how far they look. Each figure is a row of numbers of all clips; two such rows are
compared by the Wasserstein distance, in the figure's own unit, and the clips' latents by a Frechet distance. What the
distance of true clips from other true ones is, the floor, is drawn too: a distance counts in multiples of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..media.timeline import FRAME_RATE
from .measure_face import FaceTracks

CLOSED = 0.6
"""Lids that are farther down than this are closed."""

JUMP = 3.0
"""Pixels of the iris from a frame to the next that are a jump, in one or two frames."""

PIECE = 3
"""Latent frames that are looked at together."""

BRIEFEST = 1e-6


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """Wasserstein distance of two samples [n] and [m]: the area between their distribution functions."""
    places = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(sample), places[:-1], side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(shares[0] - shares[1]) @ np.diff(places))


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Frechet distance of the normal distributions of two samples [n, width] and [m, width]:
    |mean - mean'|^2 + trace(C + C' - 2 (C C')^(1/2)), the square of the Wasserstein-2 distance.
    """
    gap = one.mean(axis=0) - other.mean(axis=0)
    spreads = [np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (one, other)]
    # The eigenvalues of a product of two covariances are real and not negative.
    common = np.sqrt(np.linalg.eigvals(spreads[0] @ spreads[1]).real.clip(0)).sum()
    return float(gap @ gap + np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * common)


def latent_features(latents: np.ndarray) -> np.ndarray:
    """What pieces of clips are like, in the small VAE's latents: of each channel the mean, the deviation over the
    picture, and how much it changes from latent frame to latent frame.

    Args:
        latents: [clip, 16, T, h, w], T at least `PIECE`.

    Returns:
        [clip * pieces, 48]; latent frames behind the last whole piece do not count.
    """
    pieces = latents.shape[2] // PIECE
    parts = np.concatenate(np.split(latents[:, :, : pieces * PIECE], pieces, axis=2))
    change = np.sqrt((np.diff(parts, axis=2) ** 2).mean(axis=(2, 3, 4)))
    return np.concatenate([parts.mean(axis=(2, 3, 4)), parts.std(axis=(3, 4)).mean(axis=2), change], axis=1)


def blinks(lids: np.ndarray) -> list[int]:
    """Lengths in frames of the blinks of a track [F]."""
    closed = np.concatenate([[False], lids > CLOSED, [False]])
    edges = np.flatnonzero(np.diff(closed.astype(int)))
    return [int(length) for length in edges[1::2] - edges[::2]]


def dwells(gaze: np.ndarray) -> list[int]:
    """Frames that the eyes rest between jumps, of a track [F]; closed eyes (NaN) look where they looked before."""
    seen = np.isfinite(gaze)
    if not seen.any():
        return []
    held = gaze[seen][np.maximum(np.cumsum(seen) - 1, 0)]
    rests, begin = [], 0
    for frame in range(1, len(held)):
        if abs(held[frame] - np.median(held[begin:frame])) > JUMP:
            rests.append(frame - begin)
            begin = frame
    return [*rests, len(held) - begin]


def bimodality(gaze: np.ndarray) -> float:
    """Sarle's coefficient of a track [F], (skewness^2 + 1) / kurtosis: 1 of two values, 5/9 of an even spread, 1/3 of a
    normal one; NaN of a single value.
    """
    values = gaze[np.isfinite(gaze)]
    if len(values) < 2 or values.std() < BRIEFEST:
        return float("nan")
    scaled = (values - values.mean()) / values.std()
    return float(((scaled**3).mean() ** 2 + 1) / (scaled**4).mean())


def _speed(face: FaceTracks) -> np.ndarray:
    return np.hypot(np.diff(face.x), np.diff(face.y)) * FRAME_RATE


def _between(gaze: np.ndarray) -> float:
    """Share of a track [F] that lies between what the eyes look at: neither in front nor at a side."""
    way = np.abs(gaze[np.isfinite(gaze)])
    return float(np.mean((way > 1) & (way < 3))) if len(way) else float("nan")


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two tracks [F] where both are seen; NaN if one does not move."""
    seen = np.isfinite(one) & np.isfinite(other)
    if seen.sum() < 2 or min(one[seen].std(), other[seen].std()) < BRIEFEST:
        return float("nan")
    return float(np.corrcoef(one[seen], other[seen])[0, 1])


def _own(track: np.ndarray) -> np.ndarray:
    """A track [F] around the middle that it has in its clip, which depends on the person."""
    return track - np.nanmedian(track) if np.isfinite(track).any() else track


FIGURES: Mapping[str, Callable[[FaceTracks], object]] = {
    "blinks per minute": lambda face: len(blinks(face.lids)) * 60 * FRAME_RATE / len(face.lids),
    "length of blinks (frames)": lambda face: blinks(face.lids),
    "gaze (pixels)": lambda face: face.gaze,
    "share of gaze between targets": lambda face: _between(face.gaze),
    "bimodality of gaze": lambda face: bimodality(face.gaze),
    "dwell of gaze (frames)": lambda face: dwells(face.gaze),
    "jumps of gaze (pixels a frame)": lambda face: np.abs(np.diff(face.gaze)),
    "r of both eyes' gaze": lambda face: _alike(face.left_gaze, face.right_gaze),
    "r of both eyes' lids": lambda face: _alike(face.left_lid, face.right_lid),
    "sharpness of the eyes": lambda face: face.sharpness,
    "head's speed (pixels a second)": _speed,
    "turn of the head (pixels)": lambda face: _own(face.turn),
    "nod (pixels)": lambda face: _own(face.y),
    "tilt (degrees)": lambda face: np.degrees(_own(face.roll)),
    "brows (pixels)": lambda face: np.concatenate([_own(face.left_brow), _own(face.right_brow)]),
    "one brow above the other (pixels)": lambda face: _own(face.left_brow - face.right_brow),
}
"""What is compared, with its unit: of a clip's tracks one number, or one a frame or event; NaN counts for nothing."""


LEAST_FLOOR = {"share of gaze between targets": 0.01, "r of both eyes' gaze": 0.01, "r of both eyes' lids": 0.02}
"""Distances that nobody sees, where those of true clips can be smaller still."""


def samples(faces: Sequence[FaceTracks]) -> dict[str, np.ndarray]:
    """The figures of many clips, each a float array [n]; where nothing was found, as with no blink at all, one 0."""
    found = {}
    for name, figure in FIGURES.items():
        values = np.concatenate([np.atleast_1d(np.asarray(figure(face), float)) for face in faces])
        found[name] = seen if len(seen := values[np.isfinite(values)]) else np.zeros(1)
    return found


def distances(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The Wasserstein distance of each figure of `samples`."""
    return {name: wasserstein(one[name], other[name]) for name in one}
