"""A video to be measured, with its reference and sound, read by one protocol."""

from __future__ import annotations

import logging
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
from ..media.faces.find import FaceFinder
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

LONGEST_WINDOW = 25
WINDOW_PIXELS = 2**23
"""Frames that are in memory together: as many as have these pixels, 25 at most and 4 of 1920x1080. Floating-point
copies of them take 100 MB each."""
OTHER_SHAPE = 0.1
"""A reference whose width by height differs by more than this share shows something else."""

SHORTER = 0.5
"""Seconds by which speech or reference may end before the video without a word."""

logger = logging.getLogger(__name__)


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
    """A picture of the person; None for the first frame with a face of the reference, or of the video itself."""

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
            reference = probe_video(files.reference)
            self.frames = min(self.frames, reference.frames)
            _check_shapes(files, self.info, reference)
        if files.portrait is not None:
            load_image(files.portrait)  # told now, and not when all frames were measured

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
        return face_boxes(self.framing_faces)

    @property
    def framing_faces(self) -> list[Face | None]:
        """The faces that say where both videos are cut: the reference's, if there is one."""
        return self.faces if self.reference_faces is None else self.reference_faces

    @cached_property
    def portrait(self) -> tuple[np.ndarray, Face]:
        """The picture that shows who it is, uint8 [H, W, 3], and the face in it.

        Raises:
            ValueError: it cannot be read, or has no face.
        """
        if self.files.portrait is not None:
            picture = np.array(load_image(self.files.portrait))
            found = FaceFinder().faces(torch.from_numpy(picture))
            if not found:
                raise ValueError(f"there is no face in {self.files.portrait}")
            return picture, max(found, key=lambda face: face.size)
        place, face = next(((place, face) for place, face in enumerate(self.framing_faces) if face), (0, None))
        if face is None:
            raise ValueError("there is no face in any frame of the reference")
        frames = self._read(self.files.reference or self.files.generated)
        return next(islice(frames, place, None)).numpy(), face

    def windows(self) -> Iterator[Window]:
        """All frames, in windows of up to 25."""
        ours = self._read(self.files.generated)
        theirs = None if self.files.reference is None else self._read(self.files.reference)
        longest = min(LONGEST_WINDOW, max(1, WINDOW_PIXELS // (self.info.height * self.info.width)))
        for start in range(0, self.frames, longest):
            count = min(longest, self.frames - start)
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
        faces = self.framing_faces
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


def open_all(files: ClipFiles) -> None:
    """Open all files of a clip, and read its speech, so that what is wrong is told before any clip is measured.

    Raises:
        ValueError: a file cannot be read, or is not what it should be.
    """
    clip = Clip(files)
    whole, measured = clip.info.frames / FRAME_RATE, clip.frames / FRAME_RATE
    if measured < whole - SHORTER:
        logger.warning(
            "%s has %.1f s, and %s %.1f s: the first part alone is measured",
            *(files.reference, measured, files.generated, whole),
        )
    if files.audio is not None and clip.waveform is not None:
        seconds = len(clip.waveform) / SAMPLE_RATE
        if seconds < measured - SHORTER:
            logger.warning(
                "%s has %.1f s, and %s %.1f s: figures of sound are of the first part alone",
                *(files.audio, seconds, files.generated, whole),
            )


def _check_shapes(files: ClipFiles, video: VideoInfo, reference: VideoInfo) -> None:
    ours, theirs = video.width / video.height, reference.width / reference.height
    if abs(theirs / ours - 1) > OTHER_SHAPE:
        raise ValueError(
            f"{files.reference} has {reference.width}x{reference.height} pixels, {files.generated} "
            f"{video.width}x{video.height}: another shape, so it cannot show the same; cut one to the other's shape"
        )


def main_faces(tracks: Sequence[Track], count: int) -> list[Face | None]:
    """In each of `count` frames the face of the track with the largest sum of sizes; None where it has none."""
    by_weight = sorted(tracks, key=lambda track: track.size * len(track.faces), reverse=True)
    return [next((track.at(frame) for track in by_weight if frame in track.frames), None) for frame in range(count)]
