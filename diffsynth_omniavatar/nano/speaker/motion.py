"""How the speaker's head and eyes move, whatever the sound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...media.timeline import FRAME_RATE


@dataclass(frozen=True, eq=False)
class Motion:
    """How head and eyes move, float32 [F] each."""

    x: np.ndarray
    """Pixels that the head is right of the middle."""
    y: np.ndarray
    """Pixels that the head is below its place."""
    roll: np.ndarray
    """Radians, clockwise."""
    lids: np.ndarray
    """0 open to 1 closed."""
    gaze: np.ndarray
    """Pixels that the irises are right of the middle of the eyes."""


def draw_motion(rng: np.random.Generator, frames: int, *, sways: bool) -> Motion:
    """Slow movements and blinks.

    Swaying, the head travels 10 to 15 pixels at 0.6 to 0.9 Hz; otherwise at most 1.2.
    """
    times = np.arange(frames) / FRAME_RATE

    def wave(amplitude: float, slowest: float, fastest: float) -> np.ndarray:
        return amplitude * np.sin(2 * np.pi * (rng.uniform(slowest, fastest) * times + rng.random()))

    drift = wave(0.6, 0.1, 0.3)
    sway = wave(rng.uniform(5.0, 7.5), 0.6, 0.9) if sways else np.zeros(frames)
    lids = np.zeros(frames)
    start = rng.uniform(0.3, 2.5)
    while start < times[-1]:
        # A blink takes 0.28 s; shorter ones would be lost between the frames.
        lids = np.maximum(lids, np.clip(1.4 - np.abs(times - start) / 0.1, 0, 1))
        start += rng.uniform(1.2, 4.0)
    tracks = (
        rng.uniform(-1.0, 1.0) + drift + sway,
        wave(1.0, 0.1, 0.35) + wave(0.4, 0.4, 0.7),
        0.004 * sway + wave(0.012, 0.1, 0.3),
        lids,
        wave(1.2, 0.1, 0.4),
    )
    return Motion(*(track.astype(np.float32) for track in tracks))


def still(frames: int) -> Motion:
    """No movement at all."""
    return Motion(*np.zeros((5, frames), np.float32))
