"""Mouth masks of V2V: drawn or read, at the size of latents, over a video, and to paste by."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..media.images import ImageSource, load_image
from ..media.timeline import latent_frames
from ..model.config import AUDIO_WINDOW

MaskSource = ImageSource | Tensor
"""A mouth mask as `load_mouth_mask` takes it."""


def draw_mouth_mask(size: int = 256) -> Tensor:
    """The built-in mouth mask for an aligned face that fills a square frame, [size, size]: 1 keep, 0 regenerate.

    The lower face from below the eyes to the chin is regenerated (41 % of the area), the nose bridge is kept.
    """
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cheeks = ((x - 0.5).abs() < 0.463) & (y > 0.373) & (y < 0.57)
    jaw = (((x - 0.5) / 0.463) ** 2 + ((y - 0.57) / 0.375) ** 2 < 1) & (y >= 0.57)
    nose = ((x - 0.5).abs() < 0.195) & (y < 0.5)
    return 1.0 - ((cheeks | jaw) & ~nose).float()


def load_mouth_mask(mask: MaskSource | None, height: int, width: int) -> Tensor:
    """A mouth mask at the video's size, [1 or F, H, W]: 1 keep, 0 regenerate.

    Args:
        mask: None for the built-in one; an image like LatentSync's (white = keep); or a tensor [H, W] or [F, H, W] of 1
            and 0, one per video frame.

    Raises:
        ValueError: the layout is another, or the mask keeps or regenerates everything.
    """
    if mask is None:
        pixels = draw_mouth_mask()[None]
    elif isinstance(mask, Tensor):
        if mask.dim() not in (2, 3):
            raise ValueError(f"A mouth mask is [H, W] or [frames, H, W], got {list(mask.shape)}.")
        pixels = mask.float().reshape(-1, *mask.shape[-2:])
    else:
        pixels = torch.from_numpy(np.array(load_image(mask).convert("L"))).float()[None] / 255
    binary = (F.interpolate(pixels[:, None], (height, width), mode="bilinear")[:, 0] > 0.5).float()
    if binary.min() == 1 or binary.max() == 0:
        raise ValueError("The mouth mask keeps or regenerates the whole picture; white is kept, black regenerated.")
    return binary


def paste_outside_mouth(frames: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Generated frames with the source's own pixels wherever the mouth mask keeps them.

    Inside the mouth, behind the mask's edge, the two fade into each other over 1/64 of the height: no seam shows.

    Args:
        frames, source: [..., F, H, W] in [-1, 1].
        mask: [1 or F, H, W], from `load_mouth_mask`.
    """
    reach = max(1, mask.shape[-2] // 64)
    around = F.pad(mask[:, None], (reach,) * 4, mode="replicate")
    near = F.avg_pool2d(around, 2 * reach + 1, stride=1)[:, 0]  # near one half at the edge
    kept = torch.where(mask == 1, 1.0, (2 * near).clamp(max=1)).to(frames)
    return frames + kept * (source.to(frames) - frames)


def mask_to_latents(mask: Tensor, latent_count: int) -> Tensor:
    """A pixel mask [1 or F, H, W] (1 keep) at latent size, [1, 1, T, H/8, W/8]: 0 keep, 1 generate.

    Bilinear, above one half, inverted. Of the four frames of a latent frame, a place is generated if any one's is.

    Raises:
        ValueError: F is neither 1 nor 4T-3.
    """
    small = F.interpolate(mask[:, None], scale_factor=1 / 8, mode="bilinear")[:, 0]
    generate = (small <= 0.5).float()
    if len(generate) == 1:
        return generate.expand(latent_count, -1, -1)[None, None]
    if latent_frames(len(generate)) != latent_count:
        raise ValueError(f"The mouth mask has {len(generate)} frames, wanted 1 or {4 * latent_count - 3}.")
    head, tail = generate[:1], generate[1:].unflatten(0, (-1, AUDIO_WINDOW)).amax(dim=1)
    return torch.cat([head, tail])[None, None]


def mask_video(video: Tensor, mask: Tensor, known_frames: int) -> Tensor:
    """Grey out the mouth: video [B, 3, F, H, W] in [-1, 1] times mask [1 or F, H, W], but for the first
    `known_frames`.
    """
    masked = video * mask.to(video)[None, None]
    masked[:, :, :known_frames] = video[:, :, :known_frames]
    return masked
