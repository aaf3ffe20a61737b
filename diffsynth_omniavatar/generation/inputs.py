"""What `generate` reads: sound, pictures and videos, checked against the checkpoint before anything is encoded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..media.images import Size, load_image, match_size, to_video
from ..media.sound import Sound, add_silence, load_sound, speech_waveform
from ..media.timeline import ChunkPlan, chunk_length, ping_pong, plan_chunks
from ..media.video import iter_frames, probe_video
from ..model.config import Conventions, has_masked_video, has_reference_sequence
from .masks import MaskSource, load_mouth_mask
from .pixels import image_tensor
from .portrait import crop_portrait
from .request import RequestError, TalkRequest, faults_of

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
    image: Image.Image | None
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

    def portrait(self) -> Image.Image | None:
        """The identity image: the given one, or the source's first frame."""
        return self.image if self.image is not None or self.source is None else self.source.first_frame()

    def original(self, pictures: Tensor | None) -> Tensor:
        """What a chunk shows, [3, 1 or F, H, W] in [-1, 1]: the portrait, or the source's frames."""
        if pictures is not None:
            return to_video(pictures[None])[0]
        assert self.image is not None
        return image_tensor(self.image, *self.size)[0].unsqueeze(1)


def read_inputs(request: TalkRequest, in_dim: int, conventions: Conventions) -> GenerationInputs:
    """Read and check what a request names; of videos the headers and the second clip.

    Args:
        request: what is wanted.
        in_dim: input channels of the checkpoint, 33, 49 or 65.
        conventions: of the checkpoint.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint; the message names it.
    """
    request.sampling(conventions.sampling)
    is_v2v = has_masked_video(in_dim)
    image = _portrait(request)
    _check_source(request, image, is_v2v)
    if request.reference_video is not None and not has_reference_sequence(in_dim):
        raise RequestError(f"@reference_video needs a checkpoint with 65 channels; this one has {in_dim}.")
    with faults_of("audio"):
        speech = request.audio if isinstance(request.audio, Sound) else load_sound(request.audio)
    silence = (0.0 if is_v2v else LEADING_SILENCE) if request.silence is None else request.silence
    sound = add_silence(speech, silence)
    size = _size(request, image, conventions)
    if request.crop_portrait and image is not None:
        named = "" if isinstance(request.image, Image.Image) else f" {request.image}"
        with faults_of(f"image{named}"):
            image = crop_portrait(image, size)
    waveform = speech_waveform(sound)
    with faults_of("overlap"):
        plan = plan_chunks(
            len(waveform),
            length=chunk_length(*size, request.max_tokens or conventions.max_tokens),
            overlap=known_overlap(request.overlap, conventions),
            leading_rows=conventions.leading_audio_rows,
        )
    source = None
    if request.video is not None:
        with faults_of("video"):
            source = SourceVideo(request.video, size)
    with faults_of("mouth_mask"):
        mask = load_mouth_mask(request.mouth_mask, *size) if source is not None else None
    return GenerationInputs(
        sound=sound,
        waveform=waveform,
        size=size,
        plan=plan,
        image=image,
        source=source,
        mouth_mask=request.mouth_mask,
        pasted=mask if request.paste_source else None,
        reference_sequence=_reference_sequence(request, source, plan) if has_reference_sequence(in_dim) else None,
    )


def _portrait(request: TalkRequest) -> Image.Image | None:
    if request.image is None:
        return None
    try:
        return load_image(request.image)
    except ValueError as error:
        if not isinstance(request.image, Image.Image) and _is_video(request.image):
            raise RequestError(
                f"@image: {request.image} is a video, wanted a picture; @video takes one with a V2V checkpoint."
            ) from error
        raise RequestError(f"@image: {error}") from error


def _is_video(path: str | Path) -> bool:
    try:
        return probe_video(path).frames > 0
    except (ValueError, OSError):
        return False


def _check_source(request: TalkRequest, image: Image.Image | None, is_v2v: bool) -> None:
    if is_v2v and request.video is None:
        raise RequestError("This is a V2V checkpoint, which changes the mouth of a video: give @video.")
    if is_v2v and request.crop_portrait:
        raise RequestError("@crop_portrait is for the portrait of an I2V checkpoint; this is a V2V one: leave it out.")
    if not is_v2v and request.video is not None:
        raise RequestError(
            "This checkpoint animates a portrait (33 channels): give @image; @video needs a V2V checkpoint."
        )
    if not is_v2v and request.mouth_mask is not None:
        raise RequestError("@mouth_mask needs a V2V checkpoint; this one animates a portrait (33 channels).")
    if not is_v2v and image is None:
        raise RequestError("There is no portrait: give @image.")


def _size(request: TalkRequest, image: Image.Image | None, conventions: Conventions) -> Size:
    if request.height is not None and request.width is not None:
        return request.height, request.width
    if request.video is not None:
        with faults_of("video"):
            info = probe_video(request.video)
        return match_size(info.height, info.width, conventions.image_sizes)
    assert image is not None  # _check_source has seen to it
    return match_size(image.height, image.width, conventions.image_sizes)


def known_overlap(overlap: int, conventions: Conventions) -> int:
    """The overlap that is asked for, or 1 where the checkpoint knows no longer prefix."""
    known = conventions.prefix_frames
    if known and max(known) == 1 and overlap != 1:
        logger.info("The checkpoint knows prefixes of one frame only: chunks overlap by 1 instead of %d.", overlap)
        return 1
    return overlap


class SourceVideo:
    """Frames of a V2V source by their place in the finished video; a short one plays forward and backward in turn."""

    def __init__(self, path: str | Path, size: tuple[int, int]) -> None:
        self.path, self.size = path, size
        self.count = probe_video(path).frames

    def frames(self, places: range) -> Tensor:
        """uint8 [F, H, W, 3]."""
        wanted = [ping_pong(place, self.count) for place in places]
        first, last = min(wanted), max(wanted)
        window = torch.stack(list(iter_frames(self.path, first, last - first + 1, self.size)))
        return window[torch.tensor(wanted) - first]

    def first_frame(self) -> Image.Image:
        return Image.fromarray(self.frames(range(1))[0].numpy())


def _reference_sequence(request: TalkRequest, source: SourceVideo | None, plan: ChunkPlan) -> Tensor | None:
    """The second clip of a 65-channel model: of its own file, or the source's last frames."""
    if source is None:
        return None
    clip = source
    if request.reference_video is not None:
        with faults_of("reference_video"):
            clip = SourceVideo(request.reference_video, source.size)
    if clip.count < plan.length or (clip is source and source.count < 2 * plan.length):
        raise RequestError(
            f"{clip.path} has {clip.count} frames, too few for a reference sequence of {plan.length} frames apart "
            "from the first chunk: give @reference_video with another clip of the person, or lower @max_tokens."
        )
    return clip.frames(range(clip.count - plan.length, clip.count))
