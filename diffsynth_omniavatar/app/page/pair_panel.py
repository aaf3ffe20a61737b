"""The part of the tab Compare in which two checkpoints make the same video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context

from ...generation import dub_request
from .checkpoints import offered_checkpoints
from .dub import order_dub
from .faces_panel import FacesPanel
from .faults import FieldFaults
from .forms import QUIETLY, Form, command_field, kept_by_browser, told_fault
from .markup import plain
from .orders import PRESETS
from .pair import SIDES, order_pair
from .player import lay_out_player, player
from .shown_files import shown_values
from .state import PageApp
from .talk import PROMPT, order_talk
from .video_fields import portrait_field, prompt_field, speech_field
from .video_panel import SCROLL, SECONDS, owner_of, status
from .video_work import VideoWork

EMPTY = '<p class="empty">The two videos appear here.</p>'


class PairPanel:
    """The form, and the two videos side by side.

    Args:
        app: the page.
        dubs: whether the two dub a video, else they make a portrait talk.
    """

    def __init__(self, app: PageApp, dubs: bool) -> None:
        self._app, self._dubs = app, dubs
        self._name = "compare-dub" if dubs else "compare"
        self._faces: FacesPanel | None = None
        self._form = Form()
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                self._lay_out_form()
            with gr.Column(min_width=320):
                self._numbers = kept_by_browser(self._name)
                self._status = gr.HTML(EMPTY, elem_classes="status", elem_id=f"{self._name}-status")
                self._player = lay_out_player(f"{self._name}-player")
                self._cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{self._name}-cancel")
                self._commands = command_field(f"{self._name}-commands", 4, 10)
                self._seen = gr.State("")
                self._timer = gr.Timer(SECONDS, active=False)
        self._outputs = [
            self._numbers,
            self._seen,
            self._timer,
            self._status,
            self._player,
            self._cancel,
            self._commands,
        ]

    def _lay_out_form(self) -> None:
        for side, letter in zip(SIDES, "AB", strict=True):
            with gr.Column(elem_classes="field"):
                self._form.field(
                    side,
                    gr.Dropdown(
                        [],
                        label=f"Checkpoint {letter}",
                        info="A model, a step of a training, or a path in the folders of --data."
                        if letter == "A"
                        else None,
                        allow_custom_value=True,
                        elem_id=f"{self._name}-{letter.lower()}",
                    ),
                )
        if self._dubs:
            self._faces = FacesPanel(self._app, self._form, self._name)
        else:
            portrait_field(self._form, self._name, ["upload"])
        speech_field(self._form, self._name)
        prompt_field(self._form, self._name, dub_request.PROMPT if self._dubs else PROMPT)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=200, elem_classes="field"):
                self._form.field(
                    "preset",
                    gr.Radio(list(PRESETS), value="fast", label="Quality", elem_id=f"{self._name}-preset"),
                )
            with gr.Column(min_width=120, elem_classes="field"):
                self._form.field(
                    "seed", gr.Number(42, label="Seed of both", precision=0, step=1, elem_id=f"{self._name}-seed")
                )
        self._make = gr.Button("Make both videos", variant="primary", elem_id=f"{self._name}-make")
        self._form.general_message()

    def connect(self, tab: Any) -> None:
        """Follow the jobs from when the page is loaded; offer what is there when the tab is opened."""
        fields = self._form.fields
        sides = [fields[side] for side in SIDES]
        faces = [] if self._faces is None else [self._faces.number]
        messages = [] if self._faces is None else [self._faces.message]
        Context.root_block.load(self._offer, sides, sides, **QUIETLY)
        tab.select(self._offer, sides, sides, **QUIETLY)
        both = [*self._outputs, *self._form.inputs]
        Context.root_block.load(self._look_again, [self._numbers], both, **QUIETLY)
        self._timer.tick(self._look, [self._numbers, self._seen], self._outputs, **QUIETLY)
        self._cancel.click(self._stop, [self._numbers, self._seen], self._outputs, **QUIETLY)
        made = self._make.click(
            self._order,
            [*faces, *self._form.inputs],
            [*self._form.messages, *self._outputs, *messages],
            preprocess=False,
            show_progress="minimal",
            show_progress_on=self._status,
            api_visibility="private",
        )
        made.then(None, js=SCROLL % f"{self._name}-status")
        if self._faces is not None:
            self._faces.connect()

    def _offer(self, *chosen: str | None) -> list[Any]:
        offered = offered_checkpoints(self._app, self._dubs)
        defaults = [*offered, None, None][:2]
        return [
            gr.update(choices=offered, value=value or default) for value, default in zip(chosen, defaults, strict=True)
        ]

    def _order(self, request: gr.Request, *given: Any) -> list[Any]:
        app, owner, faces = self._app, owner_of(request), self._faces
        values = list(given)
        look = None if faces is None else faces.find(values.pop(0), request)

        def order(fields: Mapping[str, Any]) -> VideoWork:
            if self._dubs:
                return order_dub(app, owner, look, fields, self._name)
            return order_talk(app, owner, fields, self._name)

        told = [] if faces is None else [told_fault("")]
        try:
            pair = order_pair(app, self._dubs, self._form.values(values), order)
        except FieldFaults as error:
            if faces is not None:
                told = [told_fault(error.faults.pop("video", ""))]
            return [*self._form.told(error), *[gr.skip()] * len(self._outputs), *told]
        return [*self._form.told(None), *self._show(pair, ""), *told]

    def _found(self, numbers: str | None, request: gr.Request) -> list[VideoWork]:
        works = {work.id: work for work in self._app.jobs.of(owner_of(request))}
        named = [works.get(number) for number in (numbers or "").split()]
        return [work for work in named if isinstance(work, VideoWork) and work.order.tab == self._name]

    def _look(self, numbers: str | None, seen: str, request: gr.Request) -> list[Any]:
        return self._show(self._found(numbers, request), seen)

    def _look_again(self, numbers: str | None, request: gr.Request) -> list[Any]:
        """The two jobs, and the form that they were made from."""
        works = self._found(numbers, request)
        if len(works) != len(SIDES):
            return [*self._show([], ""), *self._form.filled({})]
        chosen = {side: work.order.form["model"] for side, work in zip(SIDES, works, strict=True)}
        values = {**works[0].order.form, **chosen}
        return [*self._show(works, ""), *self._form.filled(shown_values(values, self._app.uploads))]

    def _stop(self, numbers: str | None, seen: str, request: gr.Request) -> list[Any]:
        works = self._found(numbers, request)
        for work in reversed(works):  # else the second one begins
            self._app.jobs.stop(work)
        return self._show(works, seen)

    def _show(self, works: Sequence[VideoWork], seen: str) -> list[Any]:
        """Updates for the two jobs; those of what `seen` has shown already are left out."""
        if len(works) != 2:
            return ["", "", gr.Timer(active=False), EMPTY, *[gr.update(visible=False)] * 3]
        queue = self._app.jobs
        told = "".join(
            f"<h4>{letter}: {plain(work.order.model)}</h4>{status(work, queue)}"
            for letter, work in zip("AB", works, strict=True)
        )
        now = " ".join(f"{work.id} {work.state} {work.is_stopping}" for work in works)
        if seen == now:
            return [gr.skip(), gr.skip(), gr.skip(), told, *[gr.skip()] * 3]
        is_over = all(work.is_over for work in works)
        videos = [
            (f"{letter}: {work.order.model}", work.video)
            for letter, work in zip("AB", works, strict=True)
            if work.video is not None
        ]
        return [
            " ".join(work.id for work in works),
            now,
            gr.Timer(active=not is_over),
            told,
            gr.update(value=player(videos, self._app.uploads) if videos else "", visible=bool(videos)),
            gr.update(visible=not is_over),
            gr.update(value="\n".join(work.order.command for work in works), visible=True),
        ]
