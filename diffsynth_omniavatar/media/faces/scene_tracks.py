"""Cuts of a video and the people in its scenes, found in one run through its pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from torch import Tensor

from ..scenes import CutFinder
from .face import Face, Track
from .find import FaceFinder
from .tracks import Tracker
from .turned import TurnWatch


class SceneTracker:
    """Follows people through a video; a cut ends their tracks.

    `add` every picture, then `finish`.

    Args:
        seen: is called with the number of each picture, with it and its faces, once it is known whether it begins a
            scene: a few pictures later.
        finder: what finds the faces; None makes one.
    """

    def __init__(
        self, seen: Callable[[int, Tensor, list[Face]], None] = lambda *_: None, *, finder: FaceFinder | None = None
    ) -> None:
        self.frames = 0
        """Pictures that `seen` was called with."""
        self._seen = seen
        self._scenes = CutFinder()
        self._finder = finder or FaceFinder()
        self._tracker, self._turned = Tracker(self._finder), TurnWatch()
        self._waiting = deque[Tensor]()

    def add(self, picture: Tensor) -> None:
        """The next picture of the video, uint8 [H, W, 3]."""
        self._scenes.add(picture)
        self._waiting.append(picture)
        self._follow()

    def finish(self) -> None:
        """There are no more pictures."""
        self._scenes.finish()
        self._follow()

    def _follow(self) -> None:
        while self.frames < self._scenes.decided:
            picture = self._waiting.popleft()
            if self.frames in self._scenes.cuts:
                self._tracker.cut()
            faces = self._tracker.add(picture)
            self._turned.add(picture, faces)
            self._seen(self.frames, picture, faces)
            self.frames += 1

    @property
    def cuts(self) -> list[int]:
        """First frames of scenes, but for frame 0."""
        return self._scenes.cuts

    @property
    def duplicates(self) -> set[int]:
        """Frames that show again what the frame before showed, or almost."""
        return self._scenes.duplicates

    def turn(self) -> int:
        """How the video has to be turned; see `TurnWatch.turn`."""
        return self._turned.turn(self._finder)

    def tracks(self) -> list[Track]:
        """The people; see `Tracker.tracks`."""
        return self._tracker.tracks()
