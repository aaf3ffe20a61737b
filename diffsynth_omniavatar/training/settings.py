"""How a training run goes: numbers only, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How the loop runs.

    Raises:
        ValueError: a value is out of its range.
    """

    max_steps: int
    """Optimizer steps of the whole run, those before a resumption included. See `steps_in_epochs`."""
    seed: int = 0
    """Fixes the order of samples, their random draws, and the random stream of every process."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows the warm-up; cosine and linear reach zero at max_steps."""
    warmup_steps: int = 0
    """Over these first steps the learning rate rises linearly, the last of them is at full rate."""
    max_grad_norm: float = math.inf
    """Gradients with a larger L2 norm are scaled down to it."""
    gradient_accumulation_steps: int = 1
    """Samples of each process in an optimizer step."""
    fp32_master_weights: bool = False
    """AdamW keeps the trained weights and its state in float32; the model computes with them rounded to its format."""
    resume: Path | None = None
    """Checkpoint folder to go on from. Rates and schedules are then those given now, not those of the checkpoint."""

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.gradient_accumulation_steps < 1:
            raise ValueError(
                f"max_steps {self.max_steps} and gradient_accumulation_steps {self.gradient_accumulation_steps} "
                "must be at least 1"
            )
        if not 0 <= self.warmup_steps <= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must lie in 0..max_steps = 0..{self.max_steps}")
        if self.lr_schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"lr_schedule {self.lr_schedule!r} must be constant, cosine or linear")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm {self.max_grad_norm} must be positive; leave it out for no clipping")

    def lr_factor(self, step: int) -> float:
        """The learning rate of step number `step` (from 0) over the base learning rate."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / (self.max_steps - self.warmup_steps)
        return 1.0 - progress if self.lr_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def steps_in_epochs(epochs: int, samples: int, processes: int, gradient_accumulation_steps: int) -> int:
    """The optimizer steps in `epochs` passes over `samples` samples: the max_steps of a run that is given in epochs."""
    return max(1, epochs * samples // (processes * gradient_accumulation_steps))
