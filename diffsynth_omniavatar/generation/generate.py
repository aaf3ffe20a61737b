"""One call from a portrait (or a video) and speech to a video of any length, chunk by chunk."""

from __future__ import annotations

import contextlib
import logging
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..media.clip import ClipWriter
from ..media.timeline import FRAME_RATE, Chunk
from ..media.writer import VideoWriter
from ..system.messages import counted
from .chunk_writer import ChunkWriter
from .chunks import ChunkMaker
from .dub import dub
from .dub_request import DubRequest
from .inputs import GenerationInputs, read_inputs
from .pipeline import OmniAvatarPipeline
from .preview import OnPreview
from .progress import progress
from .request import TalkRequest
from .result import GeneratedVideo
from .speech import encode_speech

logger = logging.getLogger(__name__)


def generate(
    pipe: OmniAvatarPipeline,
    request: TalkRequest | None = None,
    *,
    show_progress: bool = True,
    on_preview: OnPreview | None = None,
    **arguments: Any,
) -> GeneratedVideo:
    """Make a talking video as long as the sound and write it, with the sound, while it is made; without
    `TalkRequest.out` the frames stay in memory.

    A video whose face is not aligned as the checkpoint was trained (`TalkRequest.aligned`) is made by `dub`.

    Memory does not grow with the length. An interrupt leaves a playable file of the chunks that are done. Of several
    processes that make it together (`use_usp`), the first writes it.

    Args:
        pipe: from `load_pipeline` or `from_pretrained`.
        request: what is wanted; or its fields as arguments: prompt, audio, out and image or video, and more
            (`TalkRequest` lists them all).
        show_progress: draw a bar with chunk, step and remaining time.
        on_preview: called after each step with what it has come to, a `preview.Preview`.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint; the message names it.
    """
    started = time.monotonic()
    if request is None:
        request = TalkRequest(**arguments)
    elif arguments:
        raise TypeError(f"generate() got a request and {', '.join(arguments)}: give the request alone")
    if request.is_dub(pipe.dit.config.in_dim, pipe.conventions):
        return dub(pipe, DubRequest.of_talk(request), show_progress=show_progress, on_preview=on_preview)
    inputs = read_inputs(request, pipe.dit.config.in_dim, pipe.conventions)
    size, plan = inputs.size, inputs.plan
    features = encode_speech(pipe, request.audio, inputs.waveform, plan.padded_rows)
    maker = ChunkMaker(pipe, request, size, len(plan.chunks), on_preview)
    steps = maker.sampling.steps
    logger.info(
        "%d frames of %dx%d: %s of %d frames, %s each.",
        plan.frames,
        *size,
        counted(len(plan.chunks), "chunk"),
        plan.length,
        counted(steps, "step"),
    )

    carried: Tensor | None = None
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(progress(len(plan.chunks), steps, show_progress and pipe.is_first_process))
        writer: VideoWriter | ClipWriter | None = None
        if pipe.is_first_process:
            writer = stack.enter_context(_writer(request, inputs))
        for chunk in plan.chunks:
            pictures = inputs.pictures(chunk.frames)
            original = inputs.original(pictures)
            written = None if writer is None else ChunkWriter(writer, chunk.kept, inputs.pasted, original)
            frames = maker.make(
                chunk.index,
                chunk_features(features, chunk),
                image=inputs.portrait(),
                video=pictures,
                original=original,
                reference_sequence=inputs.reference_sequence,
                carried=carried,
                progress_bar_cmd=shown.chunk(),
                on_frames=written,
            )
            carried = maker.carry(frames, plan.overlap)
            if written is not None:
                written.finish()
                shown.wrote(len(chunk.kept))
    return GeneratedVideo(
        None if request.out is None else Path(request.out),
        plan.frames,
        *size,
        len(plan.chunks),
        steps * len(plan.chunks),
        time.monotonic() - started,
        writer.clip() if isinstance(writer, ClipWriter) else None,
    )


def _writer(
    request: TalkRequest, inputs: GenerationInputs
) -> contextlib.AbstractContextManager[VideoWriter | ClipWriter]:
    size, plan = inputs.size, inputs.plan
    delay = plan.leading_rows / FRAME_RATE
    if request.out is None:
        return ClipWriter(plan.frames, *size, Fraction(FRAME_RATE), inputs.sound, delay)
    out = Path(request.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return VideoWriter(out, *size, sound=inputs.sound, sound_delay=delay, crf=request.crf)


def chunk_features(features: Tensor, chunk: Chunk) -> Tensor:
    """The rows [L, C] of a chunk out of the features [P, C] of the whole sound."""
    rows = features[chunk.feature_rows.start : chunk.feature_rows.stop]
    return torch.cat([rows.new_zeros(chunk.zero_rows, rows.shape[1]), rows])
