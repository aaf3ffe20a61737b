"""Square pictures of a face, cut out of frames by boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..media.faces.face import Face
from .lips import landmarks

MEDIAN = 13
"""Frames of the median filter that steadies the boxes."""
SYNC_MARGIN = 0.4
"""SyncNet's picture reaches this far beyond the face, in halves of its size."""
SYNC_FILL = 110


def face_boxes(faces: Sequence[Face | None]) -> np.ndarray:
    """Centre and half side of the square around a face's landmarks in each frame, steadied: float [F, 3] (x, y, s).

    A frame without a face takes the nearest frame's. The median of 13 frames is taken of each number, as SyncNet's
    authors do with the boxes of their detector.

    Raises:
        ValueError: there is no face in any frame.
    """
    known = [index for index, face in enumerate(faces) if face is not None]
    if not known:
        raise ValueError("there is no face in any frame")
    boxes = np.empty((len(known), 3))
    for row, index in enumerate(known):
        points = landmarks(faces[index])  # type: ignore[arg-type]
        low, high = points.min(axis=0), points.max(axis=0)
        boxes[row] = (*(low + high) / 2, (high - low).max() / 2)
    places = np.arange(len(faces))
    filled = np.stack([np.interp(places, known, column) for column in boxes.T], axis=1)
    padded = np.pad(filled, ((MEDIAN // 2, MEDIAN // 2), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN, axis=0), axis=-1)


def sync_boxes(boxes: np.ndarray) -> np.ndarray:
    """The squares that SyncNet looks at, of the faces' squares [F, 3]: 1.4 times as large, and lower by 0.4 s."""
    x, y, s = boxes.T
    return np.stack([x, y + SYNC_MARGIN * s, s * (1 + SYNC_MARGIN)], axis=1)


def cut_squares(frames: Tensor, boxes: np.ndarray, size: int, fill: int = 0) -> Tensor:
    """Squares cut out of frames, bilinear.

    Args:
        frames: uint8 [F, H, W, 3].
        boxes: centre and half side (x, y, s) in pixels, [F, 3]; whole pixels are taken.
        size: height and width of the result.
        fill: value outside the picture.

    Returns:
        uint8 [F, size, size, 3].
    """
    height, width = frames.shape[1:3]
    cut = []
    for frame, (x, y, s) in zip(frames, boxes, strict=True):
        left, top, side = round(x - s), round(y - s), max(1, round(2 * s))
        inside = frame[max(top, 0) : max(0, top + side), max(left, 0) : max(0, left + side)]
        picture = frame.new_full((side, side, 3), fill)
        down, right = max(-top, 0), max(-left, 0)
        if top < height and left < width:
            picture[down : down + inside.shape[0], right : right + inside.shape[1]] = inside
        scaled = F.interpolate(picture.permute(2, 0, 1)[None].float(), (size, size), mode="bilinear")
        cut.append(scaled[0].permute(1, 2, 0).round().to(torch.uint8))
    return torch.stack(cut)
