"""Faces in a picture, and the same faces in the next picture of a video.

The settings are MediaPipe's, whose two networks these are (https://github.com/google-ai-edge/mediapipe): the detector
sees a square of the picture, and the mesh each face, upright in a square 1.5 times as wide as it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .face import SURE_FLAG, SURE_SCORE, Face
from .measures import LEFT_EYE, RIGHT_EYE, face_of
from .networks import Detector, Mesh
from .views import Square, detector_view, mesh_view

Box = tuple[float, float, float, float]

LOWEST_SCORE = 0.5
"""The detector's score from which on a place may be a face."""

_SAME = 0.3
"""Overlap, intersection by union, from which on two boxes show the same face."""

_FITS = 0.5
"""Overlap from which on the detector agrees with the mesh about where a face is."""

_AROUND = 1.5
"""Side of the square that the mesh sees, in sides of the face."""

_CLOSER = 3.0
"""Side of the square that the detector sees of a face that it was not sure of, in sides of the face."""

_SMALL = 0.12
"""A box below this part of the square is too large, by up to a half: the detector looks closer."""

_AROUND_STANDING = (2.5, 3.5, 5.0)
"""Sides of the squares that tell how a face stands, in sides of the face; the score in one alone is not steady."""

_TILE = 0.6
"""Side of the squares in which small faces are looked for, in longer sides of the picture."""


class _Detection(NamedTuple):
    box: Box
    score: float
    eyes: np.ndarray
    """float32 [2, 2]: x and y of the left and the right one."""


class FaceFinder:
    """Finds faces in pictures; one for each thread that looks for some.

    Args:
        threads: CPU threads that the networks use.
    """

    def __init__(self, threads: int = 1) -> None:
        self._detector = Detector(threads)
        self._mesh = Mesh(threads)

    def faces(self, picture: Tensor) -> list[Face]:
        """The faces of a picture, the largest first; also unsure ones: see `Face.is_sure`.

        Faces that fill the picture, and those below a twelfth of it, are looked for where there are no others.

        Args:
            picture: uint8 [H, W, 3], RGB, upright, of any size.

        Raises:
            ValueError: the picture has another shape or type.
        """
        return self.follow(picture, ())

    def follow(self, picture: Tensor, faces: Sequence[Face]) -> list[Face]:
        """The faces of the next picture of a video, steadier and faster than `faces`.

        Args:
            picture: as for `faces`.
            faces: those of the picture before; what has no points is looked for anew.

        Returns:
            The faces that are still there and those that are new, the largest first, in no relation to the order of
            `faces`. One that the detector does not see any more stays as long as the mesh is sure of it, with the score
            that the detector gives to its place.

        Raises:
            ValueError: the picture has another shape or type.
        """
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(
                f"picture is {picture.dtype} {list(picture.shape)}; faces are looked for in torch.uint8 [H, W, 3], RGB"
            )
        whole = self._look(picture, _whole(picture))
        moved = (self._moved(picture, face, whole) for face in faces)
        found = _different([face for face in moved if face is not None])
        self._add_new(picture, whole, found)
        for squares in _others(picture):
            if any(face.is_sure for face in found):
                break
            for square in squares:
                self._add_new(picture, self._look(picture, square), found)
        return sorted(found, key=lambda face: face.size, reverse=True)

    def standing(self, picture: Tensor, face: Face) -> list[float]:
        """How well a face is seen as the picture is, and turned to the left by 90, 180 and 270 degrees: mean scores.

        Of real and drawn people the upright turn has at least 0.09 more than any other.
        """
        left, top, right, bottom = face.box
        x, y = (left + right) / 2, (top + bottom) / 2
        half = face.size / 2
        means = []
        for _ in range(4):
            box = (x - half, y - half, x + half, y + half)
            looks = [self._look(picture, _around_box(box, times), lowest=0.02) for times in _AROUND_STANDING]
            nearest = [_nearest(look, box) for look in looks]
            means.append(sum(found.score for found in nearest if found is not None) / len(looks))
            picture, x, y = torch.rot90(picture), y, picture.shape[1] - x
        return means

    def _add_new(self, picture: Tensor, detections: Sequence[_Detection], found: list[Face]) -> None:
        """Add the faces that are detected and not yet among those found."""
        for detection in detections:
            if not _is_among(detection.box, found):
                face = self._fresh(picture, detection)
                if not _is_among(face.box, found):
                    found.append(face)

    def _closer(self, picture: Tensor, found: _Detection) -> _Detection:
        """The same face as the detector sees it around its place, if it does."""
        return _nearest(self._look(picture, _around_box(found.box, _CLOSER)), found.box) or found

    def _look(self, picture: Tensor, square: Square, lowest: float = LOWEST_SCORE) -> list[_Detection]:
        """The faces that the detector finds in a square: of boxes that overlap, the mean weighted by their scores."""
        boxes, eyes, scores = self._detector(detector_view(picture, square))
        left = np.flatnonzero(scores >= lowest)
        left = left[np.argsort(-scores[left], kind="stable")]
        found = []
        while left.size:
            same = _overlaps(boxes[left], boxes[left[0]]) > _SAME
            same[0] = True  # a box without an area does not overlap itself
            weights = scores[left[same]] / scores[left[same]].sum()
            corners = (weights @ boxes[left[same]]).reshape(2, 2)
            places = square.to_picture(np.concatenate([corners, np.tensordot(weights, eyes[left[same]], axes=1)]))
            found.append(_Detection(_as_box(places[:2]), float(scores[left[0]]), places[2:]))
            left = left[~same]
        return found

    def _fresh(self, picture: Tensor, detection: _Detection) -> Face:
        """A new face: the second pass sees it as it will be seen in the next picture."""
        if detection.score < SURE_SCORE or _size(detection.box) < _SMALL * max(picture.shape):
            detection = self._closer(picture, detection)
        points, _ = self._see(picture, _around_box(detection.box, _AROUND, detection.eyes))
        points, flag = self._see(picture, _around_points(points))
        box = detection.box if flag < SURE_FLAG else _box_of(points)
        return face_of(points, box, detection.score, flag)

    def _moved(self, picture: Tensor, face: Face, whole: Sequence[_Detection]) -> Face | None:
        """A face of the picture before in this one; None if the mesh or the detector place it elsewhere."""
        if face.points is None:
            return None
        points, flag = self._see(picture, _around_points(face.points.numpy()))
        if flag < SURE_FLAG:
            return None
        box = _box_of(points)
        same = _nearest(whole, box)
        if same is None or same.score < SURE_SCORE or _overlap(same.box, box) < _FITS:
            same = _nearest(self._look(picture, _around_box(box, _CLOSER), lowest=0.1), box)
        if same is None:
            return face_of(points, box, 0.0, flag)
        return face_of(points, box, same.score, flag) if _overlap(same.box, box) >= _FITS else None

    def _see(self, picture: Tensor, square: Square) -> tuple[np.ndarray, float]:
        points, flag = self._mesh(mesh_view(picture, square))
        return square.to_picture(points), flag


