"""The samples of an optimizer step on all processes: how many, how long, and the loss of each by its noise level."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..data.sample import TrainingSample
from ..generation.record import StepRecord
from ..losses.flow import clip_errors
from ..media.timeline import transformer_tokens
from ..model.sampling import TRAIN_TIMESTEPS
from ..system.atomic import write_text_atomically
from ..system.text_files import read_text

SAMPLES_FILE = "samples.csv"


@dataclass(frozen=True)
class SampleLoss:
    """A clip in a step."""

    sample: str
    """Its name in the table."""
    frames: int
    height: int
    width: int
    timestep: float
    """0..1000."""
    mse: float
    """mean((v - (n - x_0))^2) over what the loss covers, without weights, as in the validation loss."""
    loss: float
    """The same with the weights of noise level and mouth. Its mean over a step's clips is the step's flow loss."""


COLUMNS = ("step", *(field.name for field in fields(SampleLoss)))


def level_columns(levels: int) -> list[str]:
    """Names for the mean `mse` in each of so many equal parts of the timesteps, from clean to noisy."""
    bounds = [f"{TRAIN_TIMESTEPS * part / levels:g}" for part in range(levels + 1)]
    return [f"mse_t{low}_{high}" for low, high in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class Work:
    """What a step took, on all processes."""

    samples: float = 0.0
    frames: float = 0.0
    """Video frames."""
    tokens: float = 0.0
    """Of the transformer."""

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def per_second(self, seconds: float) -> str:
        """Words for the console; "" if nothing is known."""
        if not self.samples:
            return ""
        samples, frames, tokens = (value / seconds for value in astuple(self))
        return f"  {samples:.3g} samples/s, {frames:.4g} frames/s, {tokens:.4g} tokens/s"


class StepSamples:
    """Collects the samples of each step.

    Args:
        levels: parts of the timesteps whose losses are told apart; 0 for none.
        path: table with a row for each clip of each step; None for none. Rows up to `step` stay.
        step: of the checkpoint that the run goes on from.
        is_main: whether this process writes the table.
    """

    def __init__(self, levels: int = 0, path: Path | None = None, step: int = 0, is_main: bool = True) -> None:
        self.levels, self.path = levels, path
        self.has_losses = bool(levels) or path is not None
        self.work, self.losses = Work(), list[SampleLoss]()
        self.is_main = is_main
        if path is not None and is_main:
            write_text_atomically(path, _line(COLUMNS) + (_rows_up_to(path, step) if path.is_file() else ""))

    @property
    def columns(self) -> list[str]:
        """Names of the metrics that `finish` can give."""
        return level_columns(self.levels) if self.levels else []

    def add(self, sample: TrainingSample, record: StepRecord, flow: Tensor) -> None:
        """Take a sample in, with what its step recorded and its flow loss."""
        clips = len(sample.sources)
        tokens = transformer_tokens(sample.num_frames, sample.height, sample.width)
        self.work += Work(clips, clips * sample.num_frames, clips * tokens)
        if not self.has_losses:
            return
        assert record.timestep is not None
        sizes = (sample.num_frames, sample.height, sample.width)
        columns = (record.timestep.float(), *clip_errors(record, flow))
        numbers = torch.stack([column.cpu() for column in columns], dim=1).tolist()
        self.losses += [SampleLoss(name, *sizes, *row) for name, row in zip(sample.sources, numbers, strict=True)]

    def finish(self, step: int, accelerator: Any) -> tuple[Work, Mapping[str, float]]:
        """Work and metrics of all processes in the step that is over, which every process must call; begins a new one.

        Args:
            step: its number.
            accelerator: of the run.
        """
        work, losses = self.work, self.losses
        self.work, self.losses = Work(), []
        if accelerator.num_processes > 1:
            sums = torch.tensor(astuple(work), dtype=torch.float64, device=accelerator.device)
            work = Work(*accelerator.reduce(sums, "sum").tolist())
        if not self.has_losses:
            return work, {}
        losses = gather_object(losses)
        if self.path is not None and self.is_main:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.writelines(_line((step, *astuple(loss))) for loss in losses)
        return work, self._means(losses)

    def _means(self, losses: list[SampleLoss]) -> dict[str, float]:
        """Of each part of the timesteps that has a sample."""
        parts: dict[int, list[float]] = {}
        for loss in losses:
            part = min(int(loss.timestep * self.levels / TRAIN_TIMESTEPS), self.levels - 1)
            parts.setdefault(part, []).append(loss.mse)
        return {self.columns[part]: sum(found) / len(found) for part, found in sorted(parts.items()) if self.levels}


def _line(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _rows_up_to(path: Path, step: int) -> str:
    """The rows of a table up to a step; those behind it, and one that a crash cut, are done again."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    return "".join(
        _line(row) for row in rows if len(row) == len(COLUMNS) and row[0].isdecimal() and int(row[0]) <= step
    )
