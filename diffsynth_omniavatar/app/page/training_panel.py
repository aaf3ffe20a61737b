"""The part of the tab Train that follows a run, also one that was started before the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from . import training_view as view
from .forms import QUIETLY, command_field
from .shown_files import shown_copy
from .training_runs import LOG, RunState, TrainingRun, TrainingRuns

SECONDS = 2.0
"""Between two looks at a run."""
LOG_LINES = 12
"""At the log's end that are shown."""
VIDEOS = 4
"""Of a validation that are shown."""

Updates = list[Any]


class RunPanel:
    """The components that show one run, and stop it or go on with it.

    Args:
        uploads: folder of the files that the server hands out.
        runs: the runs.
    """

    def __init__(self, uploads: Path, runs: TrainingRuns) -> None:
        self._uploads, self._runs = uploads, runs
        self.chosen = gr.Dropdown(
            [], label="Training", filterable=False, interactive=True, visible=False, elem_id="train-runs"
        )
        self.chosen.preprocess = lambda name: name  # which runs there are is known here, not to the component
        status = gr.HTML(view.EMPTY, elem_classes="status", elem_id="train-status")
        with gr.Row(equal_height=False):
            self._stop = gr.Button("Stop", variant="stop", visible=False, elem_id="train-stop")
            self._resume = gr.Button("Go on", visible=False, elem_id="train-resume")
        self._steps = gr.Number(
            label="Steps in all, to go on with", precision=0, step=1, visible=False, elem_id="train-steps-in-all"
        )
        self._fault = gr.HTML("", visible=False, elem_classes="fault")
        loss = gr.HTML("", visible=False, elem_id="train-loss")
        validation = gr.HTML("", visible=False, elem_id="train-validation")
        with gr.Row(equal_height=False):
            videos = [
                gr.Video(
                    visible=False,
                    interactive=False,
                    height=240,
                    min_width=140,
                    elem_id=f"train-video-{number}",
                    buttons=[],
                )
                for number in range(1, VIDEOS + 1)
            ]
        command = command_field("train-command")
        log = gr.Textbox(
            label="Log",
            visible=False,
            lines=LOG_LINES,
            max_lines=2 * LOG_LINES,
            interactive=False,
            elem_id="train-log",
            elem_classes="mono",
        )
        self._seen = gr.State({})
        """What the browser shows, part by part."""
        self._parts: dict[str, Sequence[Any]] = {
            "choices": [self.chosen],
            "status": [status],
            "buttons": [self._stop, self._resume, self._steps],
            "loss": [loss],
            "validation": [validation],
            "videos": videos,
            "command": [command],
            "log": [log],
        }
        self._timer = gr.Timer(SECONDS)

    @property
    def outputs(self) -> list[Any]:
        """What `look_again` updates, in its order."""
        return [self._seen, self._fault, *(component for part in self._parts.values() for component in part)]

    def connect(self) -> None:
        """Follow the chosen run from when the page is loaded."""
        Context.root_block.load(self.look_again, [self.chosen], self.outputs, **QUIETLY)
        self._timer.tick(self._look, [self._seen, self.chosen], self.outputs, **QUIETLY)
        self.chosen.input(self.look_again, [self.chosen], self.outputs, **QUIETLY)
        self._stop.click(self._stop_run, [self._seen, self.chosen], self.outputs, **QUIETLY)
        self._resume.click(self._resume_run, [self._seen, self.chosen, self._steps], self.outputs, **QUIETLY)

    def look_again(self, name: str | None) -> Updates:
        """All of a run, for a browser that shows nothing of it."""
        return self._look({}, name, fault="")

    def _stop_run(self, seen: Mapping[str, Any], name: str | None) -> Updates:
        return self._done(seen, name, lambda: self._runs.run(name or "").stop())

    def _resume_run(self, seen: Mapping[str, Any], name: str | None, steps: Any) -> Updates:
        def resume() -> None:
            if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 10**7:
                raise ValueError("the steps in all have to be a whole number from 1 to 10,000,000")
            self._runs.resume(self._runs.run(name or ""), steps)

        return self._done(seen, name, resume)

    def _done(self, seen: Mapping[str, Any], name: str | None, act: Callable[[], None]) -> Updates:
        try:
            act()
        except (ValueError, OSError) as error:
            return self._look(seen, name, fault=str(error))
        return self._look(seen, name, fault="")

    def _look(self, seen: Mapping[str, Any], name: str | None, fault: str | None = None) -> Updates:
        """Updates of what has changed since; `fault` is what was wrong with what was pressed, None to leave it."""
        runs = self._runs.all()
        run = next((one for one in runs if one.name == name), None)
        if run is None:
            run = _first(runs)
            fault = f"the run {name} is no longer there" if name else fault
        told = gr.skip() if fault is None else gr.update(value=view.fault(fault) if fault else "", visible=bool(fault))
        if run is None:
            return [{}, told, *self._nothing()]
        looks = self._looks(run, [one.name for one in runs])
        marks = {part: [run.name, *mark] for part, (mark, _) in looks.items()}
        updates = [
            one
            for part, (_, make) in looks.items()
            for one in (make() if seen.get(part) != marks[part] else [gr.skip()] * len(self._parts[part]))
        ]
        return [marks, told, *updates]

    def _nothing(self) -> Updates:
        """Updates where there is no run."""
        hidden = {part: [gr.update(visible=False)] * len(fields) for part, fields in self._parts.items()}
        hidden |= {
            "choices": [gr.update(choices=[], value=None, visible=False)],
            "status": [gr.update(value=view.EMPTY)],
        }
        return [update for part in self._parts for update in hidden[part]]

    def _looks(self, run: TrainingRun, names: list[str]) -> dict[str, tuple[list[Any], Callable[[], Updates]]]:
        """What tells whether a part has changed, and the updates of the part."""
        state, fault = _state(run)
        stands = [None if state is None else state.name]
        videos = run.validation_videos()[:VIDEOS]
        loss = _stamp(run.folder / "loss.csv")
        return {
            "choices": (names, lambda: [gr.update(choices=names, value=run.name, visible=True)]),
            "status": ([*stands, loss], lambda: [_status(run, state, fault)]),
            "buttons": (stands, lambda: _buttons(run, state)),
            "loss": ([loss], lambda: [_curve(lambda: view.loss_curve(run.losses()))]),
            "validation": (
                [_stamp(run.folder / "validation.csv")],
                lambda: [_curve(lambda: view.validation_curve(run.validations()))],
            ),
            "videos": ([[str(path), _stamp(path)] for path in videos], lambda: self._show(videos)),
            "command": ([*stands], lambda: [_command(run, state)]),
            "log": ([_stamp(run.folder / LOG)], lambda: [_log(run, state)]),
        }

    def _show(self, videos: Sequence[Path]) -> Updates:
        shown = [
            gr.update(
                value=str(shown_copy(path, self._uploads)),
                visible=True,
                label=f"Step {path.parent.name[5:]}, clip {int(path.stem) + 1}",
            )
            for path in videos
        ]
        return [*shown, *[gr.update(value=None, visible=False)] * (VIDEOS - len(shown))]


