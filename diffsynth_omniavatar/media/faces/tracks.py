"""Which faces of a video's pictures are the same person's."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np
from torch import Tensor

from .face import Face, Track
from .find import FaceFinder

LONGEST_GAP = 25
"""Frames for which a face may be lost, or be unsure, and still goes on in its track: the time of somebody who passes
before it."""

_FARTHEST, _PER_LOST_FRAME = 1.0, 0.05
"""Distance of a face from where its track expects it, in its size, from which on it is another one; and how much this
grows with each frame for which it is lost."""

_MOST_GROWTH = math.log(1.6)
_LEAST_ALIKE = 0.3
"""Mean difference of colours in 0 to 1 from which on two faces are not the same person's."""

_GRID, _PATCH = 6, 4
"""An appearance has 6x6 colours, each the mean of 4x4 pixels."""


class Tracker:
    """Follows faces through a video, picture by picture.

    A face belongs to the track whose motion it continues, whose size it has and which it looks like; so two people who
    cross each other keep their tracks. Unsure faces continue a track but neither begin nor end one.

    Args:
        finder: what finds the faces; None makes one.
        keep_points: whether the faces of the tracks keep their 468 landmarks, 6 KB each; without, a face takes 1 KB.
    """

    def __init__(self, finder: FaceFinder | None = None, *, keep_points: bool = False) -> None:
        self._finder = finder or FaceFinder()
        self._keep_points = keep_points
        self._frame = 0
        self._followed: list[_Followed] = []
        self._ended: list[Track] = []

    def add(self, picture: Tensor) -> list[Face]:
        """The next picture of the video, uint8 [H, W, 3]; gives its faces and raises as `FaceFinder.follow`."""
        seen = [followed.last for followed in self._followed if followed.is_seen]
        found = self._finder.follow(picture, seen)
        looks = [_appearance(picture, face) for face in found]
        pairs = self._pairs(found, looks)
        for place, followed in enumerate(self._followed):
            index = pairs.get(place)
            crowded = any(other is not followed and followed.is_near(other) for other in self._followed)
            if index is None:
                followed.lose()
            else:
                followed.add(found[index], None if crowded else looks[index], self._keep_points)
        for index, face in enumerate(found):
            if index not in pairs.values() and face.is_sure:
                self._followed.append(_Followed(self._frame, face, looks[index], self._keep_points))
        self._end([followed for followed in self._followed if followed.frames_unsure > LONGEST_GAP])
        self._frame += 1
        return found

    def cut(self) -> None:
        """The next picture begins another scene: all tracks end."""
        self._end(list(self._followed))

    def tracks(self) -> list[Track]:
        """The tracks up to here, by their beginning; of those that begin in the same frame the largest first."""
        tracks = [*self._ended, *(followed.track() for followed in self._followed)]
        return sorted(tracks, key=lambda track: (track.start, -track.size))

    def _end(self, ending: Collection[_Followed]) -> None:
        self._ended += [followed.track() for followed in ending]
        self._followed = [followed for followed in self._followed if followed not in ending]

    def _pairs(self, found: list[Face], looks: list[np.ndarray]) -> dict[int, int]:
        """Place of a track -> place of its face: the likeliest pair first."""
        costs = []
        for place, followed in enumerate(self._followed):
            for index, face in enumerate(found):
                cost = followed.difference(face, looks[index])
                if cost is not None:
                    costs.append((cost, place, index))
        pairs: dict[int, int] = {}
        for _, place, index in sorted(costs):
            if place not in pairs and index not in pairs.values():
                pairs[place] = index
        return pairs


