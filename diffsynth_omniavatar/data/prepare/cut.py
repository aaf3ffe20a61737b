"""The last pass over a source: its clips are written, and strips of pictures of them and of rejected ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...media.faces.face import Track
from ...media.images import Size
from ...media.sound import Sound
from ...media.timeline import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from ...media.video import iter_frames
from ...media.writer import VideoWriter
from ...system.atomic import write_atomically
from ...system.tensor_files import write_safetensors
from ...system.workers import Tell
from .clip_identity import ClipIdentity
from .crops import AlignedCrop, Crop
from .records import ClipRecord
from .settings import PrepareSettings

STRIP_PICTURES = 8
STRIP_HEIGHT = 96

CLIPS, STRIPS = "clips", "strips"
"""Folders in the output folder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cutting:
    """A clip that is to be cut, or a rejected one of which a strip is to be made."""

    record: ClipRecord
    crop: Crop | None
    """None where there is no face: the whole picture is in its strip."""
    sound_offset: int = 0
    """Frames by which the sound comes late in the source, and is put earlier in the clip."""

    embedded: Track | None = None
    """Whose face is to be put into the record's fingerprint as numbers."""

    @property
    def frames(self) -> range:
        return range(self.record.start, self.record.start + self.record.frames)


def clip_path(name: str, settings: PrepareSettings) -> str:
    """Where a clip lies in the output folder."""
    return f"{CLIPS}/{name}" if settings.directories else f"{CLIPS}/{name}.mp4"


def transforms_path(name: str, settings: PrepareSettings) -> str:
    """Where the transforms of an aligned clip lie in the output folder."""
    return f"{CLIPS}/{name}/transforms.safetensors" if settings.directories else f"{CLIPS}/{name}.safetensors"


def strip_path(name: str) -> str:
    """Where a clip's strip lies in the output folder."""
    return f"{STRIPS}/{name}.jpg"


def clip_files(clip: ClipRecord, settings: PrepareSettings) -> list[str]:
    """All that is there of a clip, paths in the output folder."""
    files = [path for path in (clip.strip, clip.video) if path is not None]
    if clip.video is not None and settings.mode == "v2v":
        files.append(transforms_path(clip.name, settings))
    return files


