"""The tab Dub: somebody in a video says something else."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

from ...generation.dub_request import EXTENSIONS, PROMPT
from .dub import order_dub, order_look
from .examples import dub_example
from .faults import FieldFaults
from .forms import QUIETLY, Form, kept_by_browser, told_fault
from .look import Look
from .orders import ADVANCED
from .shown_files import shown_copy
from .state import PageApp
from .video_fields import model_and_preset, prompt_field, speech_field
from .video_panel import SECONDS, VideoPanel, owner_of

KEPT = [("nothing", "no"), ("all, 20 dB quieter", "-20dB"), ("between the words", "gaps")]
EXTENDED = {"loop": "play back and forth", "hold": "hold the last picture", "stop": "end with the video"}


def dub_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    form = Form()
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            video = gr.Video(label="Video", sources=["upload"], height=280, elem_id="dub-video", buttons=[])
            faces = FacesPanel(app, form, video)
            example = gr.Button("Fill in a drawn example", size="sm", elem_id="dub-example")
            speech_field(form, "dub")
            prompt_field(form, "dub", PROMPT)
            with gr.Row(equal_height=False):
                with gr.Column(min_width=200, elem_classes="field"):
                    kept = gr.Dropdown(KEPT, value="no", label="Keep of the video's sound", filterable=False)
                    form.field("keep_audio", kept)
                with gr.Column(min_width=200, elem_classes="field"):
                    choices = [(EXTENDED[name], name) for name in EXTENSIONS]
                    longer = gr.Dropdown(choices, value="loop", label="If the speech is longer", filterable=False)
                    form.field("extend", longer)
            model_and_preset(app, form, dubs=True, name="dub")
            with gr.Accordion("Advanced settings", open=False):
                form.settings(ADVANCED)
            make = gr.Button("Dub the video", variant="primary", elem_id="dub-make")
            form.general_message()
        with gr.Column(min_width=320, elem_classes="result"):
            panel = VideoPanel(app, "dub", form)

    def order(look: str | None, request: gr.Request, *given: Any) -> list[Any]:
        try:
            work = order_dub(app, owner_of(request), faces.find(look, request), form.values(given))
        except FieldFaults as error:
            fault = error.faults.pop("video", "")
            return [*form.told(error), *[gr.skip()] * len(panel.outputs), told_fault(fault)]
        return [*form.told(None), *panel.show(work), told_fault("")]

    panel.made_by(make, order, [faces.number], [faces.message])

    def fill_in() -> list[str]:
        return [str(shown_copy(path, app.uploads)) for path in dub_example(app.folder / "examples")]

    example.click(fill_in, None, [video, form.fields["audio"]], show_progress="minimal", api_visibility="private")
    panel.connect()
    faces.connect()


class FacesPanel:
    """The faces of the video that was sent: searched for, drawn, chosen from.

    Args:
        app: the page.
        form: gets the field `face`.
        video: the component that the video is sent with.
    """

    def __init__(self, app: PageApp, form: Form, video: Any) -> None:
        self._app, self._video = app, video
        self.number = kept_by_browser("look")
        self._timer = gr.Timer(SECONDS, active=False)
        self.message = gr.HTML("", visible=False, elem_classes="fault", elem_id="dub-video-message")
        self._status = gr.HTML("", visible=False, elem_classes="status")
        self._sheet = gr.Image(
            show_label=False,
            interactive=False,
            visible=False,
            elem_id="dub-faces",
            buttons=["fullscreen"],
            alt_text="Pictures of the video with a numbered box around each face",
        )
        with gr.Column(elem_classes="field"):
            self._face = gr.Radio([], label="Whose mouth: choose a box or a line", visible=False, elem_id="dub-face")
            form.field("face", self._face)

    @property
    def _outputs(self) -> list[Any]:
        return [self.number, self._timer, self.message, self._status, self._sheet, self._face]

    def connect(self) -> None:
        """Look for faces as soon as a video is there; show them again when the page is loaded again."""
        self._video.change(self._sent, [self._video, self.number], self._outputs, **QUIETLY)
        self._timer.tick(self._look, [self.number], self._outputs, **QUIETLY)
        self._sheet.select(self._clicked, [self.number], [self._face], **QUIETLY)
        Context.root_block.load(self._look_again, [self.number], [*self._outputs, self._video], **QUIETLY)

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
        return [
            look.id,
            gr.Timer(active=False),
            told_fault(""),
            hidden,
            gr.update(value=look.sheet.image, visible=True),
            gr.update(choices=choices, value=choices[0][1], visible=True),
        ]

    def _clicked(self, number: str | None, event: gr.SelectData, request: gr.Request) -> Any:
        look = self.find(number, request)
        if look is None or look.sheet is None:
            return gr.skip()
        face = look.sheet.face_at(*event.index)
        return gr.skip() if face is None else str(face)


def _progress(look: Look, ahead: int) -> str:
    if look.state == "waiting":
        return f'<p role="status">Looking for faces: {ahead} before this video.</p>'
    told = f": {look.seconds_done} of {look.seconds} s" if look.seconds else ""
    return (
        f'<p role="status">Looking for faces{told}</p>'
        f'<progress max="{look.seconds or 1}" value="{look.seconds_done}" aria-label="Search for faces"></progress>'
    )
