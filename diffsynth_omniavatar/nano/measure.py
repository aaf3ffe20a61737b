"""What a video of the small model's speaker shows, from its pixels alone: the mouth and how the head moves.

A pixel of the mouth is a mixture of skin, lips and dark inside. The shares are linear in the colours, so that their
sums, which are areas, survive a blur, and noise averages out.
"""

from __future__ import annotations

import numpy as np

from .speaker.canvas import SIZE
from .speaker.drawing import CORNER, INSIDE, LIP, NARROW, OPENING, SPREAD, UPWARD

SEARCHED = (0.50, 0.92, 0.10, 0.90)
"""Rows and columns among which the mouth is looked for, in parts of height and width."""

PINK = 24.0
"""Least (red + blue) / 2 - green of a pixel of the mouth; skin, hair, clothes and walls stay below 15."""

LOWER_LIP = 0.6
"""Pixels that the lower lip is thicker than the upper one."""

LEAST_PIXELS = 12
"""A picture with fewer pixels of the mouth's colour, at 128x128, shows none."""


def measure_mouth(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Openness and width of the speaker's mouth, in the units of `drawing.render`.

    Args:
        frames: uint8 [F, H, W, 3], RGB, H = W.

    Returns:
        Openness (0 closed to 1) and width (0 rounded to 1 spread), float32 [F] each. They are not clipped: noise goes
        to both sides of 0 and 1. A picture without lips gives NaN.

    Raises:
        ValueError: the frames have another shape or type.
    """
    opening, half_width, _, _ = measure_lips(frames)
    return opening / np.float32(OPENING), (half_width - np.float32(NARROW)) / np.float32(SPREAD)


def measure_lips(frames: np.ndarray) -> np.ndarray:
    """Opening between the lips, half the width of the mouth, and x and y of its middle as it is when closed, all in
    pixels of a picture 128 wide: float32 [4, F]. Arguments, errors and pictures without lips as for `measure_mouth`.
    """
    _check(frames)
    return np.array([_measure(frame) for frame in frames], np.float32).reshape(-1, 4).T


def measure_sway(frames: np.ndarray) -> float:
    """Pixels, of a picture 128 wide, that the head travels from side to side, in a clip.

    The head is what differs from the wall, which is the same along each row. Its place is the middle of that, weighted
    by how much differs, over the upper 55 % of the picture. The 5 % farthest out on both sides are left out.

    Args:
        frames: uint8 [F, H, W, 3], RGB, H = W.

    Raises:
        ValueError: the frames have another shape or type.
    """
    _check(frames)
    upper = frames[:, : round(0.55 * frames.shape[1])].astype(np.float32)
    edge = max(1, round(0.05 * frames.shape[2]))
    wall = np.median(np.concatenate([upper[:, :, :edge], upper[:, :, -edge:]], axis=2), axis=2, keepdims=True)
    differs = np.clip(np.abs(upper - wall).sum(axis=3) / 60 - 0.5, 0, 1).sum(axis=1)
    place = (differs * (np.arange(frames.shape[2]) + 0.5)).sum(axis=1) / np.maximum(differs.sum(axis=1), 1e-6)
    first, last = np.quantile(place, (0.05, 0.95))
    return float(last - first) * SIZE / frames.shape[2]


def _check(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[1] != frames.shape[2] or frames.dtype != np.uint8:
        raise ValueError(
            f"got {frames.dtype} frames {list(frames.shape)}; the speaker's are uint8 [F, size, size, 3]: "
            "use images.to_bytes() for values in [-1, 1]"
        )


def _measure(frame: np.ndarray) -> tuple[float, float, float, float]:
    """The four lengths of `measure_lips` in a picture [size, size, 3]."""
    size = len(frame)
    top, bottom, left, right = (round(part * size) for part in SEARCHED)
    part = frame[top:bottom, left:right].astype(np.float32)
    pink = (part[..., 0] + part[..., 2]) / 2 - part[..., 1]
    # Single pixels of noise must not count.
    mouth = _mean_around(pink) > PINK
    scale = SIZE / size
    if mouth.sum() * scale**2 < LEAST_PIXELS:
        return np.nan, np.nan, np.nan, np.nan
    mouth = _near_median(mouth, round(28 / scale))
    grown = _grow(mouth, max(1, round(2 / scale)))
    ring = part[_grow(grown, max(1, round(2 / scale))) & ~grown]
    lips, inside = _shares(part[grown], np.median(ring, axis=0))
    columns = np.broadcast_to(np.arange(part.shape[1]), grown.shape)[grown]
    weight = lips + inside
    middle = (weight * columns).sum() / weight.sum()
    spread = (weight * (columns - middle) ** 2).sum() / weight.sum()
    # The second moment of an ellipse along an axis is a quarter of its half axis squared.
    half_width = 2 * np.sqrt(max(spread, 0.0)) * scale
    # An ellipse's area is pi/4 times width and height.
    opening = inside.sum() * scale**2 / (np.pi / 2 * max(half_width - CORNER, NARROW / 2))
    rows = np.broadcast_to(np.arange(part.shape[0])[:, None], grown.shape)[grown]
    lower = (weight * rows).sum() / weight.sum()
    # Half an ellipse of height h has its middle at 4 h / (3 pi); the lower half is higher, by the opening and the lip.
    lower -= 4 / (3 * np.pi) * ((1 - 2 * UPWARD) * opening + LOWER_LIP) / scale
    return opening, half_width, (left + middle + 0.5) * scale, (top + lower + 0.5) * scale


def _mean_around(values: np.ndarray) -> np.ndarray:
    """Means over 3 x 3 places; the edges are continued."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def _near_median(mouth: np.ndarray, reach: int) -> np.ndarray:
    """The pixels within `reach` of the median one."""
    rows, columns = np.nonzero(mouth)
    row, column = int(np.median(rows)), int(np.median(columns))
    near = np.zeros_like(mouth)
    near[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
    return mouth & near


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """All pixels within `steps` of a true one, along rows and columns."""
    side = 2 * steps + 1
    rows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, steps), side, axis=0).max(axis=-1)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(rows, side, axis=1).max(axis=-1))


def _shares(pixels: np.ndarray, skin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares l of lips and i of inside in pixels p [n, 3]: p - skin = l (lip - skin) + i (inside - skin), fitted."""
    mixture = np.stack([np.array(LIP) - skin, np.array(INSIDE) - skin], axis=1)
    lips, inside = np.linalg.pinv(mixture) @ (pixels - skin).T
    return lips, inside
