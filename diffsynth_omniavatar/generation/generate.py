"""One call from a portrait (or a video) and speech to a video of any length, chunk by chunk."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from ..media.images import ImageSource, load_image, match_size, to_video
from ..media.sound import Sound, SoundSource, add_silence, load_sound, speech_waveform
from ..media.timeline import DEFAULT_OVERLAP, FRAME_RATE, Chunk, ChunkPlan, chunk_length, forth_and_back, plan_chunks
from ..media.video import iter_frames, probe_video
from ..media.writer import VideoWriter
from . import colours
from .masks import MaskSource, load_mouth_mask, paste_outside_mouth
from .pipeline import OmniAvatarPipeline
from .pixels import image_tensor

logger = logging.getLogger(__name__)

LEADING_SILENCE = 0.3
"""Seconds of silence that upstream puts in front of the speech."""


@dataclass(frozen=True)
class GeneratedVideo:
    """What `generate` made."""

    path: Path
    frames: int
    height: int
    width: int
    chunks: int
    steps: int
    seconds: float
    """Time it took."""


def generate(
    pipe: OmniAvatarPipeline,
    *,
    prompt: str,
    audio: SoundSource,
    out: str | Path,
    image: ImageSource | None = None,
    video: str | Path | None = None,
    negative_prompt: str | None = None,
    mouth_mask: MaskSource | None = None,
    paste_source: bool = True,
    reference_video: str | Path | None = None,
    height: int | None = None,
    width: int | None = None,
    max_tokens: int | None = None,
    overlap: int = DEFAULT_OVERLAP,
    match_colours: bool | None = None,
    silence: float | None = None,
    steps: int | None = None,
    cfg_scale: float | None = None,
    audio_cfg_scale: float | None = None,
    sigma_shift: float | None = None,
    seed: int = 42,
    tiled: bool | None = None,
    tea_cache_l1_thresh: float | None = None,
    tea_cache_model_id: str | None = None,
    crf: int = 15,
    show_progress: bool = True,
) -> GeneratedVideo:
    """Make a talking video as long as the sound and write it, with the sound, while it is made.

    Memory does not grow with the length. An interrupt leaves a playable file of the chunks that are done. Of several
    processes that make it together (`use_usp`), the first writes it.

    Args:
        pipe: from `from_pretrained`.
        prompt, negative_prompt: text, encoded once.
        audio: the speech (file, `Sound`).
        out: the .mp4 file to write.
        image: the portrait. V2V: the identity image, by default the video's first frame.
        video: V2V: the video whose mouth is changed. One that is shorter than the sound runs forth and back.
        mouth_mask: V2V: see `masks.load_mouth_mask`.
        paste_source: V2V: outside the mouth the source's own pixels, not what the VAE makes of them.
        reference_video: 65 channels: another clip of the person, by default another part of `video`.
        height, width: None for the trained size nearest in shape.
        max_tokens: length of a chunk: frames * height * width / 1024; None for the trained length.
        overlap: frames that each chunk takes over from the one before, 1 + 4n.
        match_colours: give each chunk the colours of the portrait or the source video, against drift in long videos;
            see `colours.match_colours`.
        silence: seconds of silence in front; None for 0.3, and for V2V 0.
        steps, cfg_scale, audio_cfg_scale, sigma_shift, tiled, tea_cache_l1_thresh, tea_cache_model_id: see
            `OmniAvatarPipeline.__call__`.
            None for negative_prompt, match_colours, steps, cfg_scale, audio_cfg_scale and sigma_shift takes what the
            checkpoint's config.json says (`Conventions.sampling`), or else upstream's values.
        seed: chunk k starts from the noise of seed + k.
        crf: quality of the H.264 file, 13 to 18 look like the original.
        show_progress: draw a bar with chunk, step and remaining time.

    Raises:
        ValueError: an input is missing, unreadable or does not fit the checkpoint; the message names it.
    """
    started = time.monotonic()
    out = Path(out)
    is_v2v = pipe.dit.config.has_masked_video
    _check_sources(pipe, image, video)
    sampling = pipe.conventions.sampling.with_given(
        negative_prompt=negative_prompt,
        match_colours=match_colours,
        steps=steps,
        cfg_scale=cfg_scale,
        audio_cfg_scale=audio_cfg_scale,
        sigma_shift=sigma_shift,
    )
    sound = add_silence(_load(audio), (0.0 if is_v2v else LEADING_SILENCE) if silence is None else silence)
    size = _size(pipe, image, video, height, width)
    waveform = speech_waveform(sound)
    plan = plan_chunks(
        len(waveform),
        length=chunk_length(*size, max_tokens or pipe.conventions.max_tokens),
        overlap=_overlap(pipe, overlap),
        leading_rows=pipe.conventions.leading_audio_rows,
    )
    source = _SourceVideo(video, size) if is_v2v and video is not None else None
    pasted = load_mouth_mask(mouth_mask, *size) if source is not None and paste_source else None
    reference = _reference_sequence(pipe, source, reference_video, plan, size)
    features = pipe.encode_speech(waveform, plan.padded_rows)
    prompt_embeds = pipe.encode_prompt(prompt)
    negative_prompt_embeds = pipe.encode_prompt(sampling.negative_prompt) if sampling.cfg_scale != 1.0 else None
    logger.info(
        "%d frames of %dx%d in %d chunk(s) of %d frames, %d steps each.",
        plan.frames,
        *size,
        len(plan.chunks),
        plan.length,
        sampling.steps,
    )

    delay = plan.leading_rows / FRAME_RATE
    carried: Tensor | None = None
    with (
        _progress(len(plan.chunks), sampling.steps, show_progress and pipe.is_first_process) as progress,
        VideoWriter(out, *size, sound=sound, sound_delay=delay, crf=crf)
        if pipe.is_first_process
        else contextlib.nullcontext() as writer,
    ):
        for chunk in plan.chunks:
            pictures = None if source is None else source.frames(chunk.frames)
            frames = pipe(
                input_image=image if image is not None or source is None else source.first_frame(),
                audio_features=chunk_features(features, chunk),
                input_video=pictures,
                mouth_mask=mouth_mask,
                reference_video=reference,
                prefix_video=carried,
                height=size[0],
                width=size[1],
                num_frames=plan.length,
                num_inference_steps=sampling.steps,
                cfg_scale=sampling.cfg_scale,
                audio_cfg_scale=sampling.audio_cfg_scale,
                sigma_shift=sampling.sigma_shift,
                seed=seed + chunk.index,
                tiled=tiled,
                tea_cache_l1_thresh=tea_cache_l1_thresh,
                tea_cache_model_id=tea_cache_model_id,
                output_type="floatpoint",
                progress_bar_cmd=progress(chunk.index),
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
            ).float()
            if sampling.match_colours or pasted is not None:
                original = _original(image, pictures, size)
            if sampling.match_colours:
                frames = colours.match_colours(frames, original)
            carried = frames[:, plan.length - plan.overlap :].clamp(-1, 1) if pipe.conventions.prefix_frames else None
            if writer is not None:
                if pasted is not None:
                    frames = paste_outside_mouth(frames, original, pasted)
                writer.write(frames[:, chunk.kept.start : chunk.kept.stop].permute(1, 2, 3, 0))
    seconds = time.monotonic() - started
    return GeneratedVideo(out, plan.frames, *size, len(plan.chunks), sampling.steps * len(plan.chunks), seconds)


def chunk_features(features: Tensor, chunk: Chunk) -> Tensor:
    """The rows [L, C] of a chunk out of the features [P, C] of the whole sound."""
    rows = features[chunk.feature_rows.start : chunk.feature_rows.stop]
    return torch.cat([rows.new_zeros(chunk.zero_rows, rows.shape[1]), rows])


def _load(audio: SoundSource) -> Sound:
    return audio if isinstance(audio, Sound) else load_sound(audio)


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
    picture = load_image(image)  # type: ignore[arg-type]  # _check_sources has seen to it
    return match_size(picture.height, picture.width, pipe.conventions.image_sizes)


def _original(image: ImageSource | None, pictures: Tensor | None, size: tuple[int, int]) -> Tensor:
    """What a chunk shows, [3, 1 or F, H, W] in [-1, 1]: the portrait, or the source's frames."""
    if pictures is not None:
        return to_video(pictures[None])[0]
    return image_tensor(image, *size)[0].unsqueeze(1)  # type: ignore[arg-type]  # as in _size


