"""The best step of a run by a figure of its validations, and for how long none was better."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..metrics.evaluate import HIGHER_IS_BETTER, LOWER_IS_BETTER
from ..system.atomic import write_text_atomically
from ..system.text_files import parse_json, read_text

PREFIX = "validation_"
"""How the names of all figures of validations begin."""
LOSS = f"{PREFIX}loss"
PROGRESS_FILE = "validation.json"
"""Of a checkpoint: `Progress` at its step."""


@dataclass(frozen=True)
class Goal:
    """A figure, and which of its values are better.

    Attributes:
        figure: its name in the logs.
        is_higher_better: the direction.
    """

    figure: str
    is_higher_better: bool

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Of "validation_sync_c", or "validation_mine:max" for a figure whose direction is not known.

        Raises:
            ValueError: the figure has another kind of name, or its direction is missing or wrong.
        """
        figure, _, direction = text.partition(":")
        name = figure.removeprefix(PREFIX)
        if not figure.startswith(PREFIX) or not name:
            raise ValueError(f"{text} is no figure of a validation, all of which begin with {PREFIX}: {PREFIX}{name}")
        known = {"max": name in HIGHER_IS_BETTER, "min": figure == LOSS or name in LOWER_IS_BETTER}
        if direction and direction not in known:
            raise ValueError(f"{text} ends with :{direction}, wanted {figure}:min or {figure}:max")
        if not direction and not any(known.values()):
            raise ValueError(f"whether low or high values of {figure} are good is not known: {figure}:min or :max")
        return cls(figure, is_higher_better=direction == "max" if direction else known["max"])

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than the best so far; None if there is none."""
        return than is None or (value > than if self.is_higher_better else value < than)


@dataclass
class Progress:
    """What a run's validations have shown so far."""

    validated: int | None = None
    """The step of the last one."""
    figure: str | None = None
    """What decides which is best."""
    value: float | None = None
    """Of the best step."""
    step: int | None = None
    """The best one."""
    worse: int = 0
    """Validations since then."""

    def judge(self, step: int, figures: Mapping[str, float], goal: Goal | None) -> bool:
        """Take the figures of a validation; whether they are the best so far.

        A figure that is absent or not finite is worse than all, and does not count before there is a best step.
        """
        self.validated = step
        if goal is None:
            return False
        if self.figure != goal.figure:
            self.figure, self.value, self.step, self.worse = goal.figure, None, None, 0
        value = figures.get(goal.figure, math.nan)
        if math.isfinite(value) and goal.is_better(value, self.value):
            self.value, self.step, self.worse = value, step, 0
            return True
        self.worse += self.step is not None
        return False

    def write(self, checkpoint: Path) -> None:
        """Into a checkpoint's folder."""
        write_text_atomically(checkpoint / PROGRESS_FILE, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> Progress:
        """Of a checkpoint; nothing for one of a run without validations.

        Raises:
            ValueError: the file is damaged.
        """
        path = checkpoint / PROGRESS_FILE
        if not path.is_file():
            return cls()
        try:
            return cls(**parse_json(read_text(path), str(path)))
        except TypeError as error:
            raise ValueError(f"{path} is not what training writes: {error}") from error
