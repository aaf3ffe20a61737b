"""The tab Talk: a portrait speaks."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .faults import FieldFaults
from .forms import Form, read_as_path
from .orders import ADVANCED_TALK, PRESETS, preset_steps
from .state import PageApp
from .talk import order_talk
from .video_panel import VideoPanel, owner_of

PROMPT = "A realistic video of a person speaking directly to the camera, with the head still."


def talk_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    form = Form()
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            _inputs(app, form)
            make = gr.Button("Make the video", variant="primary", elem_id="talk-make")
            form.general_message()
            with gr.Accordion("Advanced settings", open=False):
                form.settings(ADVANCED_TALK)
        with gr.Column(min_width=320):
            panel = VideoPanel(app, "talk", lambda work: "face" not in work.order.form)

    def order(request: gr.Request, *given: Any) -> list[Any]:
        try:
            work = order_talk(app, owner_of(request), form.values(given))
        except FieldFaults as error:
            return [*form.told(error), *[gr.skip()] * len(panel.outputs)]
        return [*form.told(None), *panel.show(work)]

    make.click(order, form.inputs, [*form.messages, *panel.outputs], show_progress="minimal", api_visibility="private")
    panel.connect()


def _inputs(app: PageApp, form: Form) -> None:
    with gr.Column(elem_classes="field"):
        form.field(
            "image",
            read_as_path(
                gr.Image(
                    label="Portrait",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    height=280,
                    elem_id="talk-image",
                    buttons=[],
                )
            ),
        )
    with gr.Column(elem_classes="field"):
        form.field(
            "audio",
            gr.Audio(
                label="Speech",
                type="filepath",
                sources=["upload", "microphone"],
                elem_id="talk-audio",
                buttons=[],
            ),
        )
    with gr.Column(elem_classes="field"):
        form.field(
            "prompt",
            gr.Textbox(
                PROMPT,
                label="Prompt",
                info="Describe the person, what they do, the background.",
                lines=2,
                elem_id="talk-prompt",
            ),
        )
    preset_and_model(app, form, dubs=False, name="talk")


def preset_and_model(app: PageApp, form: Form, dubs: bool, name: str) -> None:
    """Lay out the fields that both kinds of videos have."""
    names = app.shelf.names(dubs)
    first = names[0] if names else None
    with gr.Row(equal_height=False):
        with gr.Column(min_width=220, elem_classes="field"):
            preset = form.field(
                "preset",
                gr.Radio(_presets(app, first), value="best", label="Quality", elem_id=f"{name}-preset"),
            )
        with gr.Column(min_width=160, elem_classes="field"):
            model = form.field(
                "model", gr.Dropdown(names, value=first, label="Model", filterable=False, elem_id=f"{name}-model")
            )
    model.change(
        lambda chosen: gr.update(choices=_presets(app, chosen)),
        [model],
        [preset],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )


def _presets(app: PageApp, model: str | None) -> list[tuple[str, str]]:
    """The presets with their steps."""
    known = app.shelf.models.get(model or "")
    facts = None if known is None else known.facts
    best = None if facts is None else facts.conventions.sampling.steps
    return [
        (preset if best is None else f"{preset} · {preset_steps(preset, facts) or best} steps", preset)
        for preset in PRESETS
    ]
