"""The part of a tab that follows a video: its place in the queue, what it will show, the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context

from ...system.messages import counted
from .forms import QUIETLY, Form, command_field, kept_by_browser
from .markup import plain
from .shown_files import shown_file, shown_values
from .state import PageApp
from .video_work import VideoWork, moving_picture
from .work_queue import WorkQueue

SECONDS = 1.0
"""Between two looks at a job."""

SCROLL = """() => {
    const fault = [...document.querySelectorAll('.fault [role=alert]')].find(one => one.checkVisibility());
    (fault || document.getElementById('%s')).scrollIntoView({block: fault ? 'center' : 'nearest'});
}"""
"""Brings the first fault or how the job stands into view; on a phone both are far from the button."""

Shown = list[Any]
"""Updates of a panel's components."""


def owner_of(request: gr.Request) -> str:
    """Who asks: the name that was logged in with, or ""."""
    return request.username or ""


class VideoPanel:
    """The components that show one video from the queue to its end.

    The server owns the job. The browser keeps the job's number, so that a page that is loaded again shows it again.

    Args:
        app: the page.
        name: of the tab.
        form: whose fields are filled in again when the page is loaded again.
    """

    def __init__(self, app: PageApp, name: str, form: Form) -> None:
        self._queue: WorkQueue = app.jobs
        self._uploads = app.uploads
        self._name, self._form = name, form
        self.number = kept_by_browser(name)
        self._seen = gr.State("")
        self._timer = gr.Timer(SECONDS, active=False)
        self._status = gr.HTML(EMPTY, elem_classes="status", elem_id=f"{name}-status")
        self._preview = gr.HTML("", visible=False, elem_classes="preview")
        self._video = gr.Video(
            label="Result", interactive=False, visible=False, elem_id=f"{name}-result", buttons=["download"]
        )
        with gr.Row():
            self._cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{name}-cancel")
            self._download = gr.DownloadButton("Download the video", visible=False, elem_id=f"{name}-download")
        self._facts = gr.HTML("", visible=False, elem_classes="facts")
        self._command = command_field(f"{name}-command")
        self._others = gr.Dropdown(
            [], label="Videos of this page", visible=False, filterable=False, interactive=True, elem_id=f"{name}-videos"
        )

    @property
    def outputs(self) -> list[Any]:
        """What `show` updates, in its order."""
        return [
            self.number,
            self._seen,
            self._timer,
            self._status,
            self._preview,
            self._video,
            self._cancel,
            self._download,
            self._facts,
            self._command,
            self._others,
        ]

    def made_by(
        self, button: Any, order: Callable[..., Any], inputs: Sequence[Any] = (), messages: Sequence[Any] = ()
    ) -> None:
        """Let a button start a job: the form is sent, and what is wrong, or how the job stands, brought into view.

        Args:
            button: the component.
            order: gets the values of `inputs` and the form's; gives updates of the form's messages, of `outputs`, and
                of `messages`.
            inputs: components beside the form's.
            messages: likewise.
        """
        made = button.click(
            order,
            [*inputs, *self._form.inputs],
            [*self._form.messages, *self.outputs, *messages],
            preprocess=False,
            show_progress="minimal",
            show_progress_on=self._status,
            api_visibility="private",
        )
        made.then(None, js=SCROLL % f"{self._name}-status")

    def connect(self) -> None:
        """Follow the job from when the page is loaded; cancel; change to another one."""
        both = [*self.outputs, *self._form.inputs]
        Context.root_block.load(self._look_again, [self.number], both, **QUIETLY)
        self._timer.tick(self._look, [self.number, self._seen], self.outputs, **QUIETLY)
        self._cancel.click(self._stop, [self.number, self._seen], self.outputs, **QUIETLY)
        self._others.input(self._change, [self._others], self.outputs, **QUIETLY)

    def show(self, work: VideoWork | None, seen: str = "") -> Shown:
        """Updates for a job; those of what `seen` has shown already are left out."""
        if work is None:
            return self._nothing()
        now = f"{work.id} {work.state} {work.is_stopping}"
        preview = f"{now} {work.steps_done}"
        if seen == preview:
            return [gr.skip(), gr.skip(), gr.skip(), status(work, self._queue), *[gr.skip()] * 7]
        moving = (
            gr.update(value=_preview(work), visible=True)
            if work.preview is not None and not work.is_over
            else gr.update(value="", visible=False)
        )
        start = [work.id, preview, gr.Timer(active=not work.is_over), status(work, self._queue), moving]
        if seen.startswith(f"{now} "):
            return [gr.skip(), preview, gr.skip(), *start[3:], *[gr.skip()] * 6]
        video = None if work.video is None else shown_file(work.video, self._uploads)
        return [
            *start,
            gr.update(value=video, visible=video is not None),
            gr.update(visible=not work.is_over, interactive=not work.is_stopping),
            gr.update(value=video, visible=video is not None),
            gr.update(value=_facts(work), visible=True),
            gr.update(value=work.order.command, visible=True),
            self._choices(work),
        ]

    def _nothing(self) -> Shown:
        hidden = [gr.update(visible=False)] * 7
        return ["", "", gr.Timer(active=False), EMPTY, *hidden]

    def _choices(self, work: VideoWork) -> Any:
        works = self._works(work.owner)
        choices = [(f"{one.state}: {one.order.title[:60]}", one.id) for one in reversed(works)]
        return gr.update(choices=choices, value=work.id, visible=len(works) > 1)

    def _works(self, owner: str) -> list[VideoWork]:
        return [work for work in self._queue.of(owner) if isinstance(work, VideoWork) and work.order.tab == self._name]

    def _found(self, owner: str, number: str | None) -> VideoWork | None:
        return next((work for work in self._works(owner) if work.id == number), None)

    def _look(self, number: str | None, seen: str, request: gr.Request) -> Shown:
        return self.show(self._found(owner_of(request), number), seen)

    def _look_again(self, number: str | None, request: gr.Request) -> Shown:
        """The job of that number, or the one that is being made, for a browser that knows none; and its form."""
        owner = owner_of(request)
        running = next((work for work in self._works(owner) if not work.is_over), None)
        work = self._found(owner, number) or running
        values = {} if work is None else work.order.form
        return [*self.show(work), *self._form.filled(shown_values(values, self._uploads))]

    def _change(self, number: str | None, request: gr.Request) -> Shown:
        return self.show(self._found(owner_of(request), number))

    def _stop(self, number: str | None, seen: str, request: gr.Request) -> Shown:
        work = self._found(owner_of(request), number)
        if work is not None:
            self._queue.stop(work)
        return self.show(work, seen)


