"""What `generate` reads: sound, pictures and videos, checked against the checkpoint before anything is encoded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..media.images import ImageSource, Size, load_image, match_size, to_video
from ..media.sound import Sound, SoundSource, add_silence, load_sound, speech_waveform
from ..media.timeline import ChunkPlan, chunk_length, forth_and_back, plan_chunks
from ..media.video import iter_frames, probe_video
from .masks import MaskSource, load_mouth_mask
from .pipeline import OmniAvatarPipeline
from .pixels import image_tensor

logger = logging.getLogger(__name__)

LEADING_SILENCE = 0.3
"""Seconds of silence that upstream puts in front of the speech."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationInputs:
    """The inputs of a video of any length, read and checked."""

    sound: Sound
    """As it goes beside the pictures, with silence in front."""
    waveform: Tensor
    """The same as the speech encoder takes it, float32 [n]."""
    size: Size
    """Height and width of the video."""
    plan: ChunkPlan
    """Which frames and rows of features belong to which chunk."""
    image: ImageSource | None
    """The portrait; None only where a source video has it."""
    source: SourceVideo | None
    """V2V: the video whose mouth is changed."""
    mouth_mask: MaskSource | None
    """V2V: None for the built-in one."""
    pasted: Tensor | None
    """V2V: the mask [1 or F, H, W] outside which the source's own pixels stand; None to paste none."""
    reference_sequence: Tensor | None
    """65 channels: another clip of the person, uint8 [F, H, W, 3]."""

    def pictures(self, places: range) -> Tensor | None:
        """V2V: the source's frames at these places of the finished video, uint8 [F, H, W, 3]."""
        return None if self.source is None else self.source.frames(places)

    def portrait(self) -> ImageSource | None:
        """The identity image: the given one, or the source's first frame."""
        return self.image if self.image is not None or self.source is None else self.source.first_frame()

    def original(self, pictures: Tensor | None) -> Tensor:
        """What a chunk shows, [3, 1 or F, H, W] in [-1, 1]: the portrait, or the source's frames."""
        if pictures is not None:
            return to_video(pictures[None])[0]
        assert self.image is not None
        return image_tensor(self.image, *self.size)[0].unsqueeze(1)


def read_inputs(
    pipe: OmniAvatarPipeline,
    *,
    audio: SoundSource,
    image: ImageSource | None,
    video: str | Path | None,
    mouth_mask: MaskSource | None,
    paste_source: bool,
    reference_video: str | Path | None,
    height: int | None,
    width: int | None,
    max_tokens: int | None,
    overlap: int,
    silence: float | None,
) -> GenerationInputs:
    """Read and check the inputs of `generate`, whose arguments these are; of videos the headers and the second clip.

    Raises:
        ValueError: an input is missing, unreadable or does not fit the checkpoint; the message names it.
    """
    is_v2v = pipe.dit.config.has_masked_video
    _check_sources(pipe, image, video)
    speech = audio if isinstance(audio, Sound) else load_sound(audio)
    sound = add_silence(speech, (0.0 if is_v2v else LEADING_SILENCE) if silence is None else silence)
    size = _size(pipe, image, video, height, width)
    waveform = speech_waveform(sound)
    plan = plan_chunks(
        len(waveform),
        length=chunk_length(*size, max_tokens or pipe.conventions.max_tokens),
        overlap=_overlap(pipe, overlap),
        leading_rows=pipe.conventions.leading_audio_rows,
    )
    source = SourceVideo(video, size) if is_v2v and video is not None else None
    return GenerationInputs(
        sound=sound,
        waveform=waveform,
        size=size,
        plan=plan,
        image=image,
        source=source,
        mouth_mask=mouth_mask,
        pasted=load_mouth_mask(mouth_mask, *size) if source is not None and paste_source else None,
        reference_sequence=_reference_sequence(pipe, source, reference_video, plan, size),
    )


def _check_sources(pipe: OmniAvatarPipeline, image: ImageSource | None, video: str | Path | None) -> None:
    if pipe.dit.config.has_masked_video and video is None:
        raise ValueError("This is a V2V checkpoint, which changes the mouth of a video: give video=, not image= alone.")
    if not pipe.dit.config.has_masked_video:
        if video is not None:
            raise ValueError(
                "This checkpoint animates a portrait (33 channels): give image=; video= needs a V2V checkpoint."
            )
        if image is None:
            raise ValueError("There is no portrait: give image=.")


def _size(
    pipe: OmniAvatarPipeline, image: ImageSource | None, video: str | Path | None, height: int | None, width: int | None
) -> tuple[int, int]:
    if height is not None and width is not None:
        return pipe.check_resize_height_width(height, width)
    if height is not None or width is not None:
        raise ValueError("Give both height= and width=, or neither.")
    if video is not None:
        info = probe_video(video)
        return match_size(info.height, info.width, pipe.conventions.image_sizes)
    assert image is not None  # _check_sources has seen to it
    picture = load_image(image)
    return match_size(picture.height, picture.width, pipe.conventions.image_sizes)


def _overlap(pipe: OmniAvatarPipeline, overlap: int) -> int:
    known = pipe.conventions.prefix_frames
    if known and max(known) == 1 and overlap != 1:
        logger.info("The checkpoint knows prefixes of one frame only: chunks overlap by 1 instead of %d.", overlap)
        return 1
    return overlap


class SourceVideo:
    """Frames of a V2V source by their place in the finished video; a short source runs forth and back."""

    def __init__(self, path: str | Path, size: tuple[int, int]) -> None:
        self.path, self.size = path, size
        self.count = probe_video(path).frames

    def frames(self, places: range) -> Tensor:
        """uint8 [F, H, W, 3]."""
        wanted = [forth_and_back(place, self.count) for place in places]
        first, last = min(wanted), max(wanted)
        window = torch.stack(list(iter_frames(self.path, first, last - first + 1, self.size)))
        return window[torch.tensor(wanted) - first]

    def first_frame(self) -> Image.Image:
        return Image.fromarray(self.frames(range(1))[0].numpy())


def _reference_sequence(
    pipe: OmniAvatarPipeline,
    source: SourceVideo | None,
    reference_video: str | Path | None,
    plan: ChunkPlan,
    size: tuple[int, int],
) -> Tensor | None:
    """The second clip of a 65-channel model: of its own file, or the source's last frames."""
    if not pipe.dit.config.has_reference_sequence or source is None:
        return None
    clip = source if reference_video is None else SourceVideo(reference_video, size)
    if clip.count < plan.length or (clip is source and source.count < 2 * plan.length):
        raise ValueError(
            f"{clip.path} has {clip.count} frames, too few for a reference sequence of {plan.length} frames apart "
            "from the first chunk: give reference_video= with another clip of the person, or lower max_tokens."
        )
    return clip.frames(range(clip.count - plan.length, clip.count))
