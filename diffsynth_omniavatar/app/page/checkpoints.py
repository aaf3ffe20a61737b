"""Checkpoints that can be chosen: of the models that are there, of trainings, and others that lie in --data."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ...model.checkpoint import read_facts
from ...model.config import has_masked_video
from .command_lines import shown_path
from .shelf import Model
from .state import PageApp
from .training_runs import BEST, TrainingRun

_CHECKPOINT = re.compile(rf"step-\d+|{BEST}")
"""Names of complete checkpoints."""


def offered_checkpoints(app: PageApp, dubs: bool) -> list[str]:
    """What `chosen_checkpoint` takes: the models, then the complete checkpoints of each training.

    Those of the page's own trainings are called RUN/step-N and RUN/best, those of others by their paths.

    Args:
        app: the page.
        dubs: those that dub videos, else those that make portraits talk.
    """
    own = {run.folder: run.name for run in app.runs.all()}
    found = map(Path, app.readable.search(_has_steps, within_found=False))
    others = {folder: shown_path(folder) for folder in found if folder not in own}
    trained = [
        f"{name}/{path.name}"
        for folder, name in {**own, **others}.items()
        for path in TrainingRun(folder).checkpoints()
        if _mode(path) == dubs
    ]
    return [*app.shelf.names(dubs), *trained]


def chosen_checkpoint(app: PageApp, text: str) -> Model:
    """The model with a checkpoint; the shelf takes it up.

    Args:
        app: the page.
        text: one of `offered_checkpoints`, or a path.

    Raises:
        ValueError, OSError: there is none, it cannot be read or fits no model.
    """
    text = text.strip()
    if not text:
        raise ValueError("choose a checkpoint")
    if (model := app.shelf.models.get(text)) is not None:
        if model.lacks:
            raise ValueError(f"{text} is not there: {model.lacks}")
        return model
    path = _of_run(app, text) or app.readable.path(text)
    return app.shelf.add_checkpoint(f"{text}{_written(path)}", path)


def _has_steps(_: Path, inside: Sequence[Path]) -> bool:
    return any(_CHECKPOINT.fullmatch(path.name) for path in inside)


def _mode(path: Path) -> bool | None:
    """Whether a checkpoint dubs videos; None where it cannot be read, or a training has just removed it."""
    try:
        return _dubs(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=1000)
def _dubs(path: Path, _: int) -> bool | None:
    """Whether a checkpoint, written at that time, dubs videos; None where it cannot be read."""
    try:
        known = read_facts((path,))
    except ValueError:
        return None
    return None if known is None else has_masked_video(known.in_dim or 33)


def _of_run(app: PageApp, text: str) -> Path | None:
    """The folder of RUN/step-N or RUN/best; None where it is no such text.

    Raises:
        ValueError: there is no such run, or it has no such step.
    """
    name, _, step = text.partition("/")
    if _CHECKPOINT.fullmatch(step) is None:
        return None
    run = next((run for run in app.runs.all() if run.name == name), None)
    if run is None:
        if app.readable.holds(Path(text).absolute()):
            return None
        raise ValueError(f"there is no run {name[:80]}: choose another checkpoint")
    path = next((path for path in run.checkpoints() if path.name == step), None)
    if path is None:
        raise ValueError(f"the run {name} has no {step}: choose another checkpoint")
    return path


def _written(path: Path) -> str:
    """When a checkpoint was written that a better one replaces."""
    return f" of {time.strftime('%H:%M:%S', time.localtime(path.stat().st_mtime))}" if path.name == BEST else ""
