"""What hair, clothes and the wall look like in detail. It belongs to a person, and moves with the part it is on.

The details are some pixels large, so that the small VAE can show them, and none has the colours of the mouth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .canvas import SIZE

CLOTHS = "plain", "stripes across", "stripes down", "checks", "dots"
WALLS = "stripes", "panels", "bricks", "shelves", "window", "pictures"
THINGS = np.array(
    [(128, 94, 68), (70, 54, 46), (96, 140, 90), (236, 226, 206), (150, 190, 220), (62, 92, 132), (190, 150, 84)], float
)
"""Colours of what stands or hangs at the wall."""


@dataclass(frozen=True, kw_only=True)
class Texture:
    """Details of a person and of the wall behind."""

    cloth: str
    """One of `CLOTHS`."""
    cloth_period: float
    """Pixels from stripe to stripe."""
    cloth_contrast: float
    """Brightness of every second stripe, about 1."""
    strands: float
    """Strands of hair from the middle of the head to its side."""
    strand_contrast: float
    strand_phase: float
    light: float
    """-1 to 1: how much brighter the face is on the right."""
    wall: str
    """One of `WALLS`."""
    wall_seed: int
    """Of the places and colours at the wall."""


def draw_texture(rng: np.random.Generator) -> Texture:
    """Details of somebody."""
    return Texture(
        cloth=CLOTHS[rng.integers(len(CLOTHS))],
        cloth_period=rng.uniform(9.0, 13.0),
        cloth_contrast=float(rng.choice([0.68, 0.78, 1.24, 1.34])),
        strands=rng.uniform(3.5, 5.5),
        strand_contrast=rng.uniform(0.07, 0.14),
        strand_phase=rng.uniform(0.0, 2 * np.pi),
        light=rng.uniform(-1.0, 1.0),
        wall=WALLS[rng.integers(len(WALLS))],
        wall_seed=int(rng.integers(2**31)),
    )


def hair_light(texture: Texture, x: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
    """Brightness of hair at places right of and below the middle of the head, whose hair is 2 `width` wide.

    Strands run down from the crown like meridians, and below straight on; a band of light lies across them.
    """
    height = np.clip((y + 4) / 50, -0.97, 0)
    along = x / (width * np.sqrt(1 - height * height))
    strands = np.sin(2 * np.pi * texture.strands * along + texture.strand_phase)
    finer = np.sin(2 * np.pi * 1.6 * texture.strands * along + 2 * texture.strand_phase + y / 9)
    gloss = np.exp(-(((np.hypot(x, 0.9 * (y + 4)) - 37 - 3 * texture.light) / 4) ** 2)) * (y < -8)
    return 1 + texture.strand_contrast * (0.8 * strands + 0.35 * finer) + 0.1 * gloss


def face_light(texture: Texture, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brightness of the face, from one side to the other."""
    return 1 + 0.0012 * texture.light * x


