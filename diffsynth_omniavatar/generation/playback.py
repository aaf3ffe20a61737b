"""Which picture of a source is shown when in a video that is as long as the speech. Plain integers.

Two clocks meet: pictures are shown at the source's own times, in its ticks; the model makes 25 frames a second.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..media.pictures import PictureTimes
from ..media.timeline import FRAME_RATE, ping_pong

_ROUNDING = Fraction(1, 1000)
"""Seconds by which times may be off, as some files round them to milliseconds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Playback:
    """The pictures of the finished video, by their places from 0."""

    pictures: Sequence[int]
    """The source's picture at each place."""

    starts: Sequence[int]
    """Ticks at which each place comes on screen."""

    stop: int
    """Ticks at which the last one leaves it."""

    tick: Fraction
    """Seconds of a tick."""

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.stop * self.tick)

    @property
    def frames(self) -> int:
        """The model's frames, 25 a second, that cover the video."""
        return max(1, math.ceil((self.stop * self.tick - _ROUNDING) * FRAME_RATE))

    def times(self, place: int) -> tuple[int, int]:
        """Ticks at which a place comes on screen and leaves it."""
        return self.starts[place], self.starts[place + 1] if place + 1 < len(self.starts) else self.stop

    def seconds(self, place: int) -> tuple[float, float]:
        """Seconds at which a place comes on screen and leaves it."""
        start, stop = self.times(place)
        return float(start * self.tick), float(stop * self.tick)

    def frame_at(self, place: int) -> int:
        """The model's frame that is nearest in time."""
        return min(math.floor(self.starts[place] * self.tick * FRAME_RATE + Fraction(1, 2)), self.frames - 1)

    def place_at(self, frame: int) -> int:
        """The place that is on screen at the time of a model's frame."""
        due = (Fraction(frame, FRAME_RATE) + _ROUNDING) / self.tick
        return bisect_right(self.starts, due) - 1


def plan_playback(times: PictureTimes, seconds: float, extend: str) -> Playback:
    """A video of all pictures of a source, and of more where it is shorter than `seconds`.

    Args:
        times: of the source's pictures.
        seconds: that the video lasts at least, unless `extend` is "stop".
        extend: "loop" goes on backward, then forward, in turn; "hold" shows the last picture, 25 times a second; "stop"
            adds nothing.
    """
    count, tick = len(times.starts), times.tick
    edges = [*times.starts, times.stop]
    pictures, starts, stop = list(range(count)), list(times.starts), times.stop
    wanted = math.ceil((Fraction(seconds) - _ROUNDING) / tick)
    if extend == "hold" or (extend == "loop" and count == 1):
        first, added = stop, 0
        while stop < wanted:
            pictures.append(count - 1)
            starts.append(stop)
            added += 1
            stop = max(stop + 1, first + round(Fraction(added, FRAME_RATE) / tick))
    while extend == "loop" and stop < wanted:
        picture = ping_pong(len(pictures), count)
        pictures.append(picture)
        starts.append(stop)
        stop += edges[picture + 1] - edges[picture]
    return Playback(pictures=pictures, starts=starts, stop=stop, tick=tick)
