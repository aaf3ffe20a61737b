"""A video to dub, looked at once: when its pictures are shown, its scenes, and whose faces it shows where."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from ..media.clip import Clip
from ..media.faces.detections import read_detections
from ..media.faces.face import Track
from ..media.faces.find import FaceFinder
from ..media.faces.tracks import Tracker
from ..media.faces.turned import TurnWatch, turned_video
from ..media.images import Size
from ..media.pictures import PictureScan, PictureSource, PictureTimes
from ..media.scenes import LOOKAHEAD, CutFinder
from ..media.video import probe_video
from ..system.messages import counted
from ..system.progress import progress_bar

logger = logging.getLogger(__name__)

OnPicture = Callable[[int, int], None]
"""Called while faces are looked for, with the whole seconds that were looked at and those of the video."""

MOST_TOLD = 8
"""Faces of a video that a message tells of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Footage:
    """What one pass over a video finds. Pictures are counted from 0."""

    source: Path | Clip
    size: Size
    """Height and width of the pictures."""
    times: PictureTimes
    cuts: tuple[int, ...]
    """First pictures of scenes, but for picture 0."""
    duplicates: frozenset[int]
    """Pictures that show the one before again."""
    tracks: tuple[Track, ...]
    """Faces without landmarks. Track k is face k + 1 for the user."""

    def scene(self, picture: int) -> int:
        """Number of the scene of a picture."""
        return bisect_right(self.cuts, picture)

    def place(self, track: Track) -> str:
        """A track in words: where in the picture, how large, from when to when."""
        faces = [face for face in track.faces if face is not None]
        middle = sum(face.box[0] + face.box[2] for face in faces) / 2 / len(faces) / self.size[1]
        side = "left" if middle < 1 / 3 else "right" if middle > 2 / 3 else "centre"
        starts, tick = [*self.times.starts, self.times.stop], self.times.tick
        begin, end = float(starts[track.frames.start] * tick), float(starts[track.frames.stop] * tick)
        return f"{side}, {track.size:.0f} pixels, {begin:.1f}-{end:.1f} s"

    def faces(self) -> str:
        """The faces in words, by their numbers; of many the largest ones."""
        numbers = range(1, len(self.tracks) + 1)
        largest = sorted(numbers, key=lambda number: -self.tracks[number - 1].size)[:MOST_TOLD]
        told = "; ".join(f"{number} ({self.place(self.tracks[number - 1])})" for number in sorted(largest))
        return told if len(largest) == len(numbers) else f"{told}; {len(numbers) - len(largest)} smaller ones"


def find_footage(
    source: PictureSource,
    detections: str | Path | None = None,
    *,
    show_progress: bool = False,
    on_picture: OnPicture | None = None,
) -> Footage:
    """Look at a video once, in little memory.

    Args:
        source: the video: a file, or a clip in memory.
        detections: a file of its faces, with which none are looked for.
        show_progress: draw a bar with the seconds of the video that were looked at, or log that it begins.
        on_picture: called after each picture.

    Raises:
        ValueError: the video or the file cannot be read, there is no face, the video is turned so that its faces are
            not found or are upside down, or the file has faces for pictures that the video has not.
    """
    given = None if detections is None else read_detections(detections)
    if given == []:
        raise ValueError(f"{detections}: has no face in any frame")
    scan, scenes, finder, turned = PictureScan(source), CutFinder(), FaceFinder(), TurnWatch()
    tracker = Tracker(finder) if given is None else None
    seconds = source.duration if isinstance(source, Clip) else probe_video(source).duration
    count = 0
    with progress_bar("seconds", show_progress) as bar:
        if show_progress and bar.disable:
            logger.info("Looking for faces in %s, %.1f s.", source, seconds)
        task = bar.add_task("looking for faces", total=math.ceil(seconds))
        for picture, is_first in _judged(scan, scenes):
            if tracker is not None:
                if is_first:
                    tracker.cut()
                turned.add(picture, tracker.add(picture))
            count += 1
            bar.update(task, completed=math.floor(scan.seconds))
            if on_picture is not None:
                on_picture(math.floor(scan.seconds), math.ceil(seconds))
    tracks = tracker.tracks() if tracker is not None else given or []
    last = max((track.frames.stop for track in tracks), default=0)
    if last > count:
        raise ValueError(f"{detections}: has a face in frame {last - 1}, but {source} has only {count} frames")
    if turn := turned.turn(finder):
        told = f"{source}: {turned_video(turn)}"
        if turn == 2 or not tracks:  # a mouth would be looked for on the forehead
            raise ValueError(f"{told}.")
        logger.warning("warning: %s; as it is, faces are lost at times.", told)
    if not tracks:
        raise ValueError(
            f"{source}: shows no face in {counted(count, 'picture')} ({scan.times().duration:.1f} s). A drawn face "
            "can be given with @detections; a video that is the face alone, as the checkpoint was trained, is taken "
            "whole by `generate --aligned`."
        )
    assert scan.size is not None
    cuts = tuple(sorted(scenes.cuts))
    return Footage(
        source=source if isinstance(source, Clip) else Path(source),
        size=scan.size,
        times=scan.times(),
        cuts=cuts,
        duplicates=frozenset(scenes.duplicates),
        tracks=tuple(part for track in tracks for part in _within_scenes(track, cuts)),
    )


def _judged(scan: PictureScan, scenes: CutFinder) -> Iterator[tuple[Tensor, bool]]:
    """The pictures, each when it is known whether it is the first of a scene."""
    waiting: deque[Tensor] = deque()
    given = 0

    def decided() -> Iterator[tuple[Tensor, bool]]:
        nonlocal given
        while given < scenes.decided:
            yield waiting.popleft(), given in scenes.cuts[-LOOKAHEAD:]
            given += 1

    for picture in scan:
        scenes.add(picture)
        waiting.append(picture)
        yield from decided()
    scenes.finish()
    yield from decided()


def _within_scenes(track: Track, cuts: tuple[int, ...]) -> Iterator[Track]:
    """A track, divided at the cuts; those that were given know none."""
    edges = [track.frames.start, *(cut for cut in cuts if cut in track.frames[1:]), track.frames.stop]
    for first, stop in pairwise(edges):
        faces = [track.at(frame) for frame in range(first, stop)]
        seen = [place for place, face in enumerate(faces) if face is not None]
        if seen:
            yield Track(start=first + seen[0], faces=tuple(faces[seen[0] : seen[-1] + 1]))
