"""The first pass over a source: its scenes, faces, speech and light, in one run through its pictures."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from ...media.faces.face import Face, Track, as_anchors
from ...media.faces.find import FaceFinder
from ...media.faces.scene_tracks import SceneTracker
from ...media.faces.turned import turned_video
from ...media.sound import load_speech
from ...media.timeline import FRAME_RATE, SAMPLES_PER_FRAME
from ...media.video import iter_frames, probe_video
from ...media.voice import speech_spans
from ...metrics.stability import laplacian
from ...system.tensor_files import open_safetensors, write_safetensors
from ...system.workers import Tell

LOOK_VERSION = "2"
"""Looks of other versions are made again."""

SAMPLE_EVERY = 5
"""Frames between those in which the pixels of faces are measured."""

FACE_SIDE = 128
"""Pixels of a face's box when its sharpness is measured, whatever its size in the source."""

THUMBNAIL = (8, 9)
"""Height and width of the small grey pictures by which duplicates are found; there is one a second."""

GREY = (0.299, 0.587, 0.114)


class FileFacts(TypedDict):
    """By what a changed file is known."""

    size: int
    """Bytes."""
    modified_ns: int
    """Time of its last change."""


class SourceFault(ValueError):
    """Nothing can be made of a source.

    Attributes:
        reason: one of `records.OTHER_REASONS`.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What the first pass finds; N is the number of frames at 25 per second."""

    height: int
    width: int
    frame_rate: float
    """Of the source itself."""
    frames: int
    """N."""
    cuts: tuple[int, ...]
    """First frames of scenes, but for 0."""
    duplicates: frozenset[int]
    """Frames that show the picture before them again."""
    light: Tensor
    """[N] mean grey level of the picture, 0 to 255."""
    thumbnails: Tensor
    """[ceil(N / 25), 8, 9] uint8, one a second."""
    power: Tensor
    """[N] mean square of the sound beside each frame."""
    speech: tuple[tuple[float, float], ...]
    """Start and end in seconds of each time that somebody speaks."""
    tracks: tuple[Track, ...]
    samples: Tensor
    """[M, 5] of faces in every fifth frame: number of the track, frame, sharpness, brightness, part that is clipped."""

    def speech_frames(self) -> Tensor:
        """[N] bool: does somebody speak in this frame."""
        speaks = torch.zeros(self.frames, dtype=torch.bool)
        for start, end in self.speech:
            speaks[round(start * FRAME_RATE) : round(end * FRAME_RATE)] = True
        return speaks


def look_at(path: Path, tell: Tell = lambda part: None) -> Look:
    """Look at a video.

    Args:
        path: the video.
        tell: called with the part that is done.

    Raises:
        SourceFault: it cannot be read, has no usable sound, nobody speaks, or the picture is turned.
    """
    try:
        info = probe_video(path)
    except ValueError as error:
        raise SourceFault("unreadable", str(error)) from error
    waveform = load_waveform(path, info.has_sound)
    speech = tuple(speech_spans(waveform))
    if not speech:
        raise SourceFault("no_speech", f"{path}: nobody speaks in {info.duration:.1f} s")
    seen = _Eyes()
    try:
        for index, picture in enumerate(iter_frames(path)):
            seen.add(picture)
            if index % FRAME_RATE == 0:
                tell(index / info.frames)
    except ValueError as error:
        raise SourceFault("unreadable", str(error)) from error
    seen.finish()
    if turn := seen.turn():
        raise SourceFault("turned", f"{path}: {turned_video(turn)}")
    return seen.look(info.height, info.width, info.frame_rate, waveform, speech)


def load_waveform(path: Path, has_sound: bool = True) -> Tensor:
    """The sound of a video as `load_speech` gives it, from its first picture on; SourceFault without a good one."""
    if not has_sound:
        raise SourceFault("sound", f"{path}: has no sound track")
    try:
        return load_speech(path)
    except ValueError as error:
        raise SourceFault("sound", str(error)) from error


@functools.cache
def _finder() -> FaceFinder:
    """One for all sources of this process."""
    return FaceFinder()


class _Eyes:
    """Sees a video picture by picture."""

    def __init__(self) -> None:
        self._tracker = SceneTracker(self._measure, finder=_finder())
        self._light: list[float] = []
        self._thumbnails: list[Tensor] = []
        self._samples: list[tuple[int, Face, Tensor]] = []

    def add(self, picture: Tensor) -> None:
        small = _shrunk(picture)
        if len(self._light) % FRAME_RATE == 0:
            thumbnail = F.interpolate(small[None, None], THUMBNAIL, mode="area")[0, 0]
            self._thumbnails.append(thumbnail.round().to(torch.uint8))
        self._light.append(float(small.mean()))
        self._tracker.add(picture)

    def finish(self) -> None:
        """There are no more pictures."""
        self._tracker.finish()

    def turn(self) -> int:
        """How the video has to be turned, as `TurnWatch.turn` has it."""
        return self._tracker.turn()

    def _measure(self, frame: int, picture: Tensor, faces: list[Face]) -> None:
        if frame % SAMPLE_EVERY == 0:
            self._samples += [(frame, face, _face_pixels(picture, face)) for face in faces]

    def look(
        self, height: int, width: int, frame_rate: float, waveform: Tensor, speech: tuple[tuple[float, float], ...]
    ) -> Look:
        frames, tracks = self._tracker.frames, tuple(self._tracker.tracks())
        owners = {
            (frame, face.box): number
            for number, track in enumerate(tracks)
            for frame, face in zip(track.frames, track.faces, strict=True)
            if face is not None
        }
        samples = [
            torch.cat([torch.tensor([owners[frame, face.box], frame]), pixels])
            for frame, face, pixels in self._samples
            if (frame, face.box) in owners
        ]
        padded = F.pad(waveform, (0, max(0, frames * SAMPLES_PER_FRAME - len(waveform))))
        return Look(
            height=height,
            width=width,
            frame_rate=frame_rate,
            frames=frames,
            cuts=tuple(self._tracker.cuts),
            duplicates=frozenset(self._tracker.duplicates),
            light=torch.tensor(self._light),
            thumbnails=torch.stack(self._thumbnails),
            power=padded[: frames * SAMPLES_PER_FRAME].view(frames, -1).square().mean(dim=1),
            speech=speech,
            tracks=tracks,
            samples=torch.stack(samples) if samples else torch.zeros(0, 5),
        )


