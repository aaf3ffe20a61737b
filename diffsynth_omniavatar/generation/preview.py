"""What a video will show, while it is made: its latents as small pictures, by a linear map in place of the VAE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..media.images import to_bytes
from ..system.atomic import write_atomically

PREVIEW_SUFFIXES = (".png", ".jpg", ".webp")
FITTED_FRAMES, FITTED_SIDE = 5, 128
"""Video frames and pixels of the clip that the map is fitted to: two latent frames of 16x16."""
PATCHES = (3, 6, 12)
"""Blurred patches beside each other in that clip, from coarse to fine."""
COLOUR = 0.3
"""Part of the patches' contrast that is colour; the rest is light and dark, of which pictures have more."""
WIDEST = 1024
"""Pixels of a sheet's width up to which its pictures are enlarged."""
LARGEST_SCALE = 8


@dataclass(frozen=True, eq=False)
class Preview:
    """What a denoising step has come to."""

    chunk: int
    """Number of the chunk, from 1."""
    chunks: int
    """Of the whole video."""
    step: int
    """Number of the step in it, from 1."""
    steps: int
    """Of a chunk."""
    pictures: np.ndarray
    """The clean video that the step predicts, uint8 [T, h, w, 3]: a picture for each latent frame, a pixel for 8x8."""


OnPreview = Callable[[Preview], None]


@dataclass(frozen=True, eq=False)
class LatentColours:
    """The linear map from latents to colours: RGB = latents @ weights + bias, in [-1, 1].

    Attributes:
        weights: [16, 3] float32.
        bias: [3] float32.
    """

    weights: Tensor
    bias: Tensor

    @classmethod
    @torch.no_grad()
    def of_vae(cls, vae: Any, device: Any, dtype: torch.dtype) -> LatentColours:
        """The map that comes nearest to what a VAE does, by least squares.

        The VAE encodes a clip of blurred colours; the latents of each place are fitted to the mean colour of the
        pixels there. So it fits every VAE and needs no table.

        Args:
            vae: the host's.
            device: where it computes.
            dtype: its number format.
        """
        picture = _colours()
        clip = picture.unsqueeze(2).expand(-1, -1, FITTED_FRAMES, -1, -1)
        latents = vae.single_encode(clip.to(dtype), device)[0].float().cpu()
        means = F.avg_pool2d(picture, FITTED_SIDE // latents.shape[-1])[0]
        values = latents.flatten(1).T
        wanted = means.unsqueeze(1).expand(-1, latents.shape[1], -1, -1).flatten(1).T
        with_ones = torch.cat([values, torch.ones(len(values), 1)], dim=1)
        solution = torch.linalg.lstsq(with_ones, wanted, driver="gelsd").solution
        return cls(solution[:-1], solution[-1])

    def pictures(self, latents: Tensor) -> np.ndarray:
        """Latents [16, T, h, w] as pictures, uint8 [T, h, w, 3]."""
        places = latents.float().permute(1, 2, 3, 0)
        return to_bytes(places @ self.weights.to(places) + self.bias.to(places)).cpu().numpy()


def _colours() -> Tensor:
    """A picture of blurred colours, [1, 3, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    size = (FITTED_SIDE, FITTED_SIDE)
    picture = torch.zeros(1, 3, *size)
    for patches in PATCHES:
        grey, colour = (2 * torch.rand(1, n, patches, patches, generator=generator) - 1 for n in (1, 3))
        mixed = (1 - COLOUR) * grey + COLOUR * colour
        picture += 0.6 * F.interpolate(mixed, size, mode="bicubic")
    return picture.clamp(-1, 1)


def sheet(pictures: np.ndarray) -> Image.Image:
    """All pictures of a preview, uint8 [T, h, w, 3], in rows on one, enlarged."""
    count, height, width, _ = pictures.shape
    columns = min(count, math.ceil(math.sqrt(count * height / width)))
    rows = math.ceil(count / columns)
    placed = np.zeros((rows * columns, height, width, 3), np.uint8)
    placed[:count] = pictures
    joined = placed.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    scale = max(1, min(LARGEST_SCALE, WIDEST // (columns * width)))
    return Image.fromarray(joined).resize((columns * width * scale, rows * height * scale), Image.Resampling.BICUBIC)


def write_sheet(path: str | Path, pictures: np.ndarray) -> None:
    """Write the pictures of a preview as one picture, in place of the one before.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(Path(path), sheet(pictures).save)
