"""Squares of a picture as the two networks see them: 192x192, without aliasing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .networks import INPUT


@dataclass(frozen=True)
class Square:
    """A square of a picture, in pixels; it may be rotated, and lie partly or wholly outside."""

    x: float
    """Its middle."""
    y: float
    side: float
    angle: float = 0.0
    """Radians, clockwise in the picture."""

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Points [n, 2 or 3] in units of the square to pixels of the picture; z keeps its middle and gets the scale."""
        x, y = (points[:, 0] - 0.5) * self.side, (points[:, 1] - 0.5) * self.side
        sine, cosine = math.sin(self.angle), math.cos(self.angle)
        places = [self.x + cosine * x - sine * y, self.y + sine * x + cosine * y]
        return np.stack([*places, *(points[:, 2:] * self.side).T], axis=1)


def detector_view(picture: Tensor, square: Square) -> np.ndarray:
    """A square that is not rotated, as the detector takes it: float32 [192, 192, 3] in [-1, 1], black outside.

    Where the picture is cut is rounded to whole pixels, and where its part lies to those of the result.
    """
    height, width = picture.shape[:2]
    scale = INPUT / square.side
    x, y = square.x - square.side / 2, square.y - square.side / 2
    canvas = np.full((INPUT, INPUT, 3), -1.0, dtype=np.float32)
    left, right = max(round(x), 0), min(round(x + square.side), width)
    top, bottom = max(round(y), 0), min(round(y + square.side), height)
    if left < right and top < bottom:
        rows = _places(top - y, bottom - y, scale)
        columns = _places(left - x, right - x, scale)
        part = _scaled(picture[top:bottom, left:right], rows.stop - rows.start, columns.stop - columns.start)
        canvas[rows, columns] = part[0].permute(1, 2, 0).numpy() * np.float32(2 / 255) - 1
    return canvas


def mesh_view(picture: Tensor, square: Square) -> np.ndarray:
    """A square as the mesh takes it: float32 [192, 192, 3] in [0, 1]; the picture's edges go on outside."""
    height, width = picture.shape[:2]
    reach = square.side / 2 * (abs(math.cos(square.angle)) + abs(math.sin(square.angle))) + 2
    left, right = _span(square.x, reach, width)
    top, bottom = _span(square.y, reach, height)
    # Shrunk to about the scale of the result first.
    shrink = min(1.0, INPUT / square.side)
    part = _scaled(
        picture[top:bottom, left:right], math.ceil((bottom - top) * shrink), math.ceil((right - left) * shrink)
    )
    half_width, half_height = (right - left) / 2, (bottom - top) / 2
    sine, cosine = math.sin(square.angle) * square.side / 2, math.cos(square.angle) * square.side / 2
    transform = torch.tensor(
        [
            [cosine / half_width, -sine / half_width, (square.x - left) / half_width - 1],
            [sine / half_height, cosine / half_height, (square.y - top) / half_height - 1],
        ],
        dtype=torch.float32,
    )
    grid = functional.affine_grid(transform[None], [1, 3, INPUT, INPUT], align_corners=False)
    cut = functional.grid_sample(part.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (cut[0].permute(1, 2, 0) / 255).contiguous().numpy()


def _scaled(picture: Tensor, height: int, width: int) -> Tensor:
    """uint8 [H, W, 3] -> [1, 3, height, width]."""
    channels = picture.permute(2, 0, 1)[None]
    if channels.shape[2:] == (height, width):
        return channels
    return functional.interpolate(channels, (height, width), mode="bilinear", antialias=True)


def _places(first: float, last: float, scale: float) -> slice:
    """Where pixels from `first` to `last` lie in the result; at least one pixel of it."""
    start = min(max(round(first * scale), 0), INPUT - 1)
    return slice(start, max(min(round(last * scale), INPUT), start + 1))


def _span(middle: float, reach: float, length: int) -> tuple[int, int]:
    """The pixels within `reach` of `middle`; the nearest one where there are none."""
    first = min(max(math.floor(middle - reach), 0), length - 1)
    return first, max(min(math.ceil(middle + reach), length), first + 1)
