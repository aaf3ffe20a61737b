"""Where a face lies in its crop. Plain numbers: this imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Template:
    """Where a face lies in its crop, in pixels of a canvas that is then stretched to the crop's size.

    Raises:
        ValueError: a side is not positive, a point is not a pair of numbers, or the three points lie in one place.
    """

    canvas: tuple[float, float]
    """Width and height of the canvas."""

    left_brow: tuple[float, float]
    """Place of the centre of the left eyebrow, x and y; left in the picture."""

    right_brow: tuple[float, float]
    """Place of the centre of the right eyebrow, x and y."""

    nose: tuple[float, float]
    """Place of the centre of the nose, x and y."""

    def __post_init__(self) -> None:
        for name in ("canvas", "left_brow", "right_brow", "nose"):
            pair: Sequence[float] = getattr(self, name)
            if len(pair) != 2 or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in pair):
                raise ValueError(f"A face template's {name} is {pair!r}, wanted two numbers.")
            object.__setattr__(self, name, (float(pair[0]), float(pair[1])))
        if min(self.canvas) <= 0:
            raise ValueError(f"A face template's canvas is {self.canvas}, wanted two numbers above 0.")
        if self.left_brow == self.right_brow == self.nose:
            raise ValueError(f"A face template's points all lie at {self.nose}.")

    @property
    def anchors(self) -> tuple[complex, complex, complex]:
        """The three points as complex numbers x + iy."""
        return complex(*self.left_brow), complex(*self.right_brow), complex(*self.nose)


LATENTSYNC = Template(canvas=(420, 560), left_brow=(95.2, 112), right_brow=(324.8, 112), nose=(210, 224))
"""LatentSync's (https://github.com/bytedance/LatentSync): what V2V models are trained on. In a square crop faces are
4:3 wider than they are."""

HEAD = Template(canvas=(512, 512), left_brow=(192, 205), right_brow=(320, 205), nose=(256, 267))
"""A square around the whole head, as it is."""