def _first(runs: Sequence[TrainingRun]) -> TrainingRun | None:
    """The one to show to a browser that has chosen none: one that runs, or the last one."""
    alive = (run for run in runs if (state := _state(run)[0]) is not None and state.is_alive)
    return next(alive, None) or next(iter(runs), None)


def _state(run: TrainingRun) -> tuple[RunState | None, str]:
    """How a run stands, or what is wrong with its files."""
    try:
        return run.state(), ""
    except (ValueError, OSError) as error:
        return None, str(error)


def _stamp(path: Path) -> list[int]:
    """What differs when a file has changed."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _status(run: TrainingRun, state: RunState | None, fault: str) -> str:
    if state is None:
        return view.fault(fault)
    try:
        return view.status(run, state, run.losses())
    except (ValueError, OSError) as error:
        return view.status(run, state, []) + view.fault(str(error))


def _buttons(run: TrainingRun, state: RunState | None) -> Updates:
    is_alive = state is not None and state.is_alive
    is_over = state is not None and not is_alive
    stop = "Stop at once" if state is not None and state.name == "stopping" else "Stop"
    steps = run.record().max_steps if is_over else None
    return [
        gr.update(value=stop, visible=is_alive),
        gr.update(visible=is_over),
        gr.update(value=steps, visible=is_over),
    ]


def _curve(draw: Callable[[], str]) -> Any:
    try:
        drawn = draw()
    except (ValueError, OSError) as error:
        drawn = view.fault(str(error))
    return gr.update(value=drawn, visible=bool(drawn))


def _command(run: TrainingRun, state: RunState | None) -> Any:
    return gr.update(value="" if state is None else run.command_line(), visible=state is not None)


def _log(run: TrainingRun, state: RunState | None) -> Any:
    lines = [] if state is None else run.log_lines(run.record())
    return gr.update(value="\n".join(lines[-LOG_LINES:]), visible=bool(lines))
