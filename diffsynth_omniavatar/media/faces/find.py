"""Faces in a picture, and the same faces in the next picture of a video.

The settings are MediaPipe's, whose two networks these are (https://github.com/google-ai-edge/mediapipe): the detector
sees the whole picture at 192x192, and the mesh each face, upright in a square 1.5 times as wide as it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .face import SURE_FLAG, Face
from .measures import LEFT_EYE, RIGHT_EYE, face_of
from .networks import INPUT, Detector, Mesh

Box = tuple[float, float, float, float]

LOWEST_SCORE = 0.5
"""The detector's score from which on a place may be a face."""

_SAME = 0.3
"""Overlap, intersection by union, from which on two boxes show the same face."""

_AROUND = 1.5
"""Side of the square that the mesh sees, in sides of the face."""


@dataclass(frozen=True)
class _Region:
    """A square of the picture, rotated."""

    x: float
    y: float
    side: float
    angle: float
    """Radians, clockwise in the picture."""

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Points [n, 3] in units of the square to pixels of the picture, z in the same scale."""
        x, y = (points[:, 0] - 0.5) * self.side, (points[:, 1] - 0.5) * self.side
        sine, cosine = math.sin(self.angle), math.cos(self.angle)
        return np.stack(
            [self.x + cosine * x - sine * y, self.y + sine * x + cosine * y, points[:, 2] * self.side], axis=1
        )


class _Detection(NamedTuple):
    box: Box
    score: float
    region: _Region


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
        _check(picture)
        candidates = _Candidates(self._detector, picture)
        detections = candidates.detections()
        found = [
            face for face in (self._moved(picture, face, candidates, detections) for face in faces) if face is not None
        ]
        found = _different(found)
        for detection in detections:
            if all(_overlap(detection.box, face.box) < _SAME for face in found):
                found.append(self._fresh(picture, detection))
        return sorted(_different(found), key=lambda face: face.size, reverse=True)

    def _fresh(self, picture: Tensor, detection: _Detection) -> Face:
        """A new face: the second pass sees it as it will be seen in the next picture."""
        points, _ = self._see(picture, detection.region)
        points, flag = self._see(picture, _around(points))
        return face_of(points, detection.box, detection.score, flag)

    def _moved(
        self, picture: Tensor, face: Face, candidates: _Candidates, detections: Sequence[_Detection]
    ) -> Face | None:
        """A face of the picture before in this one; None if the mesh or the detector place it elsewhere."""
        if face.points is None:
            return None
        before = face.points.numpy()
        points, flag = self._see(picture, _around(before))
        if flag < SURE_FLAG:
            return None
        box = _moved_box(face.box, before, points)
        nearest = max(detections, key=lambda detection: _overlap(detection.box, box), default=None)
        if nearest is None or _overlap(nearest.box, box) == 0:
            return face_of(points, box, candidates.score_at(box), flag)
        if _overlap(nearest.box, box) < _SAME:
            return None
        return face_of(points, nearest.box, nearest.score, flag)

    def _see(self, picture: Tensor, region: _Region) -> tuple[np.ndarray, float]:
        points, flag = self._mesh(_cut_out(picture, region))
        return region.to_picture(points), flag


class _Candidates:
    """What the detector says of a picture."""

    def __init__(self, detector: Detector, picture: Tensor) -> None:
        height, width = picture.shape[:2]
        side = max(height, width)
        shown, offset = _letterboxed(picture)
        boxes, eyes, self._scores = detector(shown)
        self._boxes = boxes * side - np.tile(offset, 2)
        self._eyes = eyes * side - offset

    def detections(self) -> list[_Detection]:
        """One for each face: of boxes that overlap, the mean weighted by their scores."""
        found = []
        left = np.flatnonzero(self._scores >= LOWEST_SCORE)
        left = left[np.argsort(-self._scores[left], kind="stable")]
        while left.size:
            same = _overlaps(self._boxes[left], self._boxes[left[0]]) > _SAME
            same[0] = True
            members = left[same]
            weights = self._scores[members] / self._scores[members].sum()
            box = weights @ self._boxes[members]
            eyes = np.tensordot(weights, self._eyes[members], axes=1)
            found.append(_Detection(_as_box(box), float(self._scores[left[0]]), _region(box, eyes)))
            left = left[~same]
        return found

    def score_at(self, box: Box) -> float:
        """The highest score of a candidate whose box is about this one."""
        same = _overlaps(self._boxes, np.asarray(box, dtype=np.float32)) > _SAME
        return float(self._scores[same].max(initial=0.0))


def _check(picture: Tensor) -> None:
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"picture is {picture.dtype} {list(picture.shape)}; faces are looked for in torch.uint8 [H, W, 3], RGB"
        )


def _letterboxed(picture: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The picture in the middle of the detector's input, float32 [192, 192, 3] in [-1, 1] with black around it.

    Returns also x and y of the picture in the square around it, in pixels of the picture.
    """
    height, width = picture.shape[:2]
    side = max(height, width)
    shown_height, shown_width = max(1, round(height * INPUT / side)), max(1, round(width * INPUT / side))
    top, left = (INPUT - shown_height) // 2, (INPUT - shown_width) // 2
    canvas = np.full((INPUT, INPUT, 3), -1.0, dtype=np.float32)
    shown = _scaled(picture, shown_height, shown_width)[0].permute(1, 2, 0).numpy()
    canvas[top : top + shown_height, left : left + shown_width] = shown * np.float32(2 / 255) - 1
    return canvas, np.array([left, top], dtype=np.float32) * side / INPUT


