"""Shapes on a picture, in coordinates that move and turn with a part of the speaker."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

SIZE = 128
"""Height and width of the pictures."""

Box = tuple[slice, slice]
"""Rows and columns of a picture."""

Light = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Brightness, about 1, of places right of and below the middle of a part."""

_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32) + np.float32(0.5)


class Canvas:
    """A picture, float32 [3 or 4, SIZE, SIZE], on which shapes are laid in coordinates that move and turn with a part.

    A fourth channel gets the share of each pixel that is covered.
    """

    def __init__(self, pixels: np.ndarray, x: float, y: float, roll: float) -> None:
        self.pixels = pixels
        self.origin = x, y
        sine, cosine = math.sin(roll), math.cos(roll)
        self.turned = max(0.1, abs(sine))
        self.x = cosine * (_COLUMNS - x) + sine * (_ROWS - y)
        self.y = cosine * (_ROWS - y) - sine * (_COLUMNS - x)

    def box(self, left: float, top: float, right: float, bottom: float) -> Box:
        """The pixels in which a shape lies, turned as it is."""
        margin = 2 + self.turned * max(abs(left), abs(right), abs(top), abs(bottom))
        x, y = self.origin
        rows = slice(max(0, int(y + top - margin)), max(0, int(y + bottom + margin) + 1))
        return rows, slice(max(0, int(x + left - margin)), max(0, int(x + right + margin) + 1))

    def cover(
        self,
        box: Box,
        x: float,
        y: float,
        rx: float,
        up: float,
        down: float | None = None,
        bend: float = 0.0,
    ) -> np.ndarray:
        """Share of each pixel of the box inside an ellipse with its own half heights above and below the middle.

        From the distance to the edge, (k0 - 1) k0 / k1 with k0 = |p / r| and k1 = |p / r^2|, true near the edge.
        `bend` lifts what is d from the middle by bend d^2.
        """
        dx, dy = self.x[box] - np.float32(x), self.y[box] - np.float32(y)
        if bend:
            dy = dy + np.float32(bend) * dx * dx
        ry = np.float32(up) if down is None else np.where(dy < 0, np.float32(up), np.float32(down))
        px, py = dx / np.float32(rx), dy / ry
        k0 = np.sqrt(px * px + py * py)
        k1 = np.hypot(px / np.float32(rx), py / ry) + np.float32(1e-6)
        return np.clip(np.float32(0.5) - (k0 - 1) * k0 / k1, 0, 1)

    def lay(self, box: Box, cover: np.ndarray, colour: Sequence[float] | np.ndarray) -> None:
        """A colour of three numbers, or [3, rows, columns] of the box, where `cover` [rows, columns] says."""
        part = self.pixels[(slice(None), *box)]
        paint = np.asarray(colour, np.float32).reshape(3, *(cover.shape if np.ndim(colour) == 3 else (1, 1)))
        part[:3] += cover * (paint - part[:3])
        part[3:] += cover * (1 - part[3:])

    def ellipse(
        self,
        colour: Sequence[float],
        x: float,
        y: float,
        rx: float,
        up: float,
        down: float | None = None,
        light: Light | None = None,
    ) -> None:
        """An ellipse as by `cover`, in one colour, whose brightness `light` gives for each place."""
        box = self.box(x - rx, y - up, x + rx, y + (up if down is None else down))
        self.lay(box, self.cover(box, x, y, rx, up, down), self.lit(box, colour, light))

    def lit(self, box: Box, colour: Sequence[float], light: Light | None) -> Sequence[float] | np.ndarray:
        """The colour at each place of a box, [3, rows, columns]; without light the colour itself."""
        if light is None:
            return colour
        brightness = light(self.x[box], self.y[box]).astype(np.float32)
        return np.minimum(np.float32(255), np.array(colour, np.float32)[:, None, None] * brightness)
