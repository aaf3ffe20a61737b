"""The tab Talk: a portrait speaks."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

from .examples import talk_example
from .faults import FieldFaults
from .forms import Form
from .orders import ADVANCED_TALK
from .shown_files import shown_copy
from .state import PageApp
from .talk import PROMPT, order_talk
from .video_fields import model_and_preset, portrait_field, prompt_field, speech_field
from .video_panel import VideoPanel, owner_of


def talk_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    tab, form = Context.block, Form()
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            portrait_field(form, "talk", ["upload", "webcam", "clipboard"])
            speech_field(form, "talk")
            example = gr.Button("Fill in a drawn example", size="sm", elem_id="talk-example")
            prompt_field(form, "talk", PROMPT)
            model_and_preset(app, form, dubs=False, name="talk", tab=tab)
            with gr.Accordion("Advanced settings", open=False):
                form.settings(ADVANCED_TALK)
            make = gr.Button("Make the video", variant="primary", elem_id="talk-make")
            form.general_message()
        with gr.Column(min_width=320, elem_classes="result"):
            panel = VideoPanel(app, "talk", form)

    def order(request: gr.Request, *given: Any) -> list[Any]:
        try:
            work = order_talk(app, owner_of(request), form.values(given))
        except FieldFaults as error:
            return [*form.told(error), *[gr.skip()] * len(panel.outputs)]
        return [*form.told(None), *panel.show(work)]

    panel.made_by(make, order)

    def fill_in() -> list[Any]:
        try:
            *files, prompt = talk_example(app.folder / "examples")
        except OSError as error:
            return [
                *form.told(FieldFaults({"": f"The example cannot be drawn: {error.strerror or error}"})),
                *[gr.skip()] * len(filled),
            ]
        return [*form.told(None), *(str(shown_copy(path, app.uploads)) for path in files), prompt]

    filled = [form.fields[name] for name in ("image", "audio", "prompt")]
    example.click(fill_in, None, [*form.messages, *filled], show_progress="minimal", api_visibility="private")
    panel.connect()
