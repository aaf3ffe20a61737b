"""A video that a command makes: checked before the model is loaded, then made and told of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..system.messages import counted
from .console import say

if TYPE_CHECKING:
    from ..generation.dub_request import DubRequest
    from ..generation.footage import Footage
    from ..generation.pipeline import OmniAvatarPipeline
    from ..generation.preview import OnPreview
    from ..generation.request import TalkRequest
    from ..generation.result import GeneratedVideo
    from ..model.config import CheckpointConfig


class Make(Protocol):
    """Makes a video with a loaded model; the arguments are those of `generate`."""

    def __call__(
        self, pipe: OmniAvatarPipeline, *, show_progress: bool = True, on_preview: OnPreview | None = None
    ) -> GeneratedVideo: ...


@dataclass(frozen=True)
class Job:
    """A checked request."""

    out: Path
    """The file that it writes."""
    notes: tuple[str, ...]
    """What was found and what may go wrong, in a sentence each, with @name for arguments."""
    make: Make


def checked_job(make_job: Callable[[], Job]) -> Job:
    """The job of a command: its faults name flags, its notes are told.

    Raises:
        ValueError: as `talk_job` and `dub_job`, and where the request itself cannot be made.
    """
    from ..generation.request import RequestError

    try:
        job = make_job()
    except RequestError as error:
        raise ValueError(error.flags()) from error
    for note in job.notes:
        say(RequestError(note).flags())
    return job


def talk_job(request: TalkRequest, facts: CheckpointConfig, show_progress: bool = True) -> Job:
    """A video as `generate` makes it, its files read once to find what is wrong with them.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint.
    """
    from ..generation.dub_request import DubRequest
    from ..generation.inputs import read_inputs
    from ..generation.portrait import portrait_faults

    in_dim = facts.in_dim or 33
    if request.is_dub(in_dim, facts.conventions):
        return dub_job(DubRequest.of_talk(request), facts, show_progress)
    read = read_inputs(request, in_dim, facts.conventions)
    faults: list[str] = []
    if read.image is not None and read.source is None:  # the model may still make something of it
        faults = portrait_faults(read.image, read.size, is_cropped=request.crop_portrait)
    notes = tuple(f"warning: @image {request.image}: {fault}" for fault in faults)

    def make(
        pipe: OmniAvatarPipeline, *, show_progress: bool = True, on_preview: OnPreview | None = None
    ) -> GeneratedVideo:
        from ..generation.generate import generate  # here, as it imports the host

        return generate(pipe, request, show_progress=show_progress, on_preview=on_preview)

    assert request.out is not None  # the command has asked for it
    return Job(Path(request.out), notes, make)


def dub_job(
    request: DubRequest, facts: CheckpointConfig, show_progress: bool = True, footage: Footage | None = None
) -> Job:
    """A video as `dub` makes it, with its faces found, of which a note tells.

    Args:
        request: what is wanted.
        facts: of the checkpoint.
        show_progress: show how far the search for faces is.
        footage: of the video, where it was looked at before.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint, or there is no face to dub.
    """
    from ..generation.dub_inputs import read_dub_inputs

    inputs = read_dub_inputs(
        request, facts.in_dim or 33, facts.conventions, footage=footage, show_progress=show_progress
    )

    def make(
        pipe: OmniAvatarPipeline, *, show_progress: bool = True, on_preview: OnPreview | None = None
    ) -> GeneratedVideo:
        from ..generation.dub import dub

        return dub(pipe, request, inputs=inputs, show_progress=show_progress, on_preview=on_preview)

    assert request.out is not None  # the command has asked for it
    return Job(Path(request.out), (inputs.told(),), make)


def make_video(pipe: OmniAvatarPipeline, job: Job, args: argparse.Namespace) -> None:
    """Make a job's video and tell of it; an interrupt says what is left of it."""
    before = job.out.stat().st_mtime_ns if job.out.exists() else None
    try:
        made = job.make(pipe, show_progress=getattr(args, "show_progress", True))
    except KeyboardInterrupt:
        if job.out.exists() and job.out.stat().st_mtime_ns != before:
            raise KeyboardInterrupt(f"{job.out} has the part that was done and can be played.") from None
        raise KeyboardInterrupt(f"not even the first chunk was done, so {job.out} was not written.") from None
    if pipe.is_first_process:
        print(
            f"{made.path}: {made.frames} frames of {made.sides}, {counted(made.chunks, 'chunk')}, "
            f"{counted(made.steps, 'step')}, {made.seconds:.1f} s"
        )
