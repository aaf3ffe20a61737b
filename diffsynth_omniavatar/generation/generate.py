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

from ..media.images import ImageSource
from ..media.sound import SoundSource
from ..media.timeline import DEFAULT_OVERLAP, FRAME_RATE, Chunk
from ..media.writer import VideoWriter
from . import colours
from .inputs import read_inputs
from .masks import MaskSource, paste_outside_mouth
from .pipeline import OmniAvatarPipeline

logger = logging.getLogger(__name__)


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
    inputs = read_inputs(
        pipe,
        audio=audio,
        image=image,
        video=video,
        mouth_mask=mouth_mask,
        paste_source=paste_source,
        reference_video=reference_video,
        height=height,
        width=width,
        max_tokens=max_tokens,
        overlap=overlap,
        silence=silence,
    )
    size, plan = inputs.size, inputs.plan
    sampling = pipe.conventions.sampling.with_given(
        negative_prompt=negative_prompt,
        match_colours=match_colours,
        steps=steps,
        cfg_scale=cfg_scale,
        audio_cfg_scale=audio_cfg_scale,
        sigma_shift=sigma_shift,
    )
    features = pipe.encode_speech(inputs.waveform, plan.padded_rows)
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
        VideoWriter(out, *size, sound=inputs.sound, sound_delay=delay, crf=crf)
        if pipe.is_first_process
        else contextlib.nullcontext() as writer,
    ):
        for chunk in plan.chunks:
            pictures = inputs.pictures(chunk.frames)
            frames = pipe(
                input_image=inputs.portrait(),
                audio_features=chunk_features(features, chunk),
                input_video=pictures,
                mouth_mask=inputs.mouth_mask,
                reference_video=inputs.reference_sequence,
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
            if sampling.match_colours or inputs.pasted is not None:
                original = inputs.original(pictures)
            if sampling.match_colours:
                frames = colours.match_colours(frames, original)
            carried = frames[:, plan.length - plan.overlap :].clamp(-1, 1) if pipe.conventions.prefix_frames else None
            if writer is not None:
                if inputs.pasted is not None:
                    frames = paste_outside_mouth(frames, original, inputs.pasted)
                writer.write(frames[:, chunk.kept.start : chunk.kept.stop].permute(1, 2, 3, 0))
    seconds = time.monotonic() - started
    return GeneratedVideo(out, plan.frames, *size, len(plan.chunks), sampling.steps * len(plan.chunks), seconds)


def chunk_features(features: Tensor, chunk: Chunk) -> Tensor:
    """The rows [L, C] of a chunk out of the features [P, C] of the whole sound."""
    rows = features[chunk.feature_rows.start : chunk.feature_rows.stop]
    return torch.cat([rows.new_zeros(chunk.zero_rows, rows.shape[1]), rows])


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