def _overlap(pipe: OmniAvatarPipeline, overlap: int) -> int:
    known = pipe.conventions.prefix_frames
    if known and max(known) == 1 and overlap != 1:
        logger.info("The checkpoint knows prefixes of one frame only: chunks overlap by 1 instead of %d.", overlap)
        return 1
    return overlap


class _SourceVideo:
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

    def first_frame(self) -> Any:
        from PIL import Image

        return Image.fromarray(self.frames(range(1))[0].numpy())


def _reference_sequence(
    pipe: OmniAvatarPipeline,
    source: _SourceVideo | None,
    reference_video: str | Path | None,
    plan: ChunkPlan,
    size: tuple[int, int],
) -> Tensor | None:
    """The second clip of a 65-channel model: of its own file, or the source's last frames."""
    if not pipe.dit.config.has_reference_sequence or source is None:
        return None
    clip = source if reference_video is None else _SourceVideo(reference_video, size)
    if clip.count < plan.length or (clip is source and source.count < 2 * plan.length):
        raise ValueError(
            f"{clip.path} has {clip.count} frames, too few for a reference sequence of {plan.length} frames apart "
            "from the first chunk: give reference_video= with another clip of the person, or lower max_tokens."
        )
    return clip.frames(range(clip.count - plan.length, clip.count))


@contextlib.contextmanager
def _progress(
    chunks: int, steps: int, show: bool
) -> Iterator[Callable[[int], Callable[[Iterable[Any]], Iterator[Any]]]]:
    """Gives, for each chunk, what the host takes as `progress_bar_cmd`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as bar:
        task = bar.add_task("chunk 1", total=chunks * steps)

        def for_chunk(index: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
            def steps_of(timesteps: Iterable[Any]) -> Iterator[Any]:
                bar.update(task, description=f"chunk {index + 1}/{chunks}")
                for timestep in timesteps:
                    yield timestep
                    bar.advance(task)

            return steps_of

        yield for_chunk