def cloth_light(texture: Texture, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brightness of clothes at places right of and below the middle of the body."""
    across, down = (np.sin(2 * np.pi * place / texture.cloth_period) for place in (y, x))
    share = {
        "plain": lambda: np.zeros_like(x),
        "stripes across": lambda: _soft(across),
        "stripes down": lambda: _soft(down),
        "checks": lambda: 0.5 * (_soft(across) + _soft(down)),
        "dots": lambda: _soft(across + down - 0.9),
    }[texture.cloth]()
    folds = 1 + 0.05 * np.sin(x / 6 + 0.02 * x * y)
    return folds * (1 + (texture.cloth_contrast - 1) * share)


def _soft(values: np.ndarray) -> np.ndarray:
    """0 where values are below 0, 1 where above, with an edge that is not sharp."""
    return np.clip(0.5 + 1.6 * values, 0, 1)


def draw_wall(texture: Texture, wall: np.ndarray) -> np.ndarray:
    """The wall with what is on it.

    Args:
        texture: whose.
        wall: the plain one, float32 [3, SIZE, SIZE].

    Returns:
        float32 [3, SIZE, SIZE].
    """
    rng = np.random.default_rng(texture.wall_seed)
    painter = _Painter(wall.copy(), rng)
    paint: dict[str, Callable[[], None]] = {
        "stripes": painter.stripes,
        "panels": painter.panels,
        "bricks": painter.bricks,
        "shelves": painter.shelves,
        "window": painter.window,
        "pictures": painter.pictures,
    }
    paint[texture.wall]()
    return painter.picture


class _Painter:
    """Paints on a wall, where the head leaves it free: at the sides, each some 30 pixels wide."""

    def __init__(self, picture: np.ndarray, rng: np.random.Generator) -> None:
        self.picture, self.rng = picture, rng

    def stripes(self) -> None:
        period, strength = int(self.rng.integers(14, 22)), self.rng.choice([-0.14, 0.12])
        for left in range(int(self.rng.integers(period)) - period, SIZE, period):
            self._shade(left, 0, period // 2, SIZE, 1 + strength)

    def panels(self) -> None:
        top, width = int(self.rng.integers(46, 74)), int(self.rng.integers(22, 34))
        self._shade(0, top, SIZE, SIZE - top, 0.8)
        self._shade(0, top - 3, SIZE, 3, 1.14)
        self._shade(0, top, SIZE, 1, 0.7)
        for left in range(int(self.rng.integers(-width, 0)), SIZE, width):
            self._shade(left, top + 7, width - 6, SIZE, 1.13)
            self._shade(left + 2, top + 9, width - 10, SIZE, 0.9)

    def bricks(self) -> None:
        height, width = int(self.rng.integers(11, 15)), int(self.rng.integers(24, 32))
        for row, top in enumerate(range(0, SIZE, height)):
            for left in range(-(width // 2) * (row % 2), SIZE, width):
                self._shade(left, top, width - 2, height - 2, self.rng.uniform(0.82, 0.98))

    def shelves(self) -> None:
        for side in (0, SIZE - 34):
            for bottom in range(int(self.rng.integers(28, 38)), SIZE, 34):
                left = side + 1
                while left < side + 32:
                    width, height = int(self.rng.integers(5, 10)), int(self.rng.integers(14, 24))
                    self._thing(left, bottom - height, min(width, side + 33 - left), height)
                    left += width + int(self.rng.random() < 0.2) * 4
                self._fill(side, bottom, 34, 3, 0.8 * THINGS[0])

    def window(self) -> None:
        left, top = int(self.rng.choice([-14, -8, 88, 94])), int(self.rng.integers(8, 20))
        self._fill(left, top, 48, 68, THINGS[3])
        for column in (left + 4, left + 26):
            self._fill(column, top + 4, 18, 60, THINGS[4])
            self._fill(column, top + int(self.rng.integers(34, 46)), 18, 18, THINGS[2])
            self._fill(column, top + 30, 18, 3, THINGS[3])
        self._shade(left - 4, top + 68, 56, 4, 0.75)

    def pictures(self) -> None:
        for side in (2, SIZE - 30):
            top = int(self.rng.integers(6, 16))
            while top < 90:
                width, height = int(self.rng.integers(18, 27)), int(self.rng.integers(20, 34))
                left = side + int(self.rng.integers(0, 28 - width))
                self._shade(left + 2, top + 2, width, height, 0.8)
                self._fill(left, top, width, height, THINGS[int(self.rng.integers(2))])
                self._thing(left + 3, top + 3, width - 6, height - 6)
                self._thing(left + 3, top + height // 2, width - 6, height // 2 - 3)
                top += height + int(self.rng.integers(8, 14))

    def _thing(self, left: int, top: int, width: int, height: int) -> None:
        self._fill(left, top, width, height, THINGS[self.rng.integers(len(THINGS))] * self.rng.uniform(0.85, 1.08))

    def _part(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        return self.picture[:, max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]

    def _fill(self, left: int, top: int, width: int, height: int, colour: np.ndarray) -> None:
        self._part(left, top, width, height)[:] = colour[:, None, None]

    def _shade(self, left: int, top: int, width: int, height: int, brightness: float) -> None:
        self._part(left, top, width, height)[:] *= brightness
