"""One face in one picture, and one person's faces through a video.

Places are in pixels of the upright picture: x to the right, y down, (0, 0) the outer corner of the first pixel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

POINTS = 468
"""Landmarks of MediaPipe's face mesh (https://github.com/google-ai-edge/mediapipe)."""

SURE_SCORE = 0.6
"""Detector's score from which on a face counts, together with `SURE_FLAG`."""

SURE_FLAG = 0.5
"""The mesh's own certainty from which on a face counts."""


Anchors = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Three places, x and y each."""


def as_anchors(places: Iterable[Iterable[float]]) -> Anchors:
    """Three pairs of numbers as places."""
    left_brow, right_brow, nose = ((float(x), float(y)) for x, y in places)
    return left_brow, right_brow, nose


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """One face in one picture. Left and right are those of the picture."""

    box: tuple[float, float, float, float]
    """The square around its landmarks, from forehead to chin: left, top, right, bottom, in pixels."""

    score: float
    """How sure the detector is that there is a face, 0 to 1."""

    flag: float
    """How sure the mesh is that it lies on a face, 0 to 1."""

    anchors: Anchors
    """Centres of the left and the right eyebrow, and of the nose; what alignment rests on. No tensor: the faces of an
    hour, each with a small block of memory of its own between the large ones of the networks, would keep those too."""

    openness: float
    """Height of the gap between the lips, in distances between the eyes."""

    width: float
    """Width of the mouth between its corners, in distances between the eyes."""

    yaw: float
    """Degrees by which the face turns to the right of the picture, seen with the eyes level."""

    pitch: float
    """Degrees by which the face looks down, seen with the eyes level; a face that looks ahead has about 0."""

    roll: float
    """Degrees by which the head is rotated clockwise in the picture."""

    nose_offset: float
    """Distance of the nose from the middle of the eyes along the line through them, in distances between the eyes;
    0 from the front, to the right of the picture above 0."""

    points: Tensor | None = None
    """Float32 [468, 3]: the mesh's landmarks, x and y in pixels, z in the same scale with smaller nearer; None where
    they were not kept, as in detections from a file."""

    @property
    def is_sure(self) -> bool:
        """Whether both networks are sure of it."""
        return self.score >= SURE_SCORE and self.flag >= SURE_FLAG

    @property
    def size(self) -> float:
        """The longer side of the box in pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)

    def without_points(self) -> Face:
        """The same face in less memory."""
        return replace(self, points=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """One person's faces through a video, within one scene.

    A face that is lost for a few frames and comes back goes on in the same track; a cut ends all tracks.
    """

    start: int
    """Frame of the video at which the track begins."""

    faces: tuple[Face | None, ...]
    """Its face in each frame from `start` on; None where it was lost for a short time. The first and the last are
    faces."""

    @property
    def frames(self) -> range:
        """Frames of the video that it covers."""
        return range(self.start, self.start + len(self.faces))

    def at(self, frame: int) -> Face | None:
        """Its face in a frame of the video; None where it has none."""
        return self.faces[frame - self.start] if frame in self.frames else None

    @property
    def size(self) -> float:
        """Mean size of its faces in pixels."""
        sizes = [face.size for face in self.faces if face is not None]
        return sum(sizes) / len(sizes)
