"""Crops put back where they came from, inside a mask with soft edges; all other pixels keep their bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .align import bounds, warp

FEATHER = 1 / 32
"""Width of the soft edge, inside the mask, as a share of the crop's shorter side."""


def paste(frames: Tensor, crops: Tensor, transforms: Tensor, mask: Tensor, strength: Tensor | None = None) -> Tensor:
    """Frames with crops put back inside a mask: the inverse of `align`, bicubic.

    The mask's edge fades out over `FEATHER` towards its inside, so pixels outside the mask keep their bits.

    Args:
        frames: uint8 [n, H, W, 3], RGB.
        crops: [n, h, w, 3], RGB in 0..255, uint8 or float32, as `align` makes them.
        transforms: [n, 2, 3], those that the crops were made with.
        mask: [h, w] of 1 and 0: 1 where the crop is shown, 0 where the frame is.
        strength: [n] in 0..1: how much of each crop is shown. None shows them all fully; 0 leaves the frame as it is.

    Returns:
        New uint8 frames [n, H, W, 3].

    Raises:
        ValueError: the numbers of frames, crops, transforms and strengths differ, or the mask has another size than
            the crops.
    """
    strengths = torch.ones(len(frames)) if strength is None else strength
    counts = [len(frames), len(crops), len(transforms), len(strengths)]
    if len(set(counts)) > 1:
        raise ValueError("Got {} frames, {} crops, {} transforms and {} strengths, wanted the same.".format(*counts))
    if mask.shape != crops.shape[1:3]:
        raise ValueError(f"The mask is {list(mask.shape)}, the crops are {list(crops.shape[1:3])}; wanted one size.")
    pasted = frames.clone()
    soft = soft_mask(mask.to(frames.device))
    shown = soft.nonzero().mT.add(0.5)
    if shown.shape[1] == 0:
        return pasted
    used = bounds(shown.flip(0), (soft.shape[0], soft.shape[1]))
    for frame, crop, transform, share in zip(
        pasted, crops, transforms.to(frames.device), strengths.tolist(), strict=True
    ):
        if share > 0:
            _paste_into(frame, crop, transform, soft, used, share)
    return pasted


def soft_mask(mask: Tensor) -> Tensor:
    """How much of a crop is shown where: float32 [h, w], 0 outside the mask and 1 from `FEATHER` inside it on.

    Args:
        mask: [h, w] of 1 and 0. Outside the crop it counts as 0.
    """
    width = max(1, round(min(mask.shape) * FEATHER))
    edged = F.pad(mask > 0.5, (1, 1, 1, 1))
    inside = edged[1:-1, 1:-1]
    depth = torch.zeros_like(inside, dtype=torch.uint8)
    for _ in range(width):
        rows = edged[:-2] & edged[1:-1] & edged[2:]
        inside.copy_(rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:])
        depth += inside
    share = depth / width
    return share * share * (3 - 2 * share)


def _paste_into(
    frame: Tensor, crop: Tensor, transform: Tensor, soft: Tensor, used: tuple[int, int, int, int], share: float
) -> None:
    """Puts one crop [h, w, 3] into one frame [H, W, 3], as far as `soft` [h, w] says times `share`.

    Args:
        used: left, top, right and bottom of what `soft` shows of the crop.
    """
    height, width = soft.shape
    left, top, right, bottom = used
    to_frame = transform.double() / transform.new_tensor([width, height, 1])
    corners = to_frame.new_tensor([[left, right, left, right], [top, top, bottom, bottom], [1, 1, 1, 1]])
    left, top, right, bottom = bounds(to_frame @ corners, (frame.shape[0], frame.shape[1]))
    if left == right or top == bottom:
        return
    turn = to_frame[:, :2].inverse()
    start = turn @ (to_frame.new_tensor([left, top]) - to_frame[:, 2])
    to_crop, size = torch.cat([turn, start[:, None]], dim=1).float(), (bottom - top, right - left)
    weight = warp(soft[..., None], to_crop, size, mode="bilinear", fill=0).mul_(share)
    region = frame[top:bottom, left:right].permute(2, 0, 1)
    own = region.to(torch.float32, memory_format=torch.contiguous_format)
    region.copy_(own.lerp_(warp(crop, to_crop, size), weight).round_().clamp_(0, 255))
