"""How pictures differ from a reference, and how their colours drift."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..media.timeline import FRAME_RATE


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


def frame_psnr(frames: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, at most 100: float [F].

    Args:
        frames, reference: uint8 [F, H, W, 3].
        weight: how much each pixel counts, float [F, H, W] from 0 to 1; None for all alike.
    """
    squares = (frames.float() - reference.float()).square().mean(dim=3)
    return 10 * torch.log10(255**2 / _weighted_mean(squares, weight).clamp(min=255**2 * 1e-10))


def frame_ssim(frames: Tensor, reference: Tensor, weight: Tensor | None = None) -> Tensor:
    """Structural similarity of each frame, mean of the channels: float [F].

    By torchmetrics: Gaussian window of sigma 1.5, K1 0.01, K2 0.03 (Wang et al., 2004), the picture mirrored at its
    edges.

    Args:
        frames, reference: uint8 [F, H, W, 3], H and W of 11 or more.
        weight: how much each pixel counts, float [F, H, W] from 0 to 1; None for all alike.

    Raises:
        ImportError: torchmetrics is not installed.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    ours, theirs = (video.permute(0, 3, 1, 2).float() for video in (frames, reference))
    _, whole = structural_similarity_index_measure(
        ours, theirs, data_range=255.0, reduction="none", return_full_image=True
    )
    return _weighted_mean(whole.mean(dim=1), weight)


def _weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean [F] of values [F, H, W] by their weights of the same shape, or by none."""
    return values.mean(dim=(1, 2)) if weight is None else (values * weight).sum((1, 2)) / weight.sum((1, 2))
