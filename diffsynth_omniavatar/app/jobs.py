"""A video that a command makes: checked before the model is loaded, then made and told of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..system.messages import counted
from .console import say

if TYPE_CHECKING:
    from PIL import Image

    from ..generation.dub_request import DubRequest
    from ..generation.pipeline import OmniAvatarPipeline
    from ..generation.request import TalkRequest
    from ..generation.result import GeneratedVideo
    from ..media.images import Size
    from ..model.config import CheckpointConfig


@dataclass(frozen=True)
class Job:
    """A checked request."""

    out: Path
    """The file that it writes."""
    make: Callable[[OmniAvatarPipeline, bool], GeneratedVideo]
    """Makes it; the second argument is whether progress is shown."""


def talk_job(request: TalkRequest, facts: CheckpointConfig, show_progress: bool = True) -> Job:
    """A video as `generate` makes it, its files read once to find what is wrong with them.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint.
    """
    from ..generation.dub_request import DubRequest
    from ..generation.inputs import read_inputs

    in_dim = facts.in_dim or 33
    if request.is_dub(in_dim, facts.conventions):
        return dub_job(DubRequest.of_talk(request), facts, show_progress)
    read = read_inputs(request, in_dim, facts.conventions)
    if read.image is not None and read.source is None:
        _warn_of_portrait(request, read.image, read.size)

    def make(pipe: OmniAvatarPipeline, show_progress: bool) -> GeneratedVideo:
        from ..generation.generate import generate

        return generate(pipe, request, show_progress=show_progress)

    return Job(Path(request.out), make)


def _warn_of_portrait(request: TalkRequest, image: Image.Image, size: Size) -> None:
    """Tell what is wrong with a portrait's face; the model may still make something of it."""
    from ..generation.portrait import portrait_faults
    from ..generation.request import RequestError

    for fault in portrait_faults(image, size, is_cropped=request.crop_portrait):
        say(f"warning: --image {request.image}: {RequestError(fault).flags()}")


def dub_job(request: DubRequest, facts: CheckpointConfig, show_progress: bool = True) -> Job:
    """A video as `dub` makes it, with its faces found, of which a line tells.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint, or there is no face to dub.
    """
    from ..generation.dub_inputs import read_dub_inputs

    inputs = read_dub_inputs(request, facts.in_dim or 33, facts.conventions, show_progress=show_progress)
    say(inputs.told())

    def make(pipe: OmniAvatarPipeline, show_progress: bool) -> GeneratedVideo:
        from ..generation.dub import dub

        return dub(pipe, request, inputs=inputs, show_progress=show_progress)

    return Job(Path(request.out), make)


def make_video(pipe: OmniAvatarPipeline, job: Job, args: argparse.Namespace) -> None:
    """Make a job's video and tell of it; an interrupt says what is left of it."""
    before = job.out.stat().st_mtime_ns if job.out.exists() else None
    try:
        made = job.make(pipe, getattr(args, "show_progress", True))
    except KeyboardInterrupt:
        if job.out.exists() and job.out.stat().st_mtime_ns != before:
            raise KeyboardInterrupt(f"{job.out} has the part that was done and can be played.") from None
        raise KeyboardInterrupt(f"not even the first chunk was done, so {job.out} was not written.") from None
    if pipe.is_first_process:
        print(
            f"{made.path}: {made.frames} frames of {made.sides}, {counted(made.chunks, 'chunk')}, "
            f"{counted(made.steps, 'step')}, {made.seconds:.1f} s"
        )
