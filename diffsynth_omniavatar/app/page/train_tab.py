"""The tab Train: a training is started, followed live, stopped and gone on with."""

from __future__ import annotations

import concurrent.futures
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import Context

from .faults import FieldFaults
from .forms import QUIETLY, Form
from .markup import plain
from .state import PageApp
from .training_form import MODES, NANO, STARTS, check_form, gpus_here, plan_text, trainable_models
from .training_panel import RunPanel
from .training_runs import RECORD, TrainingRun

if TYPE_CHECKING:
    from ...data.scan import Fault
    from .training_command import Training

Accepted = tuple[str, Sequence[int]]
"""The fields with which faults of clips were shown, and the numbers of those clips: a second start leaves them out."""
EXAMPLE = "drawn person"
EXAMPLE_CLIPS, EXAMPLE_FRAMES = 8, 49


def train_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            new = NewRun(app)
        with gr.Column(min_width=320):
            panel = RunPanel(app.uploads, app.runs)
    new.connect(panel, Context.block)
    panel.connect()


class NewRun:
    """The form of a new run."""

    def __init__(self, app: PageApp) -> None:
        self._app = app
        self.form = Form()
        self._lay_out_data()
        self._lay_out_model()
        with gr.Accordion("Advanced settings", open=False):
            self._lay_out_settings()
        self._plan = gr.Textbox(
            label="GPU plan", lines=2, max_lines=14, interactive=False, elem_id="train-plan", elem_classes="mono"
        )
        with gr.Row():
            self._check = gr.Button("Check the clips", elem_id="train-check")
            self._start = gr.Button("Start the training", variant="primary", elem_id="train-start")
        self._told = gr.HTML("", visible=False)
        self.form.general_message()
        self._faults = gr.Dataframe(
            headers=["clip", "what is wrong"],
            datatype="str",
            interactive=False,
            wrap=True,
            visible=False,
            label="Faults of the clips",
            elem_id="train-faults",
            buttons=[],
        )
        self._accepted = gr.State(("", ()))

    def _lay_out_data(self) -> None:
        with gr.Column(elem_classes="field"):
            self._data = self.form.field(
                "data",
                gr.Dropdown(
                    [],
                    label="Clips",
                    info="A folder of clips, a table, a cache, or what `omniavatar prepare` wrote. Paths lie in the "
                    "folders of --data.",
                    allow_custom_value=True,
                    elem_id="train-data",
                ),
            )
        self._draw = gr.Button("Draw clips of a drawn person to try it", size="sm", elem_id="train-draw")

    def _lay_out_model(self) -> None:
        names = trainable_models(self._app.shelf)
        first = names[0] if names else None
        start = STARTS[first == NANO]
        with gr.Row(equal_height=False):
            with gr.Column(min_width=180, elem_classes="field"):
                modes = [(words, mode) for mode, words in MODES.items()]
                self.form.field("mode", gr.Radio(modes, value="i2v", label="Mode", elem_id="train-mode"))
            with gr.Column(min_width=140, elem_classes="field"):
                self._model = self.form.field(
                    "model", gr.Dropdown(names, value=first, label="Model", filterable=False, elem_id="train-model")
                )
        with gr.Row(equal_height=False):
            with gr.Column(min_width=140, elem_classes="field"):
                self.form.field("name", gr.Textbox(label="Name of the run", max_lines=1, elem_id="train-name"))
            with gr.Column(min_width=140, elem_classes="field"):
                steps = _number(start.max_steps, "Steps", "train-steps")
                steps.render()
                self.form.field("max_steps", steps)

    def _lay_out_settings(self) -> None:
        first = self._model.value
        start = STARTS[first == NANO]
        count, memory = gpus_here()
        fields = {
            "size": gr.Textbox(
                start.size,
                label="Size of samples",
                info="Height x width x frames.",
                max_lines=1,
                render=False,
                elem_id="train-size",
            ),
            "lora_rank": _number(
                start.lora_rank, "Rank of a new LoRA", "train-rank", info="A checkpoint with a LoRA keeps its own."
            ),
            "learning_rate": gr.Number(
                start.learning_rate, label="Learning rate", step=1e-5, render=False, elem_id="train-rate"
            ),
            "batch_size": _number(1, "Clips in a step", "train-batch"),
            "videos": _number(
                start.videos, "Validation videos", "train-videos", info="Of held-out clips, five times in a run."
            ),
            "gpu": gr.Number(
                round(memory, 1) or 24,
                label="Memory of a GPU",
                info="In GiB, for the plan.",
                render=False,
                elem_id="train-gpu",
            ),
            "gpus": _number(1, "GPUs", "train-gpus", info=f"PyTorch sees {count}."),
            "caption": gr.Textbox(
                label="What clips show",
                info="For clips in a folder without text files beside them.",
                lines=2,
                render=False,
                elem_id="train-caption",
            ),
        }
        names = list(fields)
        for pair in zip(names[::2], names[1::2], strict=True):
            with gr.Row(equal_height=False):
                for name in pair:
                    with gr.Column(min_width=140, elem_classes="field"):
                        fields[name].render()
                        self.form.field(name, fields[name])

    def connect(self, panel: RunPanel, tab: Any) -> None:
        """React to what is filled in and pressed."""
        load = Context.root_block.load
        load(self._offer, [self._data], [self._data], **QUIETLY)
        tab.select(self._offer, [self._data], [self._data], **QUIETLY)
        load(self._planned, self.form.inputs, [self._plan], **QUIETLY)
        fields = self.form.fields
        self._model.input(
            self._started_with,
            [self._model],
            [fields[name] for name in STARTS[True]._fields],
            **QUIETLY,
        )
        planned = [fields[name] for name in ("model", "mode", "size", "lora_rank", "batch_size", "gpu")]
        for field in planned:
            field.change(self._planned, self.form.inputs, [self._plan], **QUIETLY)
        self._draw.click(
            self._draw_example, None, [self._data, self._told], show_progress="minimal", api_visibility="private"
        )
        outputs = [*self.form.messages, self._told, self._faults, self._accepted, self._start]
        inputs = [self._accepted, *self.form.inputs]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        self._check.click(self._checked, inputs, outputs, **quiet)
        started = self._start.click(self._begin, inputs, [*outputs, panel.chosen], **quiet)
        started.then(panel.look_again, [panel.chosen], panel.outputs, **QUIETLY)

    def _offer(self, chosen: str | None) -> Any:
        found = self._app.readable.data_sets()
        return gr.update(choices=found, value=chosen or (found[0] if found else None))

    def _planned(self, *given: Any) -> str:
        return plan_text(self.form.values(given))

    def _started_with(self, model: str | None) -> list[Any]:
        return list(STARTS[model == NANO])

    def _draw_example(self) -> Iterator[list[Any]]:
        """Draw clips that the small model can learn from."""
        from ...nano.speaker.clips import write_clips
        from ..demo import NEWCOMER

        folder = self._app.folder / "data" / EXAMPLE
        yield [gr.skip(), _note("Drawing 8 clips of 2 seconds.")]
        try:
            if not (folder / "metadata.csv").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                write_clips(folder, range(EXAMPLE_CLIPS), EXAMPLE_FRAMES, split="train", identity=NEWCOMER)
        except OSError as error:
            yield [gr.skip(), _note(f"The clips cannot be drawn: {error.strerror or error}")]
            return
        choices = self._app.readable.data_sets()
        yield [
            gr.update(choices=choices, value=str(folder)),
            _note("Drawn: somebody that the small model has not seen."),
        ]

    def _checked(self, accepted: Accepted, *given: Any) -> Iterator[list[Any]]:
        for told, _ in self._look_at_clips(self.form.values(given)):
            yield told

    def _begin(self, accepted: Accepted, *given: Any) -> Iterator[list[Any]]:
        """Start the run if its clips have no faults, or were shown to have those before."""
        ready = None
        for told, found in self._look_at_clips(self.form.values(given), accepted):
            yield [*told, gr.skip()]
            ready = found
        if ready is None:
            return
        try:
            run = self._launch(*ready)
        except (ValueError, OSError) as error:
            yield [*self._said(FieldFaults({"": str(error)})), gr.skip()]
            return
        names = [one.name for one in self._app.runs.all()]
        yield [*self._said(None, f"{run.name} is started."), gr.update(choices=names, value=run.name, visible=True)]

    def _launch(self, training: Training, folder: Path) -> TrainingRun:
        from .training_command import command_of

        command = command_of(training, folder)
        if training.gpus and not self._app.shelf.release():
            raise ValueError("a video is being made with the GPU; start again when it is done")
        folder.mkdir(parents=True)
        try:
            training.data.write(folder, training.videos, is_v2v=training.is_v2v)
            return self._app.runs.start(command, training.steps, folder)
        finally:
            if not (folder / RECORD).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def _look_at_clips(
        self, fields: dict[str, Any], accepted: Accepted = ("", ())
    ) -> Iterator[tuple[list[Any], tuple[Training, Path] | None]]:
        """Updates of the form while the clips are looked at; at the end what can be started.

        Args:
            fields: the form's.
            accepted: fields whose clips were shown to have faults, and which.
        """
        yield self._said(None, "Getting ready; the first time takes some seconds."), None
        try:
            training, folder = check_form(fields, self._app.shelf, self._app.readable, self._app.runs)
        except FieldFaults as error:
            yield self._said(error), None
            return
        if accepted[0] == repr(fields):
            training = replace(training, data=training.data.without(accepted[1]))
            yield self._said(None, "Starting."), (training, folder)
            return
        from .training_command import clip_faults

        clips, seen = len(training.data.clips) + len(training.data.held_out), list[None]()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            looking = pool.submit(clip_faults, training, folder, lambda: seen.append(None))
            while not looking.done():
                yield self._said(None, f"{len(seen)} of {clips} clips are looked at."), None
                concurrent.futures.wait([looking], 0.5)
        try:
            faults = looking.result()
        except (ValueError, OSError) as error:
            yield self._said(FieldFaults({"": str(error)})), None
            return
        if faults:
            yield self._shown(training, faults, repr(fields)), None
        else:
            yield self._said(None, f"{training.data.told()}. All of them are fine."), (training, folder)

    def _shown(self, training: Training, faults: Sequence[Fault], mark: str) -> list[Any]:
        """Updates that show the faults of clips, and whether one can start without these."""
        bad = tuple(sorted({fault.index for fault in faults}))
        rows = [[fault.clip, fault.told] for fault in faults]
        table = gr.update(value=rows, visible=True)
        if (why := training.data.hindrance(bad)) is not None:
            return [*self._said(FieldFaults({"data": why}))[:-3], table, ("", ()), gr.skip()]
        told = f"{training.data.told()}; {len(bad)} have faults. Start again to train without these."
        button = gr.update(value=f"Start without {len(bad)}")
        return [*self._said(None, told)[:-3], table, (mark, bad), button]

    def _said(self, error: FieldFaults | None, note: str = "") -> list[Any]:
        """Updates of messages, note, table of faults, what is accepted and button."""
        start = gr.update(value="Start the training")
        return [*self.form.told(error), _note(note), gr.update(visible=False), ("", ()), start]


def _number(value: int, label: str, elem_id: str, **more: Any) -> Any:
    """A field for a whole number, to be laid out later."""
    return gr.Number(value, label=label, precision=0, step=1, elem_id=elem_id, render=False, **more)


def _note(text: str) -> Any:
    return gr.update(value=f'<p role="status">{plain(text)}</p>' if text else "", visible=bool(text))
