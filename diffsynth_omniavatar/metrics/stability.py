"""What changes in a video that should not: flicker, frozen frames, sharpness that goes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LUMA = (0.2126, 0.7152, 0.0722)
"""BT.709."""
STILL = 0.05
"""Mean difference, of 255, up to which two frames count as equal: what a codec leaves of a repeated frame."""


def luma(frames: Tensor) -> Tensor:
    """Float32 [F, H, W], 0 to 255, of frames uint8 [F, H, W, 3]."""
    return frames.float() @ torch.tensor(LUMA, device=frames.device)


def sharpness(brightness: Tensor) -> Tensor:
    """Standard deviation of the Laplacian of each frame: float [F]; less is more blurred.

    Args:
        brightness: luma of the frames, float [F, H, W], H and W of 3 or more.
    """
    return laplacian(brightness).flatten(1).std(dim=1)


def laplacian(brightness: Tensor) -> Tensor:
    """The four neighbours of each pixel less four times itself, of pictures [F, H, W]: [F, H - 2, W - 2]."""
    inner = brightness[:, 1:-1, 1:-1]
    across = brightness[:, 1:-1, :-2] + brightness[:, 1:-1, 2:]
    down = brightness[:, :-2, 1:-1] + brightness[:, 2:, 1:-1]
    return across + down - 4 * inner


def change(frames: Tensor, before: Tensor | None) -> Tensor:
    """Mean difference of each frame from the one before, of 255: float [F]; NaN for the first of a video.

    Args:
        frames: uint8 [F, H, W, 3].
        before: the frame [H, W, 3] in front of them; None at the start of the video.
    """
    first = frames[:1] if before is None else before[None]
    changes = (frames.float() - torch.cat([first, frames[:-1]]).float()).abs().mean(dim=(1, 2, 3))
    if before is None:
        changes[0] = torch.nan
    return changes


def frozen_share(changes: np.ndarray) -> float:
    """Share of the frames that equal the one before; `changes` [F] from `change`."""
    seen = changes[np.isfinite(changes)]
    return float((seen <= STILL).mean()) if len(seen) else float("nan")


def flicker(brightness: np.ndarray) -> float:
    """Mean of |b[t-1] - 2 b[t] + b[t+1]| of the mean luma of each frame, of 255.

    Slow changes of light leave it near 0; a value that jumps up and down does not.
    """
    return float(np.abs(np.diff(brightness, 2)).mean()) if len(brightness) > 2 else float("nan")


def late_change(curve: np.ndarray, span: int) -> float:
    """Mean of the last `span` values of a curve less that of its first; frames without a value (NaN) do not count."""
    ends = [part[np.isfinite(part)] for part in (curve[:span], curve[-span:])]
    return float(ends[1].mean() - ends[0].mean()) if all(map(len, ends)) else float("nan")


def border_colours(frames: Tensor) -> Tensor:
    """Mean colour of the upper left and upper right corners, a sixth of each side, which a speaker seldom covers.

    Args:
        frames: uint8 [F, H, W, 3].

    Returns:
        Float [F, 3], 0 to 255.
    """
    down, across = max(1, frames.shape[1] // 6), max(1, frames.shape[2] // 6)
    corners = torch.cat([frames[:, :down, :across], frames[:, :down, -across:]], dim=2)
    return corners.float().mean(dim=(1, 2))
