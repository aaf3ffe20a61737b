"""Moves that nothing decides: not the sound, the prompt or the portrait, and not what was seen before.

Each is a choice between states that are well apart, at a moment that is drawn. So the mean of all that may come is a
picture that no clip shows: two irises at once in each eye, lids half closed, a blurred face. A model that takes one
step to its picture makes that mean; one that samples does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...media.timeline import FRAME_RATE
from .motion import Motion

BLINK_EDGE = 0.05
"""Seconds in which lids close, or open."""

TURNED = 0.62
"""Part of a turn that a head makes that sways as well: else the mouth would leave its mask."""


def liven(motion: Motion, start: np.random.Generator, future: np.random.Generator, *, sways: bool) -> Motion:
    """A motion with moves that nothing decides, in place of its gaze and its blinks.

    Args:
        motion: of F frames, as by `draw_motion`.
        start: draws how the first frame is, and what the person's eyes are after.
        future: draws what comes then. With another one the first frame is the same.
        sways: whether the head sways.
    """
    frames = len(motion.x)
    gaze, gaze_down = _gaze(start, future, frames)
    tilt = _held(start, future, frames, _either_way(0.055, 0.09), (0.4, 0.3, 0.3), rest=0.45, mean=0.8, way=0.2)
    turn = _held(start, future, frames, _either_way(3.8, 5.5), (0.3, 0.35, 0.35), rest=0.3, mean=0.6, way=0.16)
    brows = _brows(start, future, frames)
    smile = _held(start, future, frames, [(0, 0), (1.8, 3.2)], (0.5, 0.5), rest=0.5, mean=0.9, way=0.2)
    livened = {
        "roll": motion.roll + tilt,
        "lids": _blinks(future, frames),
        "gaze": gaze,
        "gaze_down": gaze_down,
        "turn": (TURNED if sways else 1.0) * turn,
        "nod": _nods(future, frames),
        "left_brow": brows[0],
        "right_brow": brows[1],
        "smile": smile,
    }
    return replace(motion, **{name: track.astype(np.float32) for name, track in livened.items()})


def _either_way(least: float, most: float) -> list[tuple[float, float]]:
    """The middle, and from `least` to `most` to either side."""
    return [(0.0, 0.0), (-most, -least), (least, most)]


def _visits(
    start: np.random.Generator,
    future: np.random.Generator,
    frames: int,
    shares: Sequence[float],
    rest: float,
    mean: float,
) -> list[tuple[float, int]]:
    """Moments in seconds, the first one 0, and the state that each begins; two in a row differ.

    A state lasts `rest` seconds and then as much again as an exponential distribution of that mean gives. The first one
    has begun before: it lasts what is left.
    """
    weights = np.array(shares)
    state = int(start.choice(len(weights), p=weights))
    visits, now = [(0.0, state)], future.exponential(mean)
    while now < frames / FRAME_RATE:
        others = np.where(np.arange(len(weights)) == state, 0, weights)
        state = int(future.choice(len(weights), p=others / others.sum()))
        visits.append((now, state))
        now += rest + future.exponential(mean)
    return visits


def _held(
    start: np.random.Generator,
    future: np.random.Generator,
    frames: int,
    ranges: Sequence[tuple[float, float]],
    shares: Sequence[float],
    *,
    rest: float,
    mean: float,
    way: float,
) -> np.ndarray:
    """A track [F] that goes, in `way` seconds, from one held value to another, each from the range of its state."""
    times = np.arange(frames) / FRAME_RATE
    track = np.zeros(frames)
    before = 0.0
    for number, (moment, state) in enumerate(_visits(start, future, frames, shares, rest, mean)):
        value = (future if number else start).uniform(*ranges[state])
        if number:
            gone = np.clip((times - moment) / way, 0, 1)
            track = track + (value - before) * gone * gone * (3 - 2 * gone)
        else:
            track = track + value
        before = value
    return track


def _gaze(start: np.random.Generator, future: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """The eyes jump, from one frame to the next, between what is left, right and, seldom, in front."""
    targets = np.array([start.uniform(-4.8, -3.8), start.uniform(3.8, 4.8), start.uniform(-0.4, 0.4)])
    heights = start.uniform(-1.2, 1.2, 3)
    times = np.arange(frames) / FRAME_RATE
    visits = _visits(start, future, frames, (0.43, 0.43, 0.14), rest=0.16, mean=0.45)
    moments, states = np.array([moment for moment, _ in visits]), np.array([state for _, state in visits])
    seen = states[np.searchsorted(moments, times, side="right") - 1]
    return targets[seen], heights[seen]


def _blinks(future: np.random.Generator, frames: int) -> np.ndarray:
    """Lids [F]: sudden, of many lengths, one in three followed at once by another; open at the start."""
    times = np.arange(frames) / FRAME_RATE
    lids = np.zeros(frames)
    middle = 0.2 + future.exponential(1.0)
    while middle < frames / FRAME_RATE + 0.2:
        closed = future.uniform(0.04, 0.16)
        lids = np.maximum(lids, np.clip(1 + (closed / 2 - np.abs(times - middle)) / BLINK_EDGE, 0, 1))
        again = future.random() < 0.33
        middle += closed + (future.uniform(0.2, 0.3) if again else 0.4 + future.exponential(1.0))
    return lids


def _nods(future: np.random.Generator, frames: int) -> np.ndarray:
    """Nods [F], single and double, most of them down first."""
    times = np.arange(frames) / FRAME_RATE
    nod = np.zeros(frames)
    begin = future.exponential(1.2)
    while begin < frames / FRAME_RATE:
        size = future.uniform(2.8, 4.6) * (1 if future.random() < 0.75 else -0.7)
        lasts, count = future.uniform(0.24, 0.4), 1 + int(future.random() < 0.45)
        phase = np.clip((times - begin) / lasts, 0, count)
        nod = nod + size * np.sin(np.pi * phase) ** 2
        begin += count * lasts + 0.2 + future.exponential(1.0)
    return nod


def _brows(start: np.random.Generator, future: np.random.Generator, frames: int) -> np.ndarray:
    """Both brows [2, F]: at rest, raised, frowning, or one of them raised; they jump."""
    states = np.array([(0.0, 0.0), (1.0, 1.0), (-0.45, -0.45), (1.0, 0.0), (0.0, 1.0)])
    times = np.arange(frames) / FRAME_RATE
    visits = _visits(start, future, frames, (0.36, 0.26, 0.22, 0.08, 0.08), rest=0.24, mean=0.6)
    size = start.uniform(3.0, 3.6)
    track = np.zeros((2, frames)) + size * states[visits[0][1]][:, None]
    for (_, before), (moment, after) in itertools.pairwise(visits):
        track += size * (states[after] - states[before])[:, None] * np.clip((times - moment) / 0.08, 0, 1)
    return track