def _shrunk(picture: Tensor) -> Tensor:
    """Grey levels [h, w] of some hundred places of a picture [H, W, 3]."""
    step = max(1, min(picture.shape[:2]) // 64)
    return picture[::step, ::step].float() @ torch.tensor(GREY)


def _face_pixels(picture: Tensor, face: Face) -> Tensor:
    """[3] sharpness, brightness, and part of black or white pixels of a face."""
    height, width = picture.shape[:2]
    left, top, right, bottom = face.box
    rows = slice(max(0, round(top)), max(1, min(height, round(bottom))))
    columns = slice(max(0, round(left)), max(1, min(width, round(right))))
    pixels = picture[rows, columns]
    if pixels.numel() == 0:
        return torch.zeros(3)
    grey = (pixels.float() @ torch.tensor(GREY))[None, None]
    grey = F.interpolate(grey, (FACE_SIDE, FACE_SIDE), mode="bilinear", antialias=True)
    clipped = ((grey < 4) | (grey > 251)).float().mean()
    return torch.stack([laplacian(grey[0]).var(), grey.mean(), clipped])


def write_look(path: Path, look: Look, file: FileFacts) -> None:
    """Write a look as a safetensors file, whole or not at all; `file` says which state of the source it is of."""
    facts = {"height": look.height, "width": look.width, "frame_rate": look.frame_rate}
    tensors = {
        "light": look.light,
        "thumbnails": look.thumbnails,
        "power": look.power,
        "samples": look.samples,
        "cuts": torch.tensor(look.cuts, dtype=torch.int64),
        "duplicates": torch.tensor(sorted(look.duplicates), dtype=torch.int64),
        "speech": torch.tensor(look.speech, dtype=torch.float64).view(-1, 2),
    }
    for number, track in enumerate(look.tracks):
        tensors[f"track {number:06}"] = _track_tensor(track)
    write_safetensors(path, tensors, {"facts": json.dumps(facts), "of": _origin(file)})


def _origin(file: FileFacts) -> str:
    return json.dumps({"version": LOOK_VERSION, **file}, sort_keys=True)


def read_look(path: Path, file: FileFacts) -> Look | None:
    """The look that `write_look` wrote; None for one of another state of the source, or of another version.

    Raises:
        ValueError: the file is damaged.
    """
    with open_safetensors(path) as content:
        metadata = content.metadata() or {}
        if metadata.get("of") != _origin(file):
            return None
        facts = json.loads(metadata["facts"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    return Look(
        **facts,
        frames=len(tensors["light"]),
        cuts=tuple(tensors["cuts"].tolist()),
        duplicates=frozenset(tensors["duplicates"].tolist()),
        light=tensors["light"],
        thumbnails=tensors["thumbnails"],
        power=tensors["power"],
        speech=tuple((start, end) for start, end in tensors["speech"].tolist()),
        tracks=tuple(_track_of(tensors[name]) for name in sorted(tensors) if name.startswith("track ")),
        samples=tensors["samples"],
    )


_PLACES = ("openness", "width", "yaw", "pitch", "roll", "nose_offset")


def _track_tensor(track: Track) -> Tensor:
    """[1 + n, 18]: the start, then each face's box, score, flag, anchors and `_PLACES`; NaN where there is none."""
    rows = [[float(track.start)] * 18]
    for face in track.faces:
        if face is None:
            rows.append([float("nan")] * 18)
        else:
            places = [getattr(face, name) for name in _PLACES]
            anchors = [value for anchor in face.anchors for value in anchor]
            rows.append([*face.box, face.score, face.flag, *anchors, *places])
    return torch.tensor(rows, dtype=torch.float64)


def _track_of(tensor: Tensor) -> Track:
    faces = [None if row[0] != row[0] else _face_of(row) for row in tensor[1:].tolist()]
    return Track(start=int(tensor[0, 0]), faces=tuple(faces))


def _face_of(row: list[float]) -> Face:
    return Face(
        box=(row[0], row[1], row[2], row[3]),
        score=row[4],
        flag=row[5],
        anchors=as_anchors(zip(row[6:12:2], row[7:12:2], strict=True)),
        openness=row[12],
        width=row[13],
        yaw=row[14],
        pitch=row[15],
        roll=row[16],
        nose_offset=row[17],
    )
