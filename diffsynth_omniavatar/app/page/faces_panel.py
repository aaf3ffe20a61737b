"""The part of Dub and Compare that shows the faces of a video, to choose from."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

from .dub import order_look
from .faults import FieldFaults
from .forms import QUIETLY, Form, kept_by_browser, told_fault
from .look import Look
from .shown_files import shown_copy
from .state import PageApp
from .uploads import VIDEO
from .video_panel import SECONDS, owner_of


class FacesPanel:
    """The faces of the video that was sent: searched for, drawn, chosen from.

    Args:
        app: the page.
        form: gets the field `face`.
        name: of the tab.
    """

    def __init__(self, app: PageApp, form: Form, name: str) -> None:
        self._app = app
        with gr.Column(elem_classes="field"):
            self.video = gr.Video(
                label="Video",
                sources=["upload"],
                height=280,
                elem_id=f"{name}-video",
                elem_classes=VIDEO.css,
                buttons=[],
            )
            self.message = gr.HTML("", visible=False, elem_classes="fault", elem_id=f"{name}-video-message")
        self.number = kept_by_browser(f"{name}-look")
        self._timer = gr.Timer(SECONDS, active=False)
        self._status = gr.HTML("", visible=False, elem_classes="status")
        self._sheet = gr.Image(
            show_label=False,
            interactive=False,
            visible=False,
            elem_id=f"{name}-faces",
            buttons=["fullscreen"],
            alt_text="Pictures of the video with a numbered box around each face",
        )
        with gr.Column(elem_classes="field"):
            self._face = gr.Radio(
                [], label="Whose mouth: choose a box or a line", visible=False, elem_id=f"{name}-face"
            )
            self._face.preprocess = lambda face: face  # which faces there are is looked up
            form.field("face", self._face)

    @property
    def _outputs(self) -> list[Any]:
        return [self.number, self._timer, self.message, self._status, self._sheet, self._face]

    def connect(self) -> None:
        """Look for faces as soon as a video is there; show them again when the page is loaded again."""
        self.video.change(self._sent, [self.video, self.number], self._outputs, **QUIETLY)
        self._timer.tick(self._look, [self.number], self._outputs, **QUIETLY)
        self._face.input(self._chosen, [self.number, self._face], None, **QUIETLY)
        self._sheet.select(self._clicked, [self.number], [self._face], **QUIETLY)
        Context.root_block.load(self._look_again, [self.number], [*self._outputs, self.video], **QUIETLY)

    def find(self, number: str | None, request: gr.Request) -> Look | None:
        """Somebody's video."""
        look = self._app.looks.find(owner_of(request), number or "")
        return look if isinstance(look, Look) else None

    def _sent(self, upload: str | None, number: str | None, request: gr.Request) -> list[Any]:
        before = self.find(number, request)
        if before is not None:
            if upload and before.shows(upload):
                return self._shown(before)
            self._app.looks.stop(before)
        if not upload:
            return self._shown(None)
        try:
            return self._shown(order_look(self._app, owner_of(request), upload))
        except FieldFaults as error:
            nothing = self._shown(None)
            nothing[self._outputs.index(self.message)] = told_fault("; ".join(error.faults.values()))
            return nothing

    def _look(self, number: str | None, request: gr.Request) -> list[Any]:
        return self._shown(self.find(number, request))

    def _look_again(self, number: str | None, request: gr.Request) -> list[Any]:
        look = self.find(number, request)
        is_there = look is not None and look.video.is_file()
        video = str(shown_copy(look.video, self._app.uploads)) if look is not None and is_there else gr.skip()
        return [*self._shown(look), video]

    def _shown(self, look: Look | None) -> list[Any]:
        hidden = gr.update(visible=False)
        if look is None or look.state == "stopped":
            return ["", gr.Timer(active=False), told_fault(""), hidden, hidden, gr.update(visible=False, value=None)]
        if look.state == "failed":
            return [look.id, gr.Timer(active=False), told_fault(look.fault), hidden, hidden, hidden]
        if not look.is_over:
            status = gr.update(value=_progress(look, self._app.looks.position(look)), visible=True)
            return [look.id, gr.Timer(active=True), told_fault(""), status, hidden, hidden]
        assert look.sheet is not None
        choices = look.choices()
        face = look.face or choices[0][1]
        return [
            look.id,
            gr.Timer(active=False),
            told_fault(""),
            hidden,
            gr.update(value=look.sheet.image, visible=True),
            gr.update(choices=choices, value=face, visible=True),
        ]

    def _chosen(self, number: str | None, face: str | None, request: gr.Request) -> None:
        """Keep the choice for a page that is loaded again."""
        look = self.find(number, request)
        if look is not None and face in [value for _, value in look.choices()]:
            look.face = str(face)

    def _clicked(self, number: str | None, event: gr.SelectData, request: gr.Request) -> Any:
        look = self.find(number, request)
        if look is None or look.sheet is None:
            return gr.skip()
        face = look.sheet.face_at(*event.index)
        if face is None:
            return gr.skip()
        look.face = str(face)
        return look.face


def _progress(look: Look, ahead: int) -> str:
    if look.state == "waiting":
        return f'<p role="status">Looking for faces: {ahead} before this video.</p>'
    told = f": {look.seconds_done} of {look.seconds} s" if look.seconds else ""
    return (
        f'<p role="status">Looking for faces{told}</p>'
        f'<progress max="{look.seconds or 1}" value="{look.seconds_done}" aria-label="Search for faces"></progress>'
    )
