"""The tab Dub: somebody in a video says something else."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

from ...generation.dub_request import EXTENSIONS, PROMPT
from .dub import order_dub
from .examples import dub_example
from .faces_panel import FacesPanel
from .faults import FieldFaults
from .forms import Form, told_fault
from .orders import ADVANCED
from .shown_files import shown_copy
from .state import PageApp
from .video_fields import model_and_preset, prompt_field, speech_field
from .video_panel import VideoPanel, owner_of

KEPT = [("nothing", "no"), ("all, 20 dB quieter", "-20dB"), ("between the words", "gaps")]
EXTENDED = {"loop": "play back and forth", "hold": "hold the last picture", "stop": "end with the video"}


def dub_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    tab, form = Context.block, Form()
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            faces = FacesPanel(app, form, "dub")
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
            model_and_preset(app, form, dubs=True, name="dub", tab=tab)
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

    def fill_in() -> list[Any]:
        try:
            files = dub_example(app.folder / "examples")
        except OSError as error:
            return [
                *form.told(FieldFaults({"": f"The example cannot be drawn: {error.strerror or error}"})),
                *[gr.skip()] * len(filled),
            ]
        return [*form.told(None), *(str(shown_copy(path, app.uploads)) for path in files)]

    filled = [faces.video, form.fields["audio"]]
    example.click(fill_in, None, [*form.messages, *filled], show_progress="minimal", api_visibility="private")
    panel.connect()
    faces.connect()
