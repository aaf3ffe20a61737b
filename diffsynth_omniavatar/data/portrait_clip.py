"""Clips without a video: a portrait and a speech, for distillation, which needs no more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ..media.images import Size, load_image
from ..media.timeline import audio_rows
from .clips import TEXT, ClipFacts, ClipSettings, Faults, Footage
from .recipe import Recipe
from .video_clip import VideoClip


@dataclass(frozen=True, kw_only=True)
class PortraitClip(VideoClip):
    """A picture that keeps still while the sound lasts. Only its first frame is fit to be known to a model.

    `video` and `reference` are both the picture.
    """

    is_still: ClassVar[bool] = True

    @classmethod
    def of(cls, name: str, portrait: Path, audio: Path, prompt: str) -> PortraitClip:
        """Of a picture and a sound."""
        return cls(name=name, video=portrait, reference=portrait, audio=audio, prompt=prompt)

    def files(self) -> dict[str, Path]:
        return {part: path for part, path in super().files().items() if part != "video"}

    def footage(self) -> Footage:
        return Footage.of(self.video)

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        size, frames, longest = (0, 0), 0, 0
        with Faults(self.name) as faults:
            if not settings.portraits:
                faults.add("it has no video; a portrait and a sound are enough for distillation alone (--portraits)")
            if settings.masked_video:
                faults.add("it has no video, and a V2V model changes one")
            if TEXT in settings.parts and not self.prompt.strip():
                faults.add("the prompt is empty")
            image = faults.collect(lambda: load_image(self.video))
            sound = faults.collect(lambda: self.waveform(None, 0))
            if image is not None and sound is not None:
                size, frames = settings.size_for(image.height, image.width), audio_rows(len(sound))
                longest = faults.collect(lambda: recipe.longest(frames, *size)) or 0
        return ClipFacts(
            height=size[0],
            width=size[1],
            frames=frames,
            longest=longest,
            live=settings.parts,
            group=(),
            is_still=True,
        )

    def pictures(self, size: Size) -> Iterator[Tensor]:
        return itertools.repeat(self.portrait(size))

    def read(self, start: int, count: int, size: Size) -> Tensor:
        return self.portrait(size).expand(count, -1, -1, -1)