def _scaled(picture: Tensor, height: int, width: int) -> Tensor:
    """uint8 [1, 3, height, width], without aliasing."""
    channels = picture.permute(2, 0, 1)[None]
    if channels.shape[2:] == (height, width):
        return channels
    return functional.interpolate(channels, (height, width), mode="bilinear", antialias=True)


def _cut_out(picture: Tensor, region: _Region) -> np.ndarray:
    """A region of the picture as the mesh takes it: float32 [192, 192, 3] in [0, 1]; the edges go on outside."""
    height, width = picture.shape[:2]
    reach = region.side / 2 * (abs(math.cos(region.angle)) + abs(math.sin(region.angle))) + 2
    left, right = _span(region.x, reach, width)
    top, bottom = _span(region.y, reach, height)
    part = picture[top:bottom, left:right]
    # Shrunk without aliasing first, to about the scale of the result.
    shrink = min(1.0, INPUT / region.side)
    part = _scaled(part, math.ceil((bottom - top) * shrink), math.ceil((right - left) * shrink)).float()

    half_width, half_height = (right - left) / 2, (bottom - top) / 2
    sine, cosine = math.sin(region.angle) * region.side / 2, math.cos(region.angle) * region.side / 2
    transform = torch.tensor(
        [
            [cosine / half_width, -sine / half_width, (region.x - left) / half_width - 1],
            [sine / half_height, cosine / half_height, (region.y - top) / half_height - 1],
        ],
        dtype=torch.float32,
    )
    grid = functional.affine_grid(transform[None], [1, 3, INPUT, INPUT], align_corners=False)
    cut = functional.grid_sample(part, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (cut[0].permute(1, 2, 0) / 255).contiguous().numpy()


def _span(middle: float, reach: float, length: int) -> tuple[int, int]:
    """The pixels within `reach` of `middle`; the nearest one where there are none."""
    first = min(max(math.floor(middle - reach), 0), length - 1)
    return first, max(min(math.ceil(middle + reach), length), first + 1)


def _region(box: np.ndarray, eyes: np.ndarray) -> _Region:
    """The square around a box in which the eyes are level."""
    (left, top, right, bottom), (x, y) = box, eyes[1] - eyes[0]
    side = max(right - left, bottom - top) * _AROUND
    return _Region(float(left + right) / 2, float(top + bottom) / 2, max(float(side), 1.0), math.atan2(y, x))


def _around(points: np.ndarray) -> _Region:
    """The square around the landmarks of a face [468, 3]."""
    eyes = np.stack([points[LEFT_EYE[0], :2], points[RIGHT_EYE[0], :2]])
    return _region(_bounds(points), eyes)


def _bounds(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points[:, :2].min(axis=0), points[:, :2].max(axis=0)])


def _as_box(values: np.ndarray) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    return left, top, right, bottom


def _moved_box(box: Box, before: np.ndarray, after: np.ndarray) -> Box:
    """A box moved and scaled as landmarks were."""
    old, new = _bounds(before), _bounds(after)
    old_size, new_size = old[2:] - old[:2], new[2:] - new[:2]
    scale = np.sqrt((new_size / np.maximum(old_size, 1e-3)).prod())
    corners = (np.asarray(box).reshape(2, 2) - (old[2:] + old[:2]) / 2) * scale + (new[2:] + new[:2]) / 2
    return _as_box(corners.ravel())


def _different(faces: Sequence[Face]) -> list[Face]:
    """Without those that lie on a face of higher flag and score."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: (face.score, face.flag), reverse=True):
        if all(_overlap(face.box, other.box) < 0.5 for other in kept):
            kept.append(face)
    return kept


def _overlap(one: Box, other: Box) -> float:
    return float(_overlaps(np.asarray(one)[None], np.asarray(other))[0])


def _overlaps(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection by union of boxes [n, 4] with a box."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    union = areas + np.clip(box[2:] - box[:2], 0, None).prod() - shared
    return shared / np.maximum(union, 1e-9)
