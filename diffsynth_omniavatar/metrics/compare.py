"""Are the videos of one run better than those of another? Paired differences, with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)
"""Percentiles."""


@dataclass(frozen=True)
class Difference:
    """How a figure of run B differs from that of run A, on the clips that both have."""

    clips: int
    mean_a: float
    mean_b: float
    difference: float
    """Mean of B - A over the clips."""
    low: float
    """Lower end of the 95 % interval of that mean; NaN of a single clip."""
    high: float
    """Its upper end; NaN of a single clip."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Difference | None:
    """Mean difference of a figure, B - A, with its 95 % interval by the percentile bootstrap over clips.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13: n of the n clips are drawn with
    replacement and their mean difference is taken, 10,000 times; the interval holds the middle 95 % of these means. Of
    fewer than about ten clips it comes out too narrow.

    Args:
        a, b: the figure by clip.
        seed: of the draws.

    Returns:
        None if no clip has the figure in both.
    """
    names = [name for name in a if name in b and np.isfinite(a[name]) and np.isfinite(b[name])]
    if not names:
        return None
    first, second = (np.array([run[name] for name in names]) for run in (a, b))
    differences = second - first
    low = high = float("nan")
    if len(names) > 1:
        draws = np.random.default_rng(seed)
        means = [draws.choice(differences, len(names)).mean() for _ in range(RESAMPLES)]
        low, high = map(float, np.percentile(means, INTERVAL))
    mean_a, mean_b, difference = (float(values.mean()) for values in (first, second, differences))
    return Difference(len(names), mean_a, mean_b, difference, low, high)
