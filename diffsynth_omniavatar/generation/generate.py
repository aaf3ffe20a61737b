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
from torch import Tensor

from ..media.timeline import FRAME_RATE, Chunk
from ..media.writer import VideoWriter
from ..system.progress import progress_bar
from . import colours
from .inputs import read_inputs
from .masks import paste_outside_mouth
from .pipeline import OmniAvatarPipeline
from .request import TalkRequest

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
    pipe: OmniAvatarPipeline, request: TalkRequest | None = None, *, show_progress: bool = True, **arguments: Any
) -> GeneratedVideo:
    """Make a talking video as long as the sound and write it, with the sound, while it is made.

    Memory does not grow with the length. An interrupt leaves a playable file of the chunks that are done. Of several
    processes that make it together (`use_usp`), the first writes it.

    Args:
        pipe: from `load_pipeline` or `from_pretrained`.
        request: what is wanted; or its fields as arguments: prompt, audio, out and image or video, and more
            (`TalkRequest` lists them all).
        show_progress: draw a bar with chunk, step and remaining time.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint; the message names it.
    """
    started = time.monotonic()
    if request is None:
        request = TalkRequest(**arguments)
    elif arguments:
        raise TypeError(f"generate() got a request and {', '.join(arguments)}: give the request alone")
    inputs = read_inputs(request, pipe.dit.config.in_dim, pipe.conventions)
    size, plan = inputs.size, inputs.plan
    sampling = request.sampling(pipe.conventions.sampling)
    features = pipe.encode_speech(inputs.waveform, plan.padded_rows)
    prompt_embeds = pipe.encode_prompt(request.prompt)
    negative_prompt_embeds = pipe.encode_prompt(sampling.negative_prompt) if sampling.cfg_scale != 1.0 else None
    logger.info(
        "%d frames of %dx%d: %d chunks of %d frames, %d steps each.",
        plan.frames,
        *size,
        len(plan.chunks),
        plan.length,
        sampling.steps,
    )

    out = Path(request.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    delay = plan.leading_rows / FRAME_RATE
    carried: Tensor | None = None
    with (
        _progress(len(plan.chunks), sampling.steps, show_progress and pipe.is_first_process) as progress,
        VideoWriter(out, *size, sound=inputs.sound, sound_delay=delay, crf=request.crf)
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
                seed=request.seed + chunk.index,
                tiled=request.tiled,
                tea_cache_l1_thresh=request.tea_cache_l1_thresh,
                tea_cache_model_id=request.tea_cache_model_id,
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
    """Gives, for each chunk, what the host takes as `progress_bar_cmd`: a bar on a terminal, else a line a chunk."""
    with progress_bar("steps", show) as bar:
        task = bar.add_task("chunk 1", total=chunks * steps)

        def for_chunk(index: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
            def steps_of(timesteps: Iterable[Any]) -> Iterator[Any]:
                bar.update(task, description=f"chunk {index + 1}/{chunks}")
                if show and bar.disable:
                    logger.info("Chunk %d of %d.", index + 1, chunks)
                for timestep in timesteps:
                    yield timestep
                    bar.advance(task)

            return steps_of

        yield for_chunk
