"""What the losses on frames look at: windows of a clip, pictures of another size, their lower half.

Frames are [B, 3, F, H, W], RGB in [-1, 1].
"""

from __future__ import annotations

import logging
from functools import cache

import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)


@cache
def windows(frames: int, window: int, stride: int) -> tuple[range, ...]:
    """The frames of each window: `window` frames from 0, `stride`, 2 `stride`, ..., as long as they fit.

    Frames behind the last window that fits are not used; that is logged, once for each combination of arguments.

    Raises:
        ValueError: there is no window: fewer frames than one has; or window or stride is not positive.
    """
    if window < 1 or stride < 1:
        raise ValueError(f"windows of {window} frames, {stride} apart: both must be at least 1")
    if frames < window:
        raise ValueError(
            f"{frames} frames are too few for a window of {window}; use longer clips or more decoded frames"
        )
    found = tuple(range(start, start + window) for start in range(0, frames - window + 1, stride))
    unused = frames - len(set().union(*found))
    if unused:
        logger.info(
            "%d of %d frames are in no window (%d frames, %d apart): no loss on them", unused, frames, window, stride
        )
    return found


def check_frames(frames: Tensor, count: int | None = None) -> None:
    """Raise ValueError unless `frames` is [B, 3, F, H, W], floating point, of `count` frames if given."""
    wanted = "F" if count is None else str(count)
    right = frames.ndim == 5 and frames.shape[1] == 3 and count in (None, frames.shape[2])
    if not right or not frames.is_floating_point():
        raise ValueError(f"frames: got {list(frames.shape)} {frames.dtype}, wanted floating [B, 3, {wanted}, H, W]")


def check_same(predicted: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both are frames of one shape."""
    check_frames(predicted)
    if predicted.shape != target.shape:
        raise ValueError(f"target: got {list(target.shape)}, wanted {list(predicted.shape)} like the prediction")


def resize(frames: Tensor, size: int) -> Tensor:
    """[B, 3, F, size, size] of frames [B, 3, F, H, W]: bicubic, no antialiasing, aspect not kept, as LatentSync does.

    Frames of that size come back as they are. Bicubic weights overshoot: values may leave [-1, 1].
    """
    if frames.shape[-2:] == (size, size):
        return frames
    _tell_if_squeezed(frames.shape[-2], frames.shape[-1], size)
    pictures = frames.transpose(1, 2).flatten(0, 1)
    resized = F.interpolate(pictures, size=(size, size), mode="bicubic", align_corners=False)
    return resized.unflatten(0, (frames.shape[0], frames.shape[2])).transpose(1, 2)


@cache
def _tell_if_squeezed(height: int, width: int, size: int) -> None:
    if height != width:
        logger.warning(
            "pictures of %dx%d are squeezed to %dx%d: the auxiliary networks know square crops of aligned faces",
            height,
            width,
            size,
            size,
        )


def lower_half(frames: Tensor) -> Tensor:
    """[..., ceil(H / 2), W] of frames [..., H, W]: the half with the mouth, from row H // 2 on."""
    return frames[..., frames.shape[-2] // 2 :, :]
