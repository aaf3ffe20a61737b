"""Checkpoints that can be compared: of the models that are there, of trainings, and others that lie in --data."""

from __future__ import annotations

import time
from pathlib import Path

from .readable import Readable
from .shelf import Model, Shelf
from .training_runs import BEST, TrainingRuns


def offered_checkpoints(shelf: Shelf, runs: TrainingRuns) -> list[str]:
    """The models, then RUN/step-N and RUN/best of each training."""
    trained = [f"{run.name}/{checkpoint.name}" for run in runs.all() for checkpoint in run.checkpoints()]
    return [*shelf.names(dubs=False), *trained]


def chosen_checkpoint(text: str, shelf: Shelf, runs: TrainingRuns, readable: Readable) -> Model:
    """The model with a checkpoint.

    Args:
        text: one of `offered_checkpoints`, or a path.
        shelf: the models, which takes it up.
        runs: the trainings.
        readable: where others may lie.

    Raises:
        ValueError, OSError: there is none, it cannot be read or fits no model.
    """
    text = text.strip()
    if not text:
        raise ValueError("choose a checkpoint")
    if (model := shelf.models.get(text)) is not None and shelf.find(text) is model:
        return model
    path = _of_run(text, runs) or readable.path(text)
    return shelf.add_checkpoint(f"{text}{_written(path)}", path)


def _of_run(text: str, runs: TrainingRuns) -> Path | None:
    """The folder of RUN/step-N; None where there is no such run or step."""
    name, _, step = text.partition("/")
    run = next((run for run in runs.all() if run.name == name), None)
    return None if run is None else next((path for path in run.checkpoints() if path.name == step), None)


def _written(path: Path) -> str:
    """When a checkpoint was written, where another one can take its place: what is loaded may be the one before."""
    return f" of {time.strftime('%H:%M:%S', time.localtime(path.stat().st_mtime))}" if path.name == BEST else ""
