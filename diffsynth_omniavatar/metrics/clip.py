"""A video to be measured, with its reference and sound, read by one protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..media.faces.align import crop_transforms
from ..media.faces.face import Face, Track
from ..media.faces.tracks import find_tracks
from ..media.images import load_image
from ..media.scenes import find_cuts
from ..media.sound import load_sound, speech_waveform
from ..media.timeline import FRAME_RATE, SAMPLE_RATE
from ..media.video import VideoInfo, iter_frames, probe_video
from .crops import face_boxes

FACE_SIZE = 256
"""Pixels of the square of the face that pictures are compared in."""

PROTOCOL = {
    "frame_rate": FRAME_RATE,
    "sound_rate": SAMPLE_RATE,
    "length": "generated and reference are cut to the shorter of the two",
    "size": "the reference is scaled and cut to the size of the generated video",
    "face": "square around the landmarks, median of 13 frames; the reference's, if there is one, for both videos",
    "face_size": FACE_SIZE,
}
"""How videos are read and cut; written into every result."""

WINDOW = 25
"""Frames that are in memory together."""


@dataclass(frozen=True, kw_only=True)
class ClipFiles:
    """The files of one measurement."""

    generated: Path
    """The video."""
    reference: Path | None = None
    """The real video that it should equal."""
    audio: Path | None = None
    """The speech; None for the video's own sound."""
    portrait: Path | None = None
    """A picture of the person; None for the reference's first frame, or the video's own."""

    @property
    def name(self) -> str:
        """By which the clip is known in tables."""
        return str(self.generated)


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Some consecutive frames."""

    start: int
    """Place of the first in the video."""
    frames: Tensor
    """uint8 [n, H, W, 3]."""
    reference: Tensor | None
    """The reference's, of the same shape."""

    @property
    def places(self) -> range:
        """Places of the frames in the video."""
        return range(self.start, self.start + len(self.frames))


class Clip:
    """A video, opened. What is costly (faces, sound) is read when it is first asked for, and kept.

    Raises:
        ValueError: a file cannot be read, or is not what it should be.
    """

    def __init__(self, files: ClipFiles) -> None:
        self.files = files
        self.info: VideoInfo = probe_video(files.generated)
        self.frames = self.info.frames
        """Frames at 25 per second that are measured."""
        if files.reference is not None:
            self.frames = min(self.frames, probe_video(files.reference).frames)

    @cached_property
    def waveform(self) -> np.ndarray | None:
        """The speech, float32 [n] mono at 16 kHz from the first frame on; None if there is none."""
        if self.files.audio is None and not self.info.has_sound:
            return None
        sound = load_sound(self.files.audio or self.files.generated, allow_silent=True)
        return speech_waveform(sound).numpy()[: math.ceil(self.frames * SAMPLE_RATE / FRAME_RATE)]

    @cached_property
    def faces(self) -> list[Face | None]:
        """The main person's face in each frame of the video, with landmarks."""
        return self._faces(self.files.generated)

    @cached_property
    def reference_faces(self) -> list[Face | None] | None:
        """The same of the reference; None if there is none."""
        return None if self.files.reference is None else self._faces(self.files.reference)

    @cached_property
    def boxes(self) -> np.ndarray:
        """The face's square (x, y, half side) in each frame, for both videos; float [F, 3].

        Raises:
            ValueError: there is no face in any frame.
        """
        return face_boxes(self.faces if self.reference_faces is None else self.reference_faces)

    @cached_property
    def portrait(self) -> np.ndarray:
        """The picture that shows who it is, uint8 [H, W, 3]."""
        if self.files.portrait is not None:
            return np.asarray(load_image(self.files.portrait))
        return next(self._read(self.files.reference or self.files.generated)).numpy()

    def windows(self) -> Iterator[Window]:
        """All frames, in windows of 25; the last is shorter."""
        ours = self._read(self.files.generated)
        theirs = None if self.files.reference is None else self._read(self.files.reference)
        for start in range(0, self.frames, WINDOW):
            count = min(WINDOW, self.frames - start)
            yield Window(
                start=start,
                frames=torch.stack(list(islice(ours, count))),
                reference=None if theirs is None else torch.stack(list(islice(theirs, count))),
            )

    @cached_property
    def transforms(self) -> Tensor:
        """Where LatentSync's crop of the face lies in each frame, for both videos; float32 [F, 2, 3].

        Raises:
            ValueError: there is no face in any frame.
        """
        faces = self.faces if self.reference_faces is None else self.reference_faces
        known = [place for place, face in enumerate(faces) if face is not None]
        if not known:
            raise ValueError("there is no face in any frame")
        found = crop_transforms(Track(start=known[0], faces=tuple(faces[known[0] : known[-1] + 1])))
        nearest = torch.arange(self.frames).clamp(known[0], known[-1]) - known[0]
        return found[nearest]

    def _faces(self, path: Path) -> list[Face | None]:
        cuts = find_cuts(self._read(path))
        return main_faces(find_tracks(self._read(path), cuts=cuts, keep_points=True), self.frames)

    def _read(self, path: Path) -> Iterator[Tensor]:
        return iter_frames(path, 0, self.frames, (self.info.height, self.info.width))


def main_faces(tracks: Sequence[Track], count: int) -> list[Face | None]:
    """In each of `count` frames the face of the track with the largest sum of sizes; None where it has none."""
    by_weight = sorted(tracks, key=lambda track: track.size * len(track.faces), reverse=True)
    return [next((track.at(frame) for track in by_weight if frame in track.frames), None) for frame in range(count)]