def find_tracks(
    frames: Iterable[Tensor],
    *,
    cuts: Collection[int] = (),
    keep_points: bool = False,
    finder: FaceFinder | None = None,
) -> list[Track]:
    """The people of a video, by when they come; those that come together by size, the largest first.

    Args:
        frames: uint8 [H, W, 3] each, RGB, upright; one at a time is held.
        cuts: first frames of scenes; 0 may be among them.
        keep_points: see `Tracker`.
        finder: what finds the faces; None makes one.

    Raises:
        ValueError: a frame has another shape or type.
    """
    tracker = Tracker(finder, keep_points=keep_points)
    for index, frame in enumerate(frames):
        if index in cuts:
            tracker.cut()
        tracker.add(frame)
    return tracker.tracks()


class _Followed:
    """A track that may go on."""

    def __init__(self, start: int, face: Face, look: np.ndarray, keep_points: bool) -> None:
        self._start = start
        self._faces: list[Face | None] = []
        self._middle, self._velocity = _middle(face), np.zeros(2)
        self._look = look
        self._lost = 0
        self.frames_unsure = 0
        self.last = face
        self.add(face, look, keep_points)

    @property
    def is_seen(self) -> bool:
        """Whether it has a face in the last picture."""
        return self._lost == 0

    def add(self, face: Face, look: np.ndarray | None, keep_points: bool) -> None:
        """Its next face; `look` is None where others may hide it."""
        step = (_middle(face) - _middle(self.last)) / (self._lost + 1)
        self._velocity = self._velocity + 0.5 * (step - self._velocity)
        self._lost = 0
        self._middle = _middle(face)
        if look is not None:
            self._look = self._look + 0.5 * (look - self._look)
        self.last = face
        self._faces.append(face if keep_points else face.without_points())
        self.frames_unsure = 0 if face.is_sure else self.frames_unsure + 1

    def lose(self) -> None:
        """It has no face in this picture, but is taken to move on."""
        self._middle = self._middle + self._velocity
        self._faces.append(None)
        self._lost += 1
        self.frames_unsure += 1

    def difference(self, face: Face, look: np.ndarray) -> float | None:
        """How little a face looks like the next one of this track; None if it cannot be that."""
        distance = float(np.linalg.norm(_middle(face) - self._middle - self._velocity)) / self.last.size
        growth = abs(math.log(face.size / self.last.size))
        unlike = float(np.abs(look - self._look).mean())
        farthest = _FARTHEST + _PER_LOST_FRAME * self._lost
        if distance > farthest or growth > _MOST_GROWTH or unlike > _LEAST_ALIKE:
            return None
        return distance / farthest + growth / _MOST_GROWTH + 3 * unlike / _LEAST_ALIKE

    def is_near(self, other: _Followed) -> bool:
        """Whether one of both may hide the other."""
        return float(np.linalg.norm(self._middle - other._middle)) < self.last.size + other.last.size

    def track(self) -> Track:
        """Up to its last sure face."""
        count = len(self._faces) - self.frames_unsure
        return Track(start=self._start, faces=tuple(self._faces[:count]))


def _middle(face: Face) -> np.ndarray:
    left, top, right, bottom = face.box
    return np.array([left + right, top + bottom]) / 2


def _appearance(picture: Tensor, face: Face) -> np.ndarray:
    """Colours in 0 to 1 over the face from brows to mouth, float32 [6, 6, 3], wherever it lies and however rotated."""
    left, right, nose = np.array(face.anchors)
    across = right - left
    down = np.array([-across[1], across[0]])
    places = np.linspace(-0.5, 0.5, _GRID * _PATCH)
    x = np.round(nose[0] + places[None] * 1.6 * across[0] + places[:, None] * 1.6 * down[0]).astype(int)
    y = np.round(nose[1] + places[None] * 1.6 * across[1] + places[:, None] * 1.6 * down[1]).astype(int)
    pixels = picture.numpy()
    colours = pixels[np.clip(y, 0, pixels.shape[0] - 1), np.clip(x, 0, pixels.shape[1] - 1)]
    return colours.reshape(_GRID, _PATCH, _GRID, _PATCH, 3).mean(axis=(1, 3), dtype=np.float32) / 255
