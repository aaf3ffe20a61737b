"""The pictures of a video at their own timestamps: each of them once, forward or backward, in bounded memory.

`video` samples a file at 25 frames a second; this is for those who write its pictures back when they were.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from .clip import Clip
from .files import MediaError, named_faults
from .images import Size
from .video import Picture, decode_from, decode_pictures, picture_end

BACKWARD_BYTES = 2**28
"""Memory for pictures that are decoded forward to be given backward."""

_BACKWARD = (8, 250)
"""Fewest and most pictures that are decoded at a time for going backward, however large or small they are."""

_LONGEST_SKIP = 100
"""Pictures that are decoded to get at a later one; over more, the file is searched for it."""

PictureSource = str | Path | Clip
"""Whose pictures are read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureTimes:
    """When each picture of a video is on screen."""

    starts: Sequence[int]
    """Ticks from the first picture at which each picture comes on screen; they rise, from 0."""

    stop: int
    """Ticks at which the last picture leaves it."""

    tick: Fraction
    """Seconds of a tick: the file's own unit of time."""

    first: Fraction
    """Time of the first picture on the file's own clock, in seconds."""

    @property
    def duration(self) -> float:
        """Seconds from the first picture to the end of the last."""
        return float(self.stop * self.tick)

    @property
    def frame_rate(self) -> Fraction:
        """Mean pictures per second."""
        return len(self.starts) / (self.stop * self.tick)


class PictureScan:
    """Iterates over all pictures of a video, uint8 [H, W, 3], upright RGB; afterwards it knows their times.

    Args:
        path: video file, or a clip in memory.

    Raises:
        ValueError: at the first picture or where it is met: the file cannot be read or is damaged, or the picture
            changes its size.
    """

    def __init__(self, path: PictureSource) -> None:
        self.path = path
        self.size: Size | None = None
        """Height and width, once the first picture was given."""
        self._times: list[Fraction] = []
        self._tick = Fraction(0)

    def __iter__(self) -> Iterator[torch.Tensor]:
        if isinstance(self.path, Clip):
            yield from self._frames(self.path)
            return
        self._end = picture_end(self.path)
        for picture in _distinct(decode_pictures(self.path)):
            pixels = _pixels(picture, self.path, self.size)
            self.size = self.size or (pixels.shape[0], pixels.shape[1])
            self._times.append(picture.time)
            self._tick = self._tick or Fraction(picture.frame.time_base or 0)
            yield pixels
        if not self._times:
            raise MediaError(f"{self.path}: has no video frames")

    def _frames(self, clip: Clip) -> Iterator[torch.Tensor]:
        self._tick = 1 / clip.frame_rate
        self._end = len(clip.frames) * self._tick
        self.size = (clip.frames.shape[1], clip.frames.shape[2])
        for number, frame in enumerate(clip.frames):
            self._times.append(number * self._tick)
            yield frame

    @property
    def seconds(self) -> float:
        """From the first picture to the last one that was given."""
        return float(self._times[-1] - self._times[0]) if self._times else 0.0

    def times(self) -> PictureTimes:
        """When each picture that was given is on screen; after the last one."""
        first, tick = self._times[0], self._tick
        starts = [int((time - first) / tick) for time in self._times]
        stop = max(round((self._end - first) / tick), starts[-1] + 1)
        return PictureTimes(starts=starts, stop=stop, tick=tick, first=first)


class PictureReader:
    """Pictures of a video by their number, one decoder long: quick where the numbers rise or fall a step at a time.

    Args:
        path: video file.
        times: of its pictures, from `PictureScan`.
    """

    def __init__(self, path: str | Path, times: PictureTimes) -> None:
        self.path, self.times = path, times
        self._coming: Iterator[tuple[int, Picture]] = iter(())
        self._taken = -1
        """Number of the last picture taken from `_coming`."""
        self._number = -1
        self._pixels: torch.Tensor | None = None
        self._window: list[torch.Tensor] = []
        """Pictures before the current one, in their order, when going backward."""

    def read(self, number: int) -> torch.Tensor:
        """Picture `number` as uint8 [H, W, 3]; the same tensor when it is asked for again: do not write into it.

        Raises:
            ValueError: the file cannot be read any more or is damaged.
        """
        if self._pixels is not None and number == self._number:
            return self._pixels
        if self._pixels is None or number < self._number:
            self._go_back(number)
        else:
            self._go_on(number)
        self._number = number
        assert self._pixels is not None
        return self._pixels

    def _go_on(self, number: int) -> None:
        self._window = []
        if not self._taken < number <= self._taken + _LONGEST_SKIP:
            self._coming = self._decoded(number)
        self._pixels = _pixels(self._take(number), self.path, None)

    def _go_back(self, number: int) -> None:
        kept = len(self._window) - (self._number - number)
        if self._pixels is None or kept < 0:
            count = 1
            if self._pixels is not None:
                count = min(max(_BACKWARD[0], BACKWARD_BYTES // self._pixels.nbytes), _BACKWARD[1])
            first = max(0, number - count + 1)
            self._coming = self._decoded(first)
            self._window = [_pixels(self._take(place), self.path, None) for place in range(first, number + 1)]
            kept = len(self._window) - 1
        self._pixels = self._window[kept]
        self._window = self._window[:kept]

    def _take(self, number: int) -> Picture:
        """The picture of this number, of those that come."""
        for place, picture in self._coming:
            self._taken = place
            if place == number:
                return picture
        raise MediaError(f"{self.path}: has changed while it was read: picture {number} is not there any more")

    def _decoded(self, number: int) -> Iterator[tuple[int, Picture]]:
        """Pictures from this number on, with their numbers."""
        starts, tick, first = self.times.starts, self.times.tick, self.times.first
        for picture in _distinct(decode_from(self.path, first + starts[number] * tick)):
            place = bisect_left(starts, int((picture.time - first) / tick))
            if place >= number:
                yield place, picture


def picture_reader(source: PictureSource, times: PictureTimes) -> Callable[[int], torch.Tensor]:
    """`PictureReader.read` of a file, or the same of a clip."""
    return source.frames.__getitem__ if isinstance(source, Clip) else PictureReader(source, times).read


def _distinct(pictures: Iterator[Picture]) -> Iterator[Picture]:
    """Without the pictures that another one replaces at the same time."""
    last: Picture | None = None
    for picture in pictures:
        if last is not None and picture.time > last.time:
            yield last
        last = picture
    if last is not None:
        yield last


def _pixels(picture: Picture, path: str | Path, size: Size | None) -> torch.Tensor:
    with named_faults(path):
        pixels = torch.from_numpy(picture.rgb(path))
    if size is not None and tuple(pixels.shape[:2]) != size:
        raise MediaError(
            f"{path}: the picture changes from {size[0]}x{size[1]} to {pixels.shape[0]}x{pixels.shape[1]} at "
            f"{float(picture.time):.3f} s; cut the video there"
        )
    return pixels