def cut_clips(
    path: Path,
    waveform: Tensor | None,
    cuttings: Collection[Cutting],
    out: Path,
    scratch: Path,
    settings: PrepareSettings,
    tell: Tell,
) -> list[ClipRecord]:
    """Write clips and strips in one run through a source.

    Args:
        path: the source.
        waveform: [n] its sound at 16 kHz; None where all clips are rejected.
        cuttings: the clips.
        out: the output folder.
        scratch: a folder for unfinished files, on the same disk; it is made new, and removed at the end.
        settings: of the clips.
        tell: called with the part that is done.

    Returns:
        The records with the files that were written.

    Raises:
        ValueError: the source is damaged.
        OSError: a file cannot be written.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    waiting = sorted(cuttings, key=lambda cutting: cutting.record.start, reverse=True)
    last = max((cutting.frames.stop for cutting in cuttings), default=0)
    records, running = [], list[_Running]()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        for index, picture in enumerate(iter_frames(path, 0, last) if last else ()):
            while waiting and waiting[-1].record.start == index:
                running.append(_Running(waiting.pop(), waveform, scratch, settings))
            for cut in running:
                cut.add(picture, index)
            ended = [cut for cut in running if cut.cutting.frames.stop == index + 1]
            running = [cut for cut in running if cut not in ended]
            records += [cut.finish(out) for cut in ended]
            if index % FRAME_RATE == 0:
                tell(index / last)
    return records


class _Running:
    """A clip in the making."""

    def __init__(self, cutting: Cutting, waveform: Tensor | None, scratch: Path, settings: PrepareSettings) -> None:
        self.cutting, self.settings = cutting, settings
        record, frames = cutting.record, cutting.frames
        self.folder = scratch / record.name
        self.shown = {round(place * (len(frames) - 1) / (STRIP_PICTURES - 1)) for place in range(STRIP_PICTURES)}
        self.strip: list[Tensor] = []
        self.identity = ClipIdentity(cutting.embedded) if record.is_kept and cutting.embedded is not None else None
        self.stack = ExitStack()
        self.writer: VideoWriter | None = None
        if record.is_kept and waveform is not None:
            self.folder.mkdir(parents=True)
            self.sound = clip_sound(waveform, frames, cutting.sound_offset)
            video = self.folder / "sub_clip.mp4"
            sound = Sound(self.sound[None].numpy(), SAMPLE_RATE)
            writer = VideoWriter(video, *(record.size or (0, 0)), sound=sound, crf=settings.crf)
            self.writer = self.stack.enter_context(writer)

    def add(self, picture: Tensor, index: int) -> None:
        """The picture of frame `index` of the source."""
        place = index - self.cutting.frames.start
        if self.writer is None and place not in self.shown:
            return
        crop = self.cutting.crop
        shown = picture if crop is None else crop.cut(picture, place)
        if self.writer is not None:
            self.writer.write(shown[None])
        if place in self.shown:
            self.strip.append(_scaled(shown, STRIP_HEIGHT))
            if self.identity is not None:
                self.identity.add(picture, index)

    def finish(self, out: Path) -> ClipRecord:
        """Give the files their places."""
        self.stack.close()
        name = self.cutting.record.name
        strip = strip_path(name)
        picture = Image.fromarray(torch.cat(self.strip, dim=1).numpy())
        write_atomically(out / strip, lambda file: picture.save(file, format="JPEG", quality=85))
        if self.writer is None:
            return replace(self.cutting.record, strip=strip)
        crop = self.cutting.crop
        if isinstance(crop, AlignedCrop):
            origin = {"source": self.cutting.record.source, "start": str(self.cutting.record.start)}
            write_safetensors(self.folder / "transforms.safetensors", {"transforms": crop.transforms}, origin)
        if self.settings.directories:
            soundfile.write(self.folder / "audio.wav", self.sound.numpy(), SAMPLE_RATE)
        self._move(out)
        who = {} if self.identity is None else self.identity.fingerprint()
        fingerprint = {**self.cutting.record.fingerprint, **who}
        return replace(self.cutting.record, strip=strip, video=clip_path(name, self.settings), fingerprint=fingerprint)

    def _move(self, out: Path) -> None:
        name = self.cutting.record.name
        target = out / clip_path(name, self.settings)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.settings.directories:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(self.folder, target)
            return
        if (self.folder / "transforms.safetensors").is_file():
            os.replace(self.folder / "transforms.safetensors", out / transforms_path(name, self.settings))
        os.replace(self.folder / "sub_clip.mp4", target)


def clip_sound(waveform: Tensor, frames: range, offset: int = 0) -> Tensor:
    """[640 n] the sound beside n frames of a source that begin `offset` frames later in it; silence where it has none.

    Args:
        waveform: [m] the whole sound at 16 kHz, from the first picture on.
    """
    start, stop = (SAMPLES_PER_FRAME * (frame + offset) for frame in (frames.start, frames.stop))
    part = waveform[max(0, start) : max(0, stop)]
    before = max(0, -start)
    return F.pad(part, (before, stop - start - before - len(part)))


def remove_strays(out: Path, key: str, wanted: Iterable[str]) -> None:
    """Remove what earlier runs have made of a source.

    Args:
        out: the output folder.
        key: of the source.
        wanted: paths in the output folder that stay.
    """
    kept = {out / path for path in wanted}
    for folder in (out / CLIPS / key, out / STRIPS / key):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path in kept:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _scaled(picture: Tensor, height: int) -> Tensor:
    """uint8 [height, w, 3]."""
    size: Size = height, max(1, round(picture.shape[1] * height / picture.shape[0]))
    scaled = F.interpolate(picture.permute(2, 0, 1)[None].float(), size, mode="bilinear", antialias=True)
    return scaled[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
