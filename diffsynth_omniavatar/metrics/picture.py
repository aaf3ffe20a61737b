"""How pictures differ from a reference, and how their colours drift."""

from __future__ import annotations

import numpy as np

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
