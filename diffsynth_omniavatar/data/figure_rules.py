"""Figures of a clip, the bounds that they have to keep, and what is said of those that do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Mode = Literal["i2v", "v2v"]
"""What a clip is for: "i2v" or "v2v"."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Bounds of one figure."""

    figure: str
    """Its name in tables and flags, such as `face_size`."""

    title: str
    """Its name for people, such as "face size"."""

    unit: str = ""
    """What is written behind a value."""

    meaning: str
    """What is measured, in a few words."""

    complaint: str
    """What is wrong with a clip that breaks the rule, in a few words; rejected clips are counted by it."""

    least: float | None = None
    """The figure has to be this or more; None for no lower bound."""

    most: float | None = None
    """The figure has to be this or less; None for no upper bound."""

    @property
    def flags(self) -> dict[str, float]:
        """Flags that set the bounds, without their dashes, with the values that they have."""
        bounds = {f"min_{self.figure}": self.least, f"max_{self.figure}": self.most}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    def with_bounds(self, given: Mapping[str, float]) -> Rule:
        """The rule with bounds of `given`, which has names as `flags` has them."""
        least = None if self.least is None else given.get(f"min_{self.figure}", self.least)
        most = None if self.most is None else given.get(f"max_{self.figure}", self.most)
        return replace(self, least=least, most=most)

    def fault(self, value: float) -> str | None:
        """What is wrong with a value: "the face is too small: face size 74 pixels, wanted 160 or more"; None if nothing
        is.
        """
        # A figure that is no number keeps no bound.
        if self.least is not None and not value >= self.least:
            wanted = f"{_number(self.least)} or more"
        elif self.most is not None and not value <= self.most:
            wanted = f"{_number(self.most)} or less"
        else:
            return None
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.complaint}: {self.title} {_number(value)}{unit}, wanted {wanted}"


def faults(figures: Mapping[str, float], rules: Iterable[Rule]) -> dict[str, str]:
    """What is wrong with a clip of these figures, by the rules' figures; figures that are not known break no rule."""
    found = {rule.figure: rule.fault(figures[rule.figure]) for rule in rules if rule.figure in figures}
    return {figure: fault for figure, fault in found.items() if fault is not None}


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
