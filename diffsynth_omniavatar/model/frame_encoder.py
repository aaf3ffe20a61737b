"""The encoder of a Wan 2.1 VAE some latent frames at a time: what it keeps of the frames before has a constant size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FRAMES = 4
"""Video frames of a latent frame, but of the first one, which is one video frame."""


class FrameEncoder:
    """Encodes a video part by part, with the values that the host's `vae.model.encode` gives for the whole.

    Args:
        vae: the host's WanVideoVAE.
    """

    def __init__(self, vae: Any) -> None:
        self._vae, encoder = vae, vae.model.encoder
        # The host's encoder keeps in this list what its causal convolutions need of the frames before.
        self._kept: list[Any] = [None] * sum(isinstance(module, nn.Conv3d) for module in encoder.modules())
        self._begun = False
        self._weight: Tensor = encoder.conv1.weight

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """The latents [B, 16, n, H/8, W/8] of the next frames, in [-1, 1].

        Args:
            frames: [B, 3, 4n-3, H, W] in the first call, [B, 3, 4n, H, W] in the others.

        Raises:
            ValueError: another number of frames.
        """
        first = 0 if self._begun else 1
        count = frames.shape[2] - first
        if count < 0 or count % FRAMES or not frames.shape[2]:
            wanted = "4n" if self._begun else "4n-3"
            raise ValueError(f"the next part of the video has {frames.shape[2]} frames, wanted {wanted}.")
        self._begun = True
        parts = frames.to(self._weight).split([*[1] * first, *[FRAMES] * (count // FRAMES)], dim=2)
        mean, inverse_std = (part.to(parts[0]).view(1, -1, 1, 1, 1) for part in self._vae.scale)
        latents = self._vae.model.conv1(torch.cat([self._encode(part) for part in parts], dim=2)).chunk(2, dim=1)[0]
        return (latents - mean) * inverse_std

    def _encode(self, part: Tensor) -> Tensor:
        out = self._vae.model.encoder(part, feat_cache=self._kept, feat_idx=[0])
        return out[0] if isinstance(out, tuple) else out  # 2.1 hands the list back, 1.1.9 does not
