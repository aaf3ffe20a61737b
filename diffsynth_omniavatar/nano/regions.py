"""Places in the pictures of a speaker that keeps still."""

from __future__ import annotations

import itertools

import numpy as np

from .speaker.canvas import SIZE
from .speaker.drawing import FACE, MOUTH, render
from .speaker.identity import Identity
from .speaker.motion import Motion, moved

MOUTH_SIDE = 56
"""Pixels of the square around a mouth, which is up to 44 wide and 34 high."""


def static_region(identity: Identity) -> np.ndarray:
    """Where a person that keeps still looks the same whatever they say and however they move: bool [128, 128]."""
    motion, openness = _plain_moves() if identity.texture is None else _lively_moves()
    frames = render(identity, openness, 1 - openness, motion)
    span = (frames.max(axis=0).astype(int) - frames.min(axis=0)).max(axis=-1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(span, 1, mode="edge"), (3, 3))
    return np.asarray(around.max(axis=(2, 3)) <= 8)


def _plain_moves() -> tuple[Motion, np.ndarray]:
    """Every way in which a plain person that keeps still may be, and openness, [n] each."""
    levels = (-1.6, 0, 1.6), (-1.4, 1.4), (0, 0.5, 1), (0, 0.5, 1)
    x, y, openness, lids = np.array(list(itertools.product(*levels)), np.float32).T
    return moved(len(x), x=x, y=y, roll=0.0075 * x, lids=lids, gaze=0.75 * x), openness


def _lively_moves() -> tuple[Motion, np.ndarray]:
    """The same of a lively one: nothing of the head is in one place, so that its eyes do not matter."""
    levels = (-1.6, 1.6), (-5.5, 0, 5.5), (-4.6, 0, 6.0), (-0.1, 0, 0.1), (0, 1)
    x, turn, nod, roll, openness = np.array(list(itertools.product(*levels)), np.float32).T
    return moved(len(x), x=x, turn=turn, nod=nod, roll=roll), openness


def mouth_box(identity: Identity) -> tuple[int, int, int]:
    """Row, column and side of a square around the mouth of a person that keeps still, however far it opens."""
    column, row = FACE
    return round(row + MOUTH + identity.mouth_drop - 0.4 * MOUTH_SIDE), round(column - 0.5 * MOUTH_SIDE), MOUTH_SIDE


def mouth_region(identity: Identity) -> np.ndarray:
    """The places of `mouth_box`: bool [128, 128]."""
    row, column, side = mouth_box(identity)
    where = np.zeros((SIZE, SIZE), bool)
    where[row : row + side, column : column + side] = True
    return where


def background() -> np.ndarray:
    """Where a person that keeps still never is: bool [128, 128]."""
    where = np.zeros((SIZE, SIZE), bool)
    where[: 3 * SIZE // 4, :8] = where[: 3 * SIZE // 4, -8:] = True
    return where
