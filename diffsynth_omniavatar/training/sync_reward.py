"""Distillation: samples whose lips follow the sound weigh more in the student's loss.

    weight of a sample = exp(beta c)        c: mean cosine of lips and sound over windows of 16 frames, 0 to 1

c is StableSyncNet's, of the frames that the student made, decoded. It is a weight, so no gradient goes through it. The
idea is Lip Forcing's, with SyncNet's confidence in place of c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..losses.mel import WINDOW, mel_window
from ..losses.sync import SyncLoss
from ..model.frame_decoder import decode_frames, frames_of
from .auxiliary import mel_of


@dataclass(frozen=True)
class SyncReward:
    """Gives samples their weights."""

    sync: SyncLoss
    beta: float

    @torch.no_grad()
    def __call__(self, vae: Any, latents: Tensor, known_frames: int, waveforms: Sequence[Tensor]) -> Tensor:
        """Weights [B], float32.

        Args:
            vae: the host's, on the device.
            latents: what the student made, [B, 16, T, h, w].
            known_frames: latent frames at their start that it did not make.
            waveforms: the sound of each sample, [n] at 16 kHz.

        Raises:
            ValueError: fewer than 16 frames, or no sound for them.
        """
        stop = frames_of(latents.shape[2] - 1).stop
        start = max(0, min(frames_of(known_frames).start, stop - WINDOW))
        return torch.stack(
            [self._weight(vae, *one, start, stop) for one in zip(latents.split(1), waveforms, strict=True)]
        )

    def _weight(self, vae: Any, latents: Tensor, waveform: Tensor, start: int, stop: int) -> Tensor:
        mel = mel_of(waveform, stop)
        frames = decode_frames(vae, latents.to(next(vae.parameters()).dtype), start, stop).clamp(-1, 1)
        cosines = [
            self.sync.window_cosine(frames[:, :, part.start : part.stop], mel_window(mel, start + part.start)[None])
            for part in self.sync.windows(stop - start, mel, start)
        ]
        return (self.beta * torch.cat(cosines).mean()).exp()
