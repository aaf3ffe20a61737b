"""Fields of a form, each with a place for what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context

from ..model_flags import Flags
from .faults import FieldFaults
from .markup import plain
from .orders import CHOICES

QUIETLY: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
"""How events are handled that nobody waits for."""
AS_IT_IS = "as the model's files say"
"""The choice of a setting that is left alone."""
GROUPS = {
    "Size and length": ("height", "width", "max_tokens", "overlap", "silence", "crop_portrait"),
    "Steps": ("steps", "seed", "sampler", "timesteps", "sigma_shift", "solver", "tea_cache_l1_thresh"),
    "Guidance": (
        *("negative_prompt", "cfg_scale", "audio_cfg_scale", "apg_eta"),
        *("guidance_rescale", "guidance_from", "guidance_to"),
    ),
    "Picture": ("match_colours", "crf", "tiled"),
}
"""Settings by what they act on."""
SAID = {"seed": "The same seed makes the same video; empty for another one each time"}
"""Where the page does something else than the command line."""
LABELS = {
    "cfg_scale": "Guidance",
    "audio_cfg_scale": "Guidance by the sound",
    "apg_eta": "Projected guidance (APG)",
    "sigma_shift": "Shift of the noise",
    "tea_cache_l1_thresh": "TeaCache threshold",
    "crf": "H.264 quality (crf)",
    "max_tokens": "Longest chunk (max_tokens)",
}


def kept_by_browser(name: str) -> Any:
    """A text that the browser keeps when the page is loaded again; "" at first.

    It lies outside the tabs: what is in a tab that nobody looks at is not there yet when the page is loaded.
    """
    inside, Context.block = Context.block, Context.root_block
    try:
        return gr.BrowserState("", storage_key=f"omniavatar-{name}")
    finally:
        Context.block = inside


class Form:
    """The fields of a form by the names of their flags."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}

    def field(self, name: str, component: Any) -> Any:
        """Add a field that was just laid out; what is wrong with it is told under it."""
        self.fields[name] = component
        self._messages[name] = _message()
        return component

    def forgive(self, name: str) -> None:
        """Let the fault of a field that takes files go when another file is sent."""
        self.fields[name].upload(lambda: told_fault(""), None, [self._messages[name]], **QUIETLY)

    def general_message(self) -> None:
        """Lay out the place for faults that belong to no field."""
        self._messages[""] = _message()

    def settings(self, flags: Flags) -> None:
        """Lay out a field for each of these flags, in groups."""
        rest = [name for name in flags if not any(name in names for names in GROUPS.values())]
        for title, names in {**GROUPS, "More": tuple(rest)}.items():
            shown = [name for name in names if name in flags]
            if shown:
                gr.Markdown(f"**{title}**")
            for pair in zip(shown[::2], [*shown[1::2], None], strict=False):
                with gr.Row(equal_height=False):
                    for name in pair:
                        with gr.Column(min_width=220, elem_classes="field"):
                            if name is not None:
                                self.field(name, _setting(name, flags))

    @property
    def inputs(self) -> list[Any]:
        """The components, in the order that `values` takes."""
        return list(self.fields.values())

    @property
    def messages(self) -> list[Any]:
        """The components that `told` updates, in its order."""
        return list(self._messages.values())

    def values(self, given: Sequence[Any]) -> dict[str, Any]:
        """What was filled in, by name.

        Args:
            given: as the browser sends it (`preprocess=False`): gradio would open pictures itself, and a bad one would
                be told nowhere. Files become paths, which nobody has checked.
        """
        return {name: _sent(value) for name, value in zip(self.fields, given, strict=True)}

    def filled(self, values: Mapping[str, Any]) -> list[Any]:
        """Updates that fill in values; fields without one stay as they are."""
        return [gr.update(value=values[name]) if name in values else gr.skip() for name in self.fields]

    def told(self, error: FieldFaults | None) -> list[Any]:
        """Updates that show faults at their fields and clear the others."""
        faults: Mapping[str, str] = {} if error is None else error.placed(self.fields)
        return [told_fault(faults.get(name, "")) for name in self._messages]


def command_field(elem_id: str, lines: int = 3, most_lines: int = 8) -> Any:
    """The equal command line, to copy; hidden until there is one."""
    return gr.Textbox(
        label="The same on the command line",
        visible=False,
        interactive=False,
        lines=lines,
        max_lines=most_lines,
        buttons=["copy"],
        elem_id=elem_id,
    )


def _sent(value: Any) -> Any:
    return value.get("path") if isinstance(value, dict) else value


def _message() -> Any:
    return gr.HTML("", visible=False, elem_classes="fault")


def told_fault(fault: str) -> Any:
    """An update of a message: what is wrong, or "" for nothing."""
    return gr.update(value=f'<p role="alert">{plain(fault)}</p>' if fault else "", visible=bool(fault))


def _setting(name: str, flags: Flags) -> Any:
    kind, text = flags[name]
    info = re.sub(r"--(\w+)", lambda flag: f"\u201c{_label(flag[1])}\u201d", text[:1].upper() + text[1:])
    info = SAID.get(name, info).replace("*", "\\*")  # it is read as markdown
    look = {"label": _label(name), "info": f"{info}.", "elem_id": f"setting-{name}"}
    if kind is bool:
        return gr.Dropdown([(AS_IT_IS, ""), ("yes", True), ("no", False)], value="", filterable=False, **look)
    if name in CHOICES:
        return gr.Dropdown([(AS_IT_IS, ""), *CHOICES[name]], value="", filterable=False, **look)
    return gr.Textbox(placeholder=AS_IT_IS, **look)  # gr.Number shows 0 where nothing is given


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())
