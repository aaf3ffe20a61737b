"""How the speaker's head and face move, whatever the sound."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from ...media.timeline import FRAME_RATE


@dataclass(frozen=True, eq=False)
class Motion:
    """How head and face move, float32 [F] each."""

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
    gaze_down: np.ndarray
    """Pixels that they are below it."""
    turn: np.ndarray
    """Pixels that the face is turned to the right: how far its features move within the outline of the head."""
    nod: np.ndarray
    """Pixels that the features are below their place, of which the outline of the head goes a part."""
    left_brow: np.ndarray
    """Pixels that the brow on the left of the picture is raised; negative values frown."""
    right_brow: np.ndarray
    smile: np.ndarray
    """Pixels that the corners of the mouth are lifted."""


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
    return moved(
        frames,
        x=rng.uniform(-1.0, 1.0) + drift + sway,
        y=wave(1.0, 0.1, 0.35) + wave(0.4, 0.4, 0.7),
        roll=0.004 * sway + wave(0.012, 0.1, 0.3),
        lids=lids,
        gaze=wave(1.2, 0.1, 0.4),
    )


def moved(frames: int, **tracks: np.ndarray | float) -> Motion:
    """A motion of which only some tracks are not zero; each is [F] or a number."""
    given = {name: np.zeros(frames) + track for name, track in tracks.items()}
    return replace(still(frames), **{name: track.astype(np.float32) for name, track in given.items()})


def still(frames: int) -> Motion:
    """No movement at all."""
    return Motion(*np.zeros((len(fields(Motion)), frames), np.float32))
