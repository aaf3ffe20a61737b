"""Mouths by landmarks: how far they open, and how near they come to a reference's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..media.faces.face import Face
from ..media.timeline import SAMPLES_PER_FRAME

# Landmarks of the face mesh, around the outer and the inner edge of the lips, and around the two eyes.
_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
_EYES = ((33, 133, 159, 145), (263, 362, 386, 374))
LIPS = _OUTER + _INNER
QUIETEST = 1e-3
"""Sound below it, of 1, counts as silence: -60 dB."""


def mouth_curves(faces: Sequence[Face | None]) -> dict[str, np.ndarray]:
    """Openness and width of the mouth in each frame, in distances between the eyes; NaN without a face.

    Returns:
        "openness" and "width", float [F].
    """
    return {
        name: np.array([np.nan if face is None else getattr(face, name) for face in faces], np.float64)
        for name in ("openness", "width")
    }


def sound_envelope(waveform: np.ndarray, frames: int) -> np.ndarray:
    """Loudness beside each frame: log10 of the root mean square of its 640 samples, from -3 (silence) to 0.

    Args:
        waveform: [n] mono at 16 kHz in [-1, 1].
        frames: how many are wanted; the sound is cut or padded with silence.

    Returns:
        float [frames].
    """
    wanted = frames * SAMPLES_PER_FRAME
    sound = np.pad(np.asarray(waveform, np.float64)[:wanted], (0, max(0, wanted - len(waveform))))
    power = (sound.reshape(frames, SAMPLES_PER_FRAME) ** 2).mean(axis=1)
    return np.log10(np.sqrt(power).clip(QUIETEST, 1.0))


def landmark_distance(faces: Sequence[Face | None], reference: Sequence[Face | None]) -> np.ndarray:
    """LMD: mean distance of the 40 landmarks of the lips from the reference's, in percent of the eyes' distance.

    Of each face, the lips' mean is subtracted and the rest divided by its own distance between the eyes, so that place
    and size in the picture do not count; after Chen et al., "Lip movements generation at a glance" (2018), who use
    pixels of aligned faces.

    Returns:
        float [F]; NaN where one of the two has no face.

    Raises:
        ValueError: a face without its landmarks.
    """
    return np.array(
        [
            np.nan
            if ours is None or theirs is None
            else 100 * np.linalg.norm(_lips(ours) - _lips(theirs), axis=1).mean()
            for ours, theirs in zip(faces, reference, strict=True)
        ]
    )


def eye_distance(face: Face) -> float:
    """Pixels between the centres of the eyes."""
    points = landmarks(face)
    left, right = (points[list(eye)].mean(axis=0) for eye in _EYES)
    return float(np.linalg.norm(left - right))


def landmarks(face: Face) -> np.ndarray:
    """The landmarks' places in the picture, float64 [468, 2].

    Raises:
        ValueError: they were not kept.
    """
    if face.points is None:
        raise ValueError("this face has no landmarks: find it with keep_points")
    return face.points[:, :2].double().numpy()


def _lips(face: Face) -> np.ndarray:
    lips = landmarks(face)[list(LIPS)]
    return (lips - lips.mean(axis=0)) / eye_distance(face)
