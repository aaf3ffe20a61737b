"""An exponential moving average of weights that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """a <- d a + (1 - d) w after each update of the weights, in float32.

    Early on, d is smaller, so that the start is soon forgotten: min(d, (1 + n) / (10 + n)) at the n-th update.

    Args:
        weights: by name; they change in place. Of weights that are sharded, each process averages its own part.
        decay: d, 0 < d < 1.
        rounded: the model's own tensors, by the same names, where the weights are float32 copies of them.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], decay: float, rounded: Mapping[str, Tensor] | None = None
    ) -> None:
        self.weights, self.decay = weights, decay
        self.shown = weights if rounded is None else rounded
        self.values = {name: value.detach().float().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take in the weights after their update number `count`, from 1."""
        decay = min(self.decay, (1 + count) / (10 + count))
        for name, weight in self.weights.items():
            value = self.values[name].to(weight.device)  # the host moves the weights after this has been made
            self.values[name] = value.lerp_(weight.float(), 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """The average in the model's number format."""
        return {name: value.to(self.shown[name].dtype) for name, value in self.values.items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from the average of a checkpoint."""
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Within it the model computes with the average."""
        before = {name: weight.detach().clone() for name, weight in self.shown.items()}
        for name, weight in self.shown.items():
            weight.copy_(self.values[name])
        try:
            yield
        finally:
            for name, weight in self.shown.items():
                weight.copy_(before[name])
