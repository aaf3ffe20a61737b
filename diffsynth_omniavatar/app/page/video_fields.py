"""Fields that Talk and Dub have in common."""

from __future__ import annotations

import gradio as gr

from .examples import NANO_NOTE
from .forms import QUIETLY, Form
from .orders import PRESETS, preset_steps
from .state import PageApp


def speech_field(form: Form, name: str) -> None:
    """A sound file, or a recording."""
    with gr.Column(elem_classes="field"):
        form.field(
            "audio",
            gr.Audio(
                label="Speech", type="filepath", sources=["upload", "microphone"], elem_id=f"{name}-audio", buttons=[]
            ),
        )


def prompt_field(form: Form, name: str, prompt: str) -> None:
    """What the video shows."""
    with gr.Column(elem_classes="field"):
        form.field(
            "prompt",
            gr.Textbox(
                prompt,
                label="Prompt",
                info="Describe the person, what they do, the background.",
                lines=2,
                elem_id=f"{name}-prompt",
            ),
        )


def model_and_preset(app: PageApp, form: Form, dubs: bool, name: str) -> None:
    """Which model, of those that are there, and how thorough."""
    names = app.shelf.names(dubs)
    first = names[0] if names else None
    with gr.Row(equal_height=False):
        with gr.Column(min_width=200, scale=1, elem_classes="field"):
            model = form.field(
                "model",
                gr.Dropdown(
                    names, value=first, label="Model", info=NANO_NOTE + ".", filterable=False, elem_id=f"{name}-model"
                ),
            )
        with gr.Column(min_width=300, scale=2, elem_classes="field"):
            preset = form.field(
                "preset", gr.Radio(_presets(app, first), value="best", label="Quality", elem_id=f"{name}-preset")
            )
    model.change(lambda chosen: gr.update(choices=_presets(app, chosen)), [model], [preset], **QUIETLY)


def _presets(app: PageApp, model: str | None) -> list[tuple[str, str]]:
    """The presets with their steps."""
    known = app.shelf.models.get(model or "")
    facts = None if known is None else known.facts
    best = None if facts is None else facts.conventions.sampling.steps
    return [
        (preset if best is None else f"{preset} · {preset_steps(preset, facts) or best} steps", preset)
        for preset in PRESETS
    ]
