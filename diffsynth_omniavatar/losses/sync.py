"""Do lips and speech fit? StableSyncNet's cosine of 16 frames and their sound, after LatentSync's train_unet.py.

    loss = SyncLoss(load_syncnet("stable_syncnet.pt", "cuda", torch.bfloat16))
    value = loss(frames, [mel_spectrogram(waveform)], [0])

Memory in 16 bits: 0.8 GB of weights, and 0.1 GB for the gradient of a window. The frames are judged window by window,
and `window_loss` lets a caller take the gradient of one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .mel import MEL_COLUMNS, MEL_ROWS, WINDOW, mel_start, mel_window
from .syncnet import StableSyncNet
from .windows import check_frames, lower_half, resize, windows

logger = logging.getLogger(__name__)

Form = Literal["cosine", "logits"]

PICTURE_SIZE = 256
LEAST_COSINE = 1e-3
"""Below it, the loss -log(cosine) goes on as its tangent there."""


class SyncLoss:
    """Mean over windows of 16 frames of -log c (form "cosine") or log(1 + exp(-c)) ("logits"), c the cosine.

    "cosine" is LatentSync's: the binary cross entropy of c itself against 1. Both vectors are non-negative, so that c
    is in [0, 1]. Its gradient -1 / c has no bound near 0; below c = 0.001 the loss goes on as its tangent,
    -log 0.001 + (0.001 - c) / 0.001, whose gradient is -1000: it neither vanishes nor explodes, and above it the loss
    is LatentSync's. "logits" takes c for a logit, as some reproductions do; it is between 0.31 and 0.69 then and
    its gradient nearly the same for all c. It is there for comparison.

    A plain object: set as an attribute of a module it does not become a part of that module.

    Args:
        network: frozen (`load_syncnet`).
        form: "cosine" or "logits".
        stride: from the start of a window to that of the next, in frames.
    """

    def __init__(self, network: StableSyncNet, form: Form = "cosine", stride: int = WINDOW) -> None:
        if form not in ("cosine", "logits"):
            raise ValueError(f'form: got {form!r}, wanted "cosine" or "logits"')
        self.network = network
        self.form = form
        self.stride = stride

    def windows(self, frames: int, mel: Tensor, first_frame: int = 0) -> tuple[range, ...]:
        """The windows of a clip that have sound to their end; others are not used, which is logged.

        Args:
            frames: how many the clip has, 16 or more.
            mel [80, M]: of the whole sound.
            first_frame: the clip's first frame, counted from the start of the sound, 25 a second.

        Raises:
            ValueError: fewer than 16 frames, or no window has sound.
        """
        found = windows(frames, WINDOW, self.stride)
        heard = tuple(window for window in found if mel_start(first_frame + window[0]) + MEL_COLUMNS <= mel.shape[1])
        if not heard:
            raise ValueError(
                f"mel: {mel.shape[1]} columns end before the first {WINDOW} frames from frame {first_frame} on do, at "
                f"column {mel_start(first_frame) + MEL_COLUMNS}; give the sound of the whole clip, or drop the clip"
            )
        if len(heard) < len(found):
            logger.warning("the sound ends early: %d of %d windows have none", len(found) - len(heard), len(found))
        return heard

    def window_loss(self, frames: Tensor, mel: Tensor) -> Tensor:
        """The loss of one window, a scalar float32: the mean over B. Arguments and errors as for `window_cosine`."""
        cosine = self.window_cosine(frames, mel)
        return (F.softplus(-cosine) if self.form == "logits" else cosine_loss(cosine)).mean()

    def window_cosine(self, frames: Tensor, mel: Tensor) -> Tensor:
        """How well lips and sound fit, the cosine of both vectors: float32 [B], 0 to 1.

        Args:
            frames [B, 3, 16, H, W]: RGB in [-1, 1]. Resized to 256x256 (bicubic); the lower half is looked at.
            mel [B, 80, 52]: from `mel_window`.

        Raises:
            ValueError: other shapes.
        """
        check_frames(frames, WINDOW)
        if mel.shape != (len(frames), MEL_ROWS, MEL_COLUMNS):
            raise ValueError(f"mel: got {list(mel.shape)}, wanted {[len(frames), MEL_ROWS, MEL_COLUMNS]}")
        mouths = lower_half(resize(frames.float(), PICTURE_SIZE))
        vision, audio = self.network(mouths.transpose(1, 2).flatten(1, 2), mel[:, None].to(frames.device))
        return (vision * audio).sum(dim=1)

    def __call__(self, frames: Tensor, mels: Sequence[Tensor], first_frames: Sequence[int]) -> Tensor:
        """The mean of `window_loss` over all windows of all clips, a scalar float32.

        Args:
            frames [B, 3, F, H, W]: RGB in [-1, 1], F of 16 or more.
            mels: of each clip the mel [80, M] of its whole sound.
            first_frames: of each clip its first frame, counted from the start of its sound.

        Raises:
            ValueError: other shapes, fewer than 16 frames, a clip without sound.
        """
        check_frames(frames)
        losses = [
            self.window_loss(clip[None, :, window.start : window.stop], mel_window(mel, first + window.start)[None])
            for clip, mel, first in zip(frames, mels, first_frames, strict=True)
            for window in self.windows(frames.shape[2], mel, first)
        ]
        return torch.stack(losses).mean()


def cosine_loss(cosine: Tensor) -> Tensor:
    """-log c of cosines c, and its tangent at LEAST_COSINE below it; no less than 0 where rounding makes c > 1."""
    cosine = cosine.clamp(max=1)
    return (LEAST_COSINE - cosine).clamp(min=0) / LEAST_COSINE - cosine.clamp(min=LEAST_COSINE).log()
