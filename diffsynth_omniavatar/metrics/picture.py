"""How pictures differ from a reference, and how their colours drift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..media.timeline import FRAME_RATE

WINDOW, SIGMA = 11, 1.5
"""Pixels and deviation of the Gaussian window of SSIM."""

Weights = Sequence[Tensor | None]


def psnr(frames: np.ndarray, reference: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures uint8 [..., H, W, 3] at the places `where`, bool [H, W], or at all.

    Args:
        reference: of the same shape, or one picture [H, W, 3].
    """
    if where is not None:
        frames, reference = frames[..., where, :], reference[..., where, :]
    difference = frames.astype(np.float64) - reference.astype(np.float64)
    return float(10 * np.log10(255**2 / max((difference**2).mean(), 1e-9)))


def colour_drift(frames: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean colour at the places `where`, bool [H, W], less that of the first second: float [F, 3], of 255."""
    colours = np.stack([frame[where].mean(axis=0, dtype=np.float64) for frame in frames])
    return colours - colours[:FRAME_RATE].mean(axis=0)


def drift_at_end(frames: np.ndarray, where: np.ndarray) -> float:
    """Greatest drift of a channel, of 255, between the first and the last second."""
    return float(np.abs(colour_drift(frames, where)[-FRAME_RATE:].mean(axis=0)).max())


def frame_psnr(frames: Tensor, reference: Tensor, weights: Weights = (None,)) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, at most 100, by each of the weights: float [weights, F].

    Args:
        frames, reference: uint8 [F, H, W, 3].
        weights: how much each pixel counts, float [F, H, W] from 0 to 1; None for all alike.
    """
    squares = (frames.float() - reference.float()).square().mean(dim=3)
    means = torch.stack([_weighted_mean(squares, weight) for weight in weights])
    return 10 * torch.log10(255**2 / means.clamp(min=255**2 * 1e-10))


def frame_ssim(frames: Tensor, reference: Tensor, weights: Weights = (None,)) -> Tensor:
    """Structural similarity of each frame, mean of the channels, by each of the weights: float [weights, F].

    (2 a b + c1)(2 cov + c2) / ((a^2 + b^2 + c1)(va + vb + c2)) with means a and b, variances va and vb and covariance
    cov in a Gaussian window of 11x11 with sigma 1.5, c1 = (0.01 * 255)^2, c2 = (0.03 * 255)^2, for each pixel around
    which the window lies inside the picture; Wang et al., "Image quality assessment" (2004).

    Args:
        frames, reference: uint8 [F, H, W, 3], H and W of 11 or more.
        weights: as for `frame_psnr`.
    """
    inside = slice(WINDOW // 2, -(WINDOW // 2))
    found = []
    for place, pair in enumerate(zip(frames, reference, strict=True)):  # one at a time, for its maps
        ours, theirs = (frame.permute(2, 0, 1).float() for frame in pair)
        similar = _similarity(ours, theirs).mean(dim=0)[None]
        parts = [weight if weight is None else weight[place, inside, inside][None] for weight in weights]
        found.append(torch.stack([_weighted_mean(similar, part) for part in parts]))
    return torch.cat(found, dim=1)


def _similarity(ours: Tensor, theirs: Tensor) -> Tensor:
    """The formula of `frame_ssim` at each place of pictures [3, H, W]: [3, H - 10, W - 10]."""
    maps = torch.cat([ours, theirs, ours**2 + theirs**2, ours * theirs])
    a, b, squares, ab = _window_means(maps).chunk(4)
    variances, covariance = squares - a**2 - b**2, ab - a * b
    first, second = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * a * b + first) * (2 * covariance + second) / ((a**2 + b**2 + first) * (variances + second))


def _window_means(maps: Tensor) -> Tensor:
    """Means of maps [C, H, W] in the Gaussian window, first down, then across: [C, H - 10, W - 10]."""
    places = torch.arange(WINDOW, device=maps.device) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    count = len(maps)
    down = F.conv2d(maps[None], weights.view(1, 1, -1, 1).expand(count, 1, -1, 1), groups=count)
    return F.conv2d(down, weights.view(1, 1, 1, -1).expand(count, 1, 1, -1), groups=count)[0]


def _weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean [F] of values [F, H, W] by their weights of the same shape, or by none."""
    return values.mean(dim=(1, 2)) if weight is None else (values * weight).sum((1, 2)) / weight.sum((1, 2))
