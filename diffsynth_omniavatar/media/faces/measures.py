"""What is measured on the landmarks of a face: anchors, mouth, and where the head points.

Numbers of landmarks are those of MediaPipe's face mesh; left and right are those of the picture.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .face import Face, as_anchors

LEFT_EYE, RIGHT_EYE = (33, 133), (263, 362)
"""Outer and inner corner."""

LEFT_BROW, RIGHT_BROW = (70, 63, 105, 66, 107), (336, 296, 334, 293, 300)
NOSE = (5, 1, 129, 358)
"""Points whose means are about where LatentSync's brows and nose are."""

_NOSE_TIP = 1
_LIPS = ((82, 87), (13, 14), (312, 317))
"""Upper and lower inner edge."""

_MOUTH_CORNERS = (61, 291)
_ACROSS = ((33, 263), (133, 362), (234, 454), (61, 291), (105, 334))
"""Left and right points that mirror each other."""

_DOWN = (10, 152)
"""Top of the forehead and chin."""

_SLOPE = 9.0
"""Degrees by which the line between these two leans in people who look ahead: the mean of some real and drawn ones."""


def face_of(points: np.ndarray, box: tuple[float, float, float, float], score: float, flag: float) -> Face:
    """The face that landmarks [468, 3] show, in pixels; see the fields of `Face`."""
    left_eye, right_eye = points[LEFT_EYE, :].mean(axis=0), points[RIGHT_EYE, :].mean(axis=0)
    between = max(float(np.linalg.norm(right_eye - left_eye)), 1e-3)
    yaw, pitch, roll = _angles(points)
    anchors = np.stack([points[list(part), :2].mean(axis=0) for part in (LEFT_BROW, RIGHT_BROW, NOSE)])
    return Face(
        box=box,
        score=score,
        flag=flag,
        anchors=as_anchors(anchors.tolist()),
        openness=float(np.mean([_distance(points, lips) for lips in _LIPS])) / between,
        width=_distance(points, _MOUTH_CORNERS) / between,
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        nose_offset=_nose_offset(points[_NOSE_TIP, :2], left_eye[:2], right_eye[:2]),
        points=torch.from_numpy(points.astype(np.float32)),
    )


def _distance(points: np.ndarray, pair: tuple[int, int]) -> float:
    return float(np.linalg.norm(points[pair[0]] - points[pair[1]]))


def _nose_offset(nose: np.ndarray, left_eye: np.ndarray, right_eye: np.ndarray) -> float:
    """In the picture, where the eyes of a profile are close to each other."""
    along = right_eye - left_eye
    return float((nose - (left_eye + right_eye) / 2) @ along / max(float(along @ along), 1e-6))


def _angles(points: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, from the directions of the head: across, from left to right, and ahead."""
    across = _unit(np.sum([_unit(points[right] - points[left]) for left, right in _ACROSS], axis=0))
    x, y, z = _unit(np.cross(points[_DOWN[1]] - points[_DOWN[0]], across))
    roll = math.atan2(across[1], across[0])
    x, y = math.cos(roll) * x + math.sin(roll) * y, math.cos(roll) * y - math.sin(roll) * x
    pitch = math.degrees(math.asin(np.clip(y, -1, 1))) + _SLOPE
    return math.degrees(math.atan2(x, -z)), pitch, math.degrees(roll)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
