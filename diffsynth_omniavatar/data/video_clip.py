"""Clips that are video files; all their parts are live."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..media.images import Size, fit_image, image_to_tensor, load_image, to_bytes
from ..media.sound import load_sound, speech_waveform
from ..media.timeline import SAMPLES_PER_FRAME
from ..media.video import iter_frames, probe_video, read_frames
from .clip_faces import FaceFaults, cut_picture, face_crops
from .clips import AUDIO, LATENTS, REFERENCE_SEQUENCE, TEXT, ClipFacts, ClipSettings, ClipSource, Faults, Footage
from .recipe import Recipe

MISSING_SOUND = 5
"""A sound may end this many video frames before the picture: encoders cut the two streams at different places."""


@dataclass(frozen=True, kw_only=True)
class VideoClip(ClipSource):
    """A video file and what goes with it; all parts are live."""

    is_still: ClassVar[bool] = False
    """Whether it is a picture in place of a video; see `portrait_clip`."""
    name: str
    video: Path
    prompt: str
    audio: Path | None = None
    """None for the video's own sound track."""
    reference: Path | None = None
    """The identity image; None for a random frame of the video."""
    mask: Path | None = None
    """None for the mask of the settings."""

    def files(self) -> dict[str, Path]:
        """The files that make the clip, by what they are."""
        named = {"video": self.video, "audio": self.audio, "reference": self.reference, "mask": self.mask}
        return {part: path for part, path in named.items() if path is not None}

    def footage(self) -> Footage:
        return Footage.of(self.video)

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        parts, longest = settings.parts, 0
        with Faults(self.name) as faults:
            frames, size = self.inspect_parts(settings, parts, deep, faults)
            if size is not None:
                longest = faults.collect(lambda: recipe.longest(target_frames(frames, parts), *size)) or 0
            if deep:
                self.inspect_sound(parts, longest, faults)
            if size is None:
                faults.stop()
        return ClipFacts(
            height=size[0], width=size[1], frames=frames, longest=longest, live=parts, group=(self.used_mask(settings),)
        )

    def inspect_parts(
        self, settings: ClipSettings, parts: Collection[str], deep: bool, faults: Faults
    ) -> tuple[int, Size | None]:
        """Collect the faults in what the given parts are made of, but for the content of the sound.

        Returns:
            Frames of the video, and height and width of samples; 0 and None if no part needs the video or it is bad.
        """
        uses = {"video": {LATENTS, REFERENCE_SEQUENCE}, "audio": {AUDIO}, "reference": {LATENTS}, "mask": {LATENTS}}
        if self.audio is None:
            uses["video"].add(AUDIO)
        used = {name: path for name, path in self.files().items() if not uses[name].isdisjoint(parts)}
        missing = [name for name, path in used.items() if not path.is_file()]
        for name in missing:
            faults.add(f"{name} {used[name]} is missing")
        if TEXT in parts and not self.prompt.strip():
            faults.add("the prompt is empty")
        for image in [path for name, path in used.items() if name in ("reference", "mask") and name not in missing]:
            faults.collect(functools.partial(load_image, image))
        if "video" not in used or "video" in missing:
            return 0, None
        info = faults.collect(lambda: probe_video(self.video))
        if info is None:
            return 0, None
        if AUDIO in parts and self.audio is None and not info.has_sound:
            faults.add(f"{self.video} has no sound track, and no audio file is given")
        size = settings.size_for(info.height, info.width)
        if deep:
            self._inspect_pictures(settings, size, faults)
        return info.frames, size

    def _inspect_pictures(self, settings: ClipSettings, size: Size, faults: Faults) -> None:
        """Collect the faults that show when all frames are decoded."""
        if settings.faces == "any":
            faults.collect(lambda: sum(1 for _ in iter_frames(self.video, size=size)))
            return
        template, aligned = settings.conventions.template, settings.faces == "aligned"
        try:
            face_crops(self.video, size, template, aligned=aligned)
        except FaceFaults as error:
            faults.reasons += error.reasons
        except ValueError as error:
            faults.add(str(error))
        picture = self.reference
        if aligned and picture is not None and not any(str(picture) in reason for reason in faults.reasons):
            faults.collect(lambda: cut_picture(load_image(picture), size, template))

    def inspect_sound(self, parts: Collection[str], needed: int, faults: Faults) -> None:
        """Collect the faults in the sound itself, for samples of up to `needed` frames, unless its file has some."""
        source = str(self.audio or self.video)
        if AUDIO in parts and not any(source in reason for reason in faults.reasons):
            faults.collect(lambda: self.waveform(None, needed))

    def used_mask(self, settings: ClipSettings) -> Path | None:
        """The image of the mouth mask; None for the built-in one, and for models that take none."""
        return self.mask or settings.mouth_mask if settings.masked_video else None

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        return self.load_parts(facts, settings, facts.live, num_frames, reference)

    def load_parts(
        self, facts: ClipFacts, settings: ClipSettings, parts: Collection[str], num_frames: int, reference: float
    ) -> dict[str, Any]:
        """`load` for some of the parts."""
        size, loaded = (facts.height, facts.width), dict[str, Any]()
        if LATENTS in parts and settings.faces == "aligned":
            raise ValueError("faces are cut out by precompute alone; train from its cache")
        if LATENTS in parts:
            target = self.read(0, num_frames, size)
            loaded["target_video"] = target
            loaded["reference_image"] = self.reference_image(target, int(reference * facts.frames), size)
            loaded["mouth_mask"] = self.used_mask(settings)
        if REFERENCE_SEQUENCE in parts:
            loaded["reference_video"] = self.read(reference_start(facts), num_frames, size)
        if AUDIO in parts:
            loaded["waveforms"] = self.waveform(facts.frames if LATENTS in parts else None, facts.longest)
        if TEXT in parts:
            loaded["prompts"] = self.prompt
        return loaded

    def reference_image(self, target: Tensor, frame: int, size: Size) -> Tensor:
        """The identity image uint8 [H, W, 3]: the given one, or a frame of the video, whose start is `target`."""
        if self.reference is not None:
            return self.portrait(size)
        if frame < len(target):
            return target[frame].clone()
        return self.read(frame, 1, size)[0]

    def portrait(self, size: Size) -> Tensor:
        """The given identity image, uint8 [H, W, 3]."""
        assert self.reference is not None
        return to_bytes(fit_image(image_to_tensor(load_image(self.reference)), size)).permute(1, 2, 0).contiguous()

    def read(self, start: int, count: int, size: Size) -> Tensor:
        """Frames of the video, uint8 [count, H, W, 3]."""
        return read_frames(self.video, start, count, size)

    def pictures(self, size: Size) -> Iterator[Tensor]:
        """All frames of the video, uint8 [H, W, 3] each."""
        return iter_frames(self.video, size=size)

    def waveform(self, frames: int | None, needed: int) -> Tensor:
        """The sound [n] up to the end of the video's `frames` frames, or all of it.

        Raises:
            ValueError: it is unreadable, silent, or ends well before frame `needed`.
        """
        source = self.audio or self.video
        waveform = speech_waveform(load_sound(source))
        rows = -(-len(waveform) // SAMPLES_PER_FRAME)
        if rows + MISSING_SOUND < needed:
            raise ValueError(
                f"{source}: the sound lasts {rows} video frames, a sample up to {needed}; cut the video to the sound"
            )
        return waveform if frames is None else waveform[: frames * SAMPLES_PER_FRAME]


def target_frames(frames: int, parts: Collection[str]) -> int:
    """How many of a clip's frames samples may have: half of them where the others serve as the reference sequence."""
    return frames // 2 if REFERENCE_SEQUENCE in parts else frames


def reference_start(facts: ClipFacts) -> int:
    """Where the reference sequence starts in the video: so far from the end that the longest sample's one fits."""
    return facts.frames - facts.longest
