"""How head and eyes move, by landmarks: blinks, and turns of the head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..media.faces.face import Face
from ..media.timeline import FRAME_RATE
from .lips import landmarks

# Of each eye: its corners, and two pairs of opposite points on its lids.
_EYES = (((33, 133), (160, 144), (158, 153)), ((362, 263), (385, 380), (387, 373)))
CLOSED = 0.6
"""An eye is closed below this part of its usual aspect ratio."""


def eye_aspect(faces: Sequence[Face | None]) -> np.ndarray:
    """Eye aspect ratio, the mean of both eyes: float [F], about 0.3 when open and 0.1 when closed; NaN without a face.

    (|p2 - p6| + |p3 - p5|) / (2 |p1 - p4|); Soukupova and Cech, "Real-time eye blink detection using facial landmarks"
    (2016).
    """
    return np.array([np.nan if face is None else _aspect(landmarks(face)) for face in faces])


def _aspect(points: np.ndarray) -> float:
    ratios = []
    for corners, *lids in _EYES:
        heights = [np.linalg.norm(points[upper] - points[lower]) for upper, lower in lids]
        ratios.append(np.mean(heights) / max(np.linalg.norm(points[corners[0]] - points[corners[1]]), 1e-6))
    return float(np.mean(ratios))


def blinks(aspect: np.ndarray) -> list[range]:
    """Frames of each blink: where the ratio [F] is below 0.6 of its 75th percentile, for at most 0.6 s."""
    seen = np.isfinite(aspect)
    if not seen.any():
        return []
    closed = np.flatnonzero(seen & (aspect < CLOSED * np.percentile(aspect[seen], 75)))
    groups = np.split(closed, np.flatnonzero(np.diff(closed) > 1) + 1) if len(closed) else []
    return [range(group[0], group[-1] + 1) for group in groups if len(group) <= 0.6 * FRAME_RATE]


def blink_rate(aspect: np.ndarray) -> float:
    """Blinks per minute of the frames in which the eyes are seen; NaN if in none."""
    seen = np.isfinite(aspect).sum()
    return float(len(blinks(aspect)) / seen * FRAME_RATE * 60) if seen else float("nan")


def head_angles(faces: Sequence[Face | None]) -> np.ndarray:
    """Yaw, pitch and roll in degrees: float [F, 3]; NaN without a face."""
    return np.array(
        [(np.nan,) * 3 if face is None else (face.yaw, face.pitch, face.roll) for face in faces], np.float64
    ).reshape(-1, 3)


def head_speed(faces: Sequence[Face | None]) -> np.ndarray:
    """Degrees per second by which the head turns from the frame before: float [F]; NaN at the start and at gaps."""
    angles = head_angles(faces)
    speed = np.full(len(angles), np.nan)
    speed[1:] = np.linalg.norm(np.diff(angles, axis=0), axis=1) * FRAME_RATE
    return speed
