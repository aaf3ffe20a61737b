"""Distribution matching distillation (DMD2) in flow form: pure math on tensors, whatever computes the flows.

With x_s = (1 - s) x_0 + s e the sample of noise level s, and x_0 = x_s - s v the clean one that a flow v predicts:

    rollout   the student's own steps from noise, down to an exit step whose x_0 is x_g; a gradient there alone
    student   g = (x_0 of the critic - x_0 of the teacher) / mean |x_g - x_0 of the teacher|, both of a noisy x_g
              L = 1/2 mean (x_g - stop(x_g - g))^2, whose gradient by x_g is g / n
    critic    L = mean (v - (e - x_g))^2, the flow-matching loss on what the student makes

The critic learns the score of the student's samples; g points from them to the teacher's.

Source: Yin et al. 2024, Improved Distribution Matching Distillation for Fast Image Synthesis, arXiv:2405.14867; the
flow form and the rollout as in Huang et al. 2025, Self Forcing, arXiv:2506.08009.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy samples [B, ...] and their noise levels [B] -> the flow, [B, ...]."""


def along(values: Tensor, samples: Tensor) -> Tensor:
    """A number for each sample, [B], so that it multiplies samples [B, ...]."""
    return values.to(samples.device).view(-1, *[1] * (samples.ndim - 1))


def noisy(clean: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """x_s of samples [B, ...] at their noise levels [B]."""
    s = along(level, clean)
    return (1 - s) * clean + s * noise


def clean_of(x: Tensor, level: Tensor, flow: Tensor) -> Tensor:
    """The x_0 that a flow predicts of x_s [B, ...] at levels [B]."""
    return x - along(level, x) * flow


def draw_levels(count: int, shift: float, lowest: float, highest: float) -> Tensor:
    """Noise levels [count]: u uniform in 0..1, moved to f u / (1 + (f - 1) u) by the shift f, and clamped."""
    u = torch.rand(count)
    return (shift * u / (1 + (shift - 1) * u)).clamp(lowest, highest)


def rollout(predict: Predict, noise: Tensor, levels: Sequence[float], exit_step: int, solver: str) -> Tensor:
    """What the student makes of noise [B, ...]: the x_0 of step number `exit_step`, from 0.

    Only the flow of the exit step is computed with a gradient, where gradients are on.

    Args:
        predict: the student.
        noise: what it starts from.
        levels: the noise level of each of its steps, falling.
        exit_step: the step whose x_0 is taken.
        solver: between the steps, "renoise" adds fresh noise to x_0, "euler" follows the flow.
    """
    x = noise
    wants_gradient = torch.is_grad_enabled()
    for step, s in enumerate(levels[: exit_step + 1]):
        level = torch.full((len(x),), s, device=x.device)
        with torch.set_grad_enabled(wants_gradient and step == exit_step):
            flow = predict(x, level)
            clean = clean_of(x, level, flow)
        if step < exit_step and solver == "renoise":
            x = noisy(clean, torch.full_like(level, levels[step + 1]), torch.randn_like(x))
        elif step < exit_step:
            x = x + (levels[step + 1] - s) * flow
    return clean


def guided(positive: Tensor, negative: Tensor, scale: float, inside: Tensor) -> Tensor:
    """The teacher's flow n + c (p - n), of p and n [B, ...]; p alone of the samples that are not `inside`, bool [B]."""
    return torch.where(along(inside, positive), negative + scale * (positive - negative), positive)


def dmd_gradient(student: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """The direction g, [B, ...], from the student's samples and the x_0 of critic and teacher.

    Each sample is normalised by itself; 0 where that cannot be done.
    """
    distance = (student - real).abs().flatten(1).mean(dim=1)
    return torch.nan_to_num((fake - real) / along(distance, real), nan=0.0, posinf=0.0, neginf=0.0)


def student_loss(student: Tensor, gradient: Tensor, weight: Tensor | None = None) -> Tensor:
    """A scalar whose gradient by the student's samples [B, ...] is g / n, n being how many numbers they have.

    Args:
        weight: of the squares, with mean 1; None for 1 everywhere.
    """
    square = (student - (student - gradient).detach()).square()
    return 0.5 * (square if weight is None else weight * square).mean()


def critic_loss(flow: Tensor, clean: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean squared error of a flow [B, ...] at (1 - s) x_0 + s e; `weight` as in `student_loss`."""
    square = (flow - (noise - clean)).square()
    return (square if weight is None else weight * square).mean()