EMPTY = '<p class="empty">The video appears here.</p>'


def status(work: VideoWork, queue: WorkQueue) -> str:
    """Where a job is, as HTML."""
    if work.state == "waiting":
        ahead = queue.position(work)
        told = f"Waiting: {counted(ahead, 'job')} before this one." if ahead else "Starting."
        return f'<p role="status">{told}</p>'
    if work.state == "failed":
        return f'<p role="alert" class="failed">{plain(work.fault)}</p>'
    if work.state == "stopped":
        kept = "; the part that was done is below" if work.video else " before its first chunk was done"
        return f'<p role="status">Cancelled{kept}.</p>'
    if work.made is not None and work.state == "done":
        made = work.made
        return f'<p role="status" class="done">Done in {clock(made.seconds)}: {made.frames} frames of {made.sides}.</p>'
    stage = "Stopping after this step" if work.is_stopping else work.stage
    left = work.seconds_left
    told = "" if left is None else f' <span class="left">about {clock(left)} left</span>'
    share = f"{100 * work.part_done:.0f}"
    return (
        f'<p role="status">{plain(stage)}{told}</p>'
        f'<progress max="100" value="{share}" aria-label="Progress of the video">{share} %</progress>'
    )


def clock(seconds: float) -> str:
    """A time in words that are short: 7 s, 2:05 min."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02d} min"


def _preview(work: VideoWork) -> str:
    assert work.preview is not None
    return (
        f'<img src="{moving_picture(work.preview)}" alt="Preview: what chunk {work.preview.chunk} of the video will '
        f'show, after step {work.preview.step}"><p>A rough preview of the running chunk.</p>'
    )


def _facts(work: VideoWork) -> str:
    """Model, LoRAs and seed, and what the check has to say."""
    loras = "".join(f", {plain(file.name)} at {strength:g}" for file, strength in work.order.loras)
    notes = "".join(f"<li>{plain(note)}</li>" for note in work.order.notes)
    return f"<p>Model {plain(work.order.model)}{loras} · seed {work.order.seed}</p>" + (
        f"<ul>{notes}</ul>" if notes else ""
    )
