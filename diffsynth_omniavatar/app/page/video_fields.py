"""Fields that Talk and Dub have in common."""

from __future__ import annotations

import contextlib
from typing import Any

import gradio as gr
from gradio.context import Context

from .checkpoints import chosen_checkpoint, offered_checkpoints
from .examples import NANO_NOTE
from .forms import QUIETLY, Form
from .orders import PRESETS, preset_steps
from .state import PageApp
from .uploads import PICTURE, SOUND


def portrait_field(form: Form, name: str, sources: list[str]) -> None:
    """A picture of the person."""
    with gr.Column(elem_classes="field"):
        form.field(
            "image",
            gr.Image(
                label="Portrait",
                type="filepath",
                sources=sources,
                height=280,
                elem_id=f"{name}-image",
                buttons=[],
                elem_classes=PICTURE.css,
            ),
        )
        form.forgive("image")


def speech_field(form: Form, name: str) -> None:
    """A sound file, or a recording."""
    with gr.Column(elem_classes="field"):
        form.field(
            "audio",
            gr.Audio(
                label="Speech",
                type="filepath",
                sources=["upload", "microphone"],
                elem_id=f"{name}-audio",
                buttons=[],
                elem_classes=SOUND.css,
            ),
        )
        form.forgive("audio")


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


def model_and_preset(app: PageApp, form: Form, dubs: bool, name: str, tab: Any) -> None:
    """Which model, of those that are there and those that were trained, and how thorough.

    Args:
        app: the page.
        form: gets the fields.
        dubs: whether the tab dubs videos.
        name: of the tab.
        tab: which is opened.
    """
    offered = _offered(app, dubs)
    first = offered[0][1] if offered else None
    with gr.Row(equal_height=False):
        with gr.Column(min_width=260, elem_classes="field"):
            model = form.field(
                "model",
                gr.Dropdown(
                    offered,
                    value=first,
                    label="Model",
                    info=f"{NANO_NOTE}. Checkpoints of trainings stand below the models.",
                    filterable=False,
                    elem_id=f"{name}-model",
                ),
            )
        with gr.Column(min_width=260, elem_classes="field"):
            preset = form.field(
                "preset", gr.Radio(_presets(app, first), value="best", label="Quality", elem_id=f"{name}-preset")
            )
    model.preprocess = lambda chosen: chosen  # which checkpoints there are is read again

    def offer(chosen: str | None) -> Any:
        now = _offered(app, dubs)
        return gr.update(choices=now) if chosen or not now else gr.update(choices=now, value=now[0][1])

    Context.root_block.load(offer, [model], [model], **QUIETLY)
    tab.select(offer, [model], [model], **QUIETLY)
    model.change(lambda chosen: gr.update(choices=_presets(app, chosen)), [model], [preset], **QUIETLY)


def _offered(app: PageApp, dubs: bool) -> list[tuple[str, str]]:
    """What can be chosen, in words and as `chosen_checkpoint` takes it; of a checkpoint the mode is told."""
    mode = "V2V" if dubs else "I2V"
    names = offered_checkpoints(app, dubs)
    return [(name if name in app.shelf.models else f"{name} ({mode})", name) for name in names]


def _presets(app: PageApp, model: str | None) -> list[tuple[str, str]]:
    """The presets with their steps, where the model can be read."""
    best = facts = None
    with contextlib.suppress(ValueError, OSError):
        facts = chosen_checkpoint(app, model or "").facts
    if facts is not None:
        best = facts.conventions.sampling.steps
    return [
        (preset if best is None else f"{preset} · {preset_steps(preset, facts) or best} steps", preset)
        for preset in PRESETS
    ]
