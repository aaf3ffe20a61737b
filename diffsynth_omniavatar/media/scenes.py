"""Cuts of a video, and frames that show again what the frame before showed; found while the frames come.

A frame is the first one of a scene if it differs from the frame before by far more than its neighbours do from theirs,
and if the frames some way before and after it differ as well: so noise, pans and fades are no cuts, and a flash that
lasts up to four frames is none. Not found: dissolves, and cuts between pictures that are almost alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

LOOKAHEAD = 4
"""Frames behind a cut that have to come before it is told."""

_THUMBNAIL = 32
"""Height and width at which frames are compared."""

_SAMPLES = 128
"""Rows and columns of a frame that go into its thumbnail; more would take longer."""

_BEHIND = 5
"""How far before a cut the picture is compared with the one `LOOKAHEAD` frames after it."""

_BEFORE = 8
"""Changes before a frame by which its own is judged."""

_SMALLEST_CUT = 0.03
"""Mean difference of two scenes, white to black being 1; somebody who moves gives up to 0.01 from frame to frame."""

_JUMP = 4
"""How many times the usual change a cut's is."""

_SMALLEST_CHANGE = 2e-4
"""What re-encoding changes in a picture that stands still."""

_REPEATED = 0.2
"""Part of the usual change below which a frame shows the same as the frame before."""


class CutFinder:
    """Finds cuts and duplicates in frames that come one by one, in constant memory but for the results.

    `add` every frame, then `finish`. What a frame is stands in `cuts` and `duplicates` when `LOOKAHEAD`
    further frames were added.
    """

    def __init__(self) -> None:
        self.cuts: list[int] = []
        """First frames of scenes, but for frame 0."""
        self.duplicates: set[int] = set()
        """Frames that show again what the frame before showed, or almost."""
        self.decided = 0
        """Frames from the first on of which is known whether they begin a scene or are duplicates."""
        self._count = 0
        self._thumbnails: deque[Tensor] = deque(maxlen=_BEHIND + 1 + LOOKAHEAD)
        self._changes: deque[float] = deque(maxlen=_BEFORE + 1 + LOOKAHEAD)

    def add(self, frame: Tensor) -> None:
        """Looks at the next frame: uint8 [H, W, 3]; all have one size."""
        thumbnail = _thumbnail(frame)
        if self._thumbnails:
            self._changes.append(_difference(thumbnail, self._thumbnails[-1]))
        self._thumbnails.append(thumbnail)
        self._count += 1
        if self._count > LOOKAHEAD:
            self._judge(LOOKAHEAD)

    def finish(self) -> None:
        """Judges the last frames, behind which no others come."""
        for ahead in reversed(range(self._count - self.decided)):
            self._judge(ahead)

    def _judge(self, ahead: int) -> None:
        """Is the frame with `ahead` frames behind it the first of a scene, or a duplicate?"""
        changes, frame = list(self._changes), self._count - 1 - ahead
        self.decided = frame + 1
        if frame == 0:
            return
        place = len(changes) - 1 - ahead
        change, after = changes[place], changes[place + 1 :]
        own = min(_BEFORE, frame - 1 - (self.cuts[-1] if self.cuts else 0))  # changes of this scene alone
        before, latest = changes[place - own : place], changes[max(0, place - _BEHIND) : place]
        usual = max(_ranked(before, 0.5), _ranked(after, 0.25))
        largest = all(change > other for other in latest) and all(change >= other for other in after)
        if change > max(_SMALLEST_CUT, _JUMP * usual) and largest:
            now = len(self._thumbnails) - 1 - ahead
            lasting = _difference(self._thumbnails[max(0, now - _BEHIND)], self._thumbnails[-1])
            if lasting > max(_SMALLEST_CUT, change / 2):
                self.cuts.append(frame)
        motion = min(_ranked(side, 0.75) for side in (before or after, after or before))
        if change < max(_SMALLEST_CHANGE, _REPEATED * motion):
            self.duplicates.add(frame)


def find_cuts(frames: Iterable[Tensor]) -> list[int]:
    """First frames of a video's scenes, but for frame 0. Frames are uint8 [H, W, 3] of one size."""
    finder = CutFinder()
    for frame in frames:
        finder.add(frame)
    finder.finish()
    return finder.cuts


def _thumbnail(frame: Tensor) -> Tensor:
    """A frame [H, W, 3] in small: float32 [3, 32, 32] in 0..1."""
    rows, columns = (max(1, side // _SAMPLES) for side in frame.shape[:2])
    return F.adaptive_avg_pool2d(frame[::rows, ::columns].permute(2, 0, 1).float() / 255, _THUMBNAIL)


def _difference(thumbnail: Tensor, other: Tensor) -> float:
    """Mean absolute difference."""
    return float((thumbnail - other).abs().mean())


def _ranked(values: list[float], share: float) -> float:
    """The value above this share of all; 0 if there are none."""
    return sorted(values)[int(share * len(values))] if values else 0.0