def _whole(picture: Tensor) -> Square:
    height, width = picture.shape[:2]
    return Square(width / 2, height / 2, max(height, width))


def _others(picture: Tensor) -> list[list[Square]]:
    """Where the detector looks if it finds no face in the whole: from farther away, then at squares that cover it."""
    height, width = picture.shape[:2]
    whole = _whole(picture)
    side = _TILE * whole.side
    tiles = [Square(x, y, side) for y in _middles(height, side) for x in _middles(width, side)]
    return [[Square(whole.x, whole.y, 2 * whole.side)], tiles]


def _middles(length: int, side: float) -> list[float]:
    return [side / 2, length - side / 2] if length > side else [length / 2]


def _around_box(box: Box, times: float, eyes: np.ndarray | None = None) -> Square:
    """The square around a box, `times` as wide; rotated so that the eyes [2, 2] are level."""
    left, top, right, bottom = box
    angle = 0.0 if eyes is None else math.atan2(eyes[1, 1] - eyes[0, 1], eyes[1, 0] - eyes[0, 0])
    return Square((left + right) / 2, (top + bottom) / 2, max(_size(box) * times, 1.0), angle)


def _around_points(points: np.ndarray) -> Square:
    """The square around the landmarks of a face [468, 3]."""
    return _around_box(_box_of(points), _AROUND, points[[LEFT_EYE[0], RIGHT_EYE[0]], :2])


def _box_of(points: np.ndarray) -> Box:
    """The square box of landmarks, about as the detector sets it."""
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    half = (high - low).max() / 2
    return _as_box(np.stack([(low + high) / 2 - half, (low + high) / 2 + half]))


def _as_box(corners: np.ndarray) -> Box:
    left, top, right, bottom = (float(value) for value in corners.ravel())
    return left, top, right, bottom


def _size(box: Box) -> float:
    left, top, right, bottom = box
    return max(right - left, bottom - top)


def _different(faces: Sequence[Face]) -> list[Face]:
    """Without those that lie on a face of higher score."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (face.score, face.flag), reverse=True):
        if all(_overlap(face.box, other.box) < 0.5 for other in kept):
            kept.append(face)
    return kept


def _is_among(box: Box, faces: Sequence[Face]) -> bool:
    return any(_overlap(box, face.box) >= _SAME for face in faces)


def _nearest(detections: Sequence[_Detection], box: Box) -> _Detection | None:
    """The one that overlaps a box most, if any does."""
    over = [detection for detection in detections if _overlap(detection.box, box) > 0]
    return max(over, key=lambda detection: _overlap(detection.box, box), default=None)


def _overlap(one: Box, other: Box) -> float:
    return float(_overlaps(np.asarray(one)[None], np.asarray(other))[0])


def _overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection by union of boxes [n, 4] with a box."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    union = areas + np.clip(box[2:] - box[:2], 0, None).prod() - shared
    return shared / np.maximum(union, 1e-9)
