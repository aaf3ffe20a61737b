"""The tab Models: what is there, LoRAs, the doctor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context

from ..doctor import Finding, findings
from .faults import FieldFaults
from .forms import QUIETLY, Form
from .lora_choice import add_lora, clear_loras, keep_lora, lora_names
from .markup import plain
from .shelf import Shelf
from .state import PageApp
from .uploads import LORA

MARKS = {"ok": "✓", "note": "!", "problem": "✗"}


def models_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            _there(app)
        with gr.Column(min_width=320):
            _loras(app)
    _doctor(app)


def _there(app: PageApp) -> None:
    gr.Markdown("### Models")
    table = gr.HTML(models_table(app.shelf), elem_id="models-table", elem_classes="models")
    loaded = gr.HTML("", elem_id="models-loaded", elem_classes="facts")
    with gr.Row():
        again = gr.Button("Look again", elem_id="models-look")
        release = gr.Button("Release the loaded model", elem_id="models-release")

    def look() -> list[Any]:
        app.shelf.look()
        return [models_table(app.shelf), _loaded(app.shelf)]

    def let_go() -> str:
        if app.shelf.release():
            return _loaded(app.shelf)
        return "<p role='alert'>A job needs the model: wait until it is done, or cancel it.</p>"

    again.click(look, None, [table, loaded], show_progress="minimal", api_visibility="private")
    release.click(let_go, None, [loaded], show_progress="minimal", api_visibility="private")
    Context.root_block.load(lambda: _loaded(app.shelf), None, [loaded], **QUIETLY)


def models_table(shelf: Shelf) -> str:
    """The models as a table: what each does, and whether it is there."""
    rows = []
    for model in shelf.models.values():
        does = "" if model.facts is None else "dubs videos" if model.dubs else "makes portraits talk"
        state = plain(model.lacks) if model.lacks else "there"
        mark = MARKS["problem" if model.lacks else "ok"]
        rows.append(f"<tr><td>{mark}</td><th scope='row'>{plain(model.name)}</th><td>{does}</td><td>{state}</td></tr>")
    head = "<tr><td></td><th scope='col'>Model</th><th scope='col'>What it does</th><th scope='col'>Files</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _loaded(shelf: Shelf) -> str:
    name = shelf.loaded()
    told = "No model is loaded." if name is None else f"Loaded: {plain(name)}. It stays so for the next job."
    return f"<p role='status'>{told}</p>"


def _loras(app: PageApp) -> None:
    gr.Markdown("### LoRAs\nFiles of other programs, for Wan 2.1 text-to-video of the model's size.")
    form = Form()
    names = [model.name for model in app.shelf.models.values() if not model.lacks]
    with gr.Column(elem_classes="field"):
        form.field(
            "lora_file",
            gr.File(
                label="Send a file",
                file_count="single",
                height=140,
                elem_id="lora-file",
                elem_classes=LORA.css,
            ),
        )
    with gr.Row(equal_height=False):
        with gr.Column(min_width=140, elem_classes="field"):
            model = form.field(
                "lora_model", gr.Dropdown(names, label="For the model", filterable=False, elem_id="lora-model")
            )
        with gr.Column(min_width=200, elem_classes="field"):
            lora = form.field("lora", gr.Dropdown(lora_names(app), value=None, label="File", elem_id="lora-name"))
        with gr.Column(min_width=120, elem_classes="field"):
            strength = form.field("strength", gr.Number(1.0, label="Strength", step=0.1, elem_id="lora-strength"))
    with gr.Row():
        add = gr.Button("Add it", elem_id="lora-add")
        clear = gr.Button("Take all off", elem_id="lora-clear")
    chosen = gr.HTML("", elem_classes="facts", elem_id="lora-chosen")

    def told(do: Callable[[], Any], name: str | None) -> list[Any]:
        try:
            do()
        except FieldFaults as error:
            return [*form.told(error), _chosen(app.shelf, name)]
        return [*form.told(None), _chosen(app.shelf, name)]

    def send(upload: str | None) -> list[Any]:
        if upload is None:
            return [*form.told(None), gr.skip(), gr.skip()]
        try:
            name = keep_lora(app, upload)
        except FieldFaults as error:
            return [*form.told(error), gr.skip(), None]
        return [*form.told(None), gr.update(choices=lora_names(app), value=name), None]

    outputs = [*form.messages, chosen]
    file = form.fields["lora_file"]
    file.upload(send, [file], [*form.messages, lora, file], api_visibility="private")

    def add_it(to: str | None, name: str | None, much: Any) -> list[Any]:
        return told(lambda: add_lora(app, to, name, much), to)

    waiting: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": chosen, "api_visibility": "private"}
    add.click(add_it, [model, lora, strength], outputs, **waiting)
    clear.click(lambda to: told(lambda: clear_loras(app, to), to), [model], outputs, **QUIETLY)
    model.change(lambda to: _chosen(app.shelf, to), [model], [chosen], **QUIETLY)
    Context.root_block.load(lambda to: _chosen(app.shelf, to), [model], [chosen], **QUIETLY)


def _chosen(shelf: Shelf, model: str | None) -> str:
    loras = shelf.loras.get(model or "", ())
    if not loras:
        return f"<p>The next jobs of {plain(model)} get no LoRA.</p>" if model else ""
    rows = "".join(f"<li>{plain(file.name)}, strength {strength:g}</li>" for file, strength in loras)
    return f"<p>The next jobs of {plain(model or '')} get:</p><ul>{rows}</ul>"


def _doctor(app: PageApp) -> None:
    gr.Markdown("### Doctor\nLooks at the machine, the packages and a model's files, and tells what to mend.")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=200):
            choices = [("the machine alone", ""), *app.shelf.models]
            model = gr.Dropdown(choices, value="", label="Examine", filterable=False, elem_id="doctor-model")
        with gr.Column(min_width=200):
            run = gr.Button("Examine", elem_id="doctor-run")
    report = gr.HTML("", elem_classes="doctor", elem_id="doctor-report")

    def examine(name: str | None) -> str:
        own = app.shelf.models[name].args if name in app.shelf.models else None
        folder = None if own is None else own.models_folder
        checkpoint = None if own is None else getattr(own, "omniavatar", None)
        return "".join(map(_finding, findings(name if own else None, folder, checkpoint)))

    run.click(examine, [model], [report], show_progress="minimal", api_visibility="private")


def _finding(finding: Finding) -> str:
    fix = f"<br><code>{plain(finding.fix)}</code>" if finding.fix else ""
    return f"<p class='{finding.kind}'><b>{MARKS[finding.kind]} {finding.kind}</b> {plain(finding.text)}{fix}</p>"
