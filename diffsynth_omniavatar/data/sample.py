"""A training sample: the fields of some clips as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSample:
    """B clips of one size and length; all tensors are on the CPU. F = 4T - 3 video frames, T latent frames, h = H/8.

    Of each part either the live fields or the cached ones are given; the others are None.
    """

    sources: list[str]
    """Names of the clips."""
    num_frames: int
    height: int
    width: int
    prefix_frames: int
    """Known frames at the start, less than num_frames; 0 for none."""
    drop_text: Tensor
    """Bool [B]: takes the empty prompt."""
    drop_audio: Tensor
    """Bool [B]: takes the features of silence."""
    drop_prefix: Tensor
    """Bool [B]: the known latents are replaced by noise."""

    target_video: Tensor | None = None
    """uint8 [B, F, H, W, 3]."""
    reference_image: Tensor | None = None
    """uint8 [B, H, W, 3]."""
    mouth_mask: Path | None = None
    """V2V: image of the mask; None for the built-in one, or with `mouth_mask_latents`."""
    reference_video: Tensor | None = None
    """uint8 [B, F, H, W, 3]: another part of the clip than the target."""
    waveforms: list[Tensor] | None = None
    """float32 [n], mono at 16 kHz, of the whole clip each; features made of them are cut to the frames."""
    prompts: list[str] | None = None

    input_latents: Tensor | None = None
    """[B, 16, T, h, w]."""
    reference_latents: Tensor | None = None
    """[B, 16, 1, h, w]."""
    masked_latents: Tensor | None = None
    """[B, 16, T, h, w]."""
    mouth_mask_latents: Tensor | None = None
    """[1, 1, T, h, w], 1 where the mouth is."""
    reference_sequence_latents: Tensor | None = None
    """[B, 16, T, h, w]."""
    audio_features: Tensor | None = None
    """[B, F, C], one row beside each frame."""
    trajectory: Tensor | None = None
    """[B, K, 16, T, h, w]: noisy latents on a teacher's way to `input_latents`, at K noise levels."""
    silent_features: Tensor | None = None
    """[F, C] of F frames of silence."""
    context: Tensor | None = None
    """[B, L, D]."""
    empty_context: Tensor | None = None
    """[1, L, D] of the empty prompt."""


SHARED_FIELDS = ("mouth_mask", "mouth_mask_latents", "silent_features", "empty_context")
"""What the clips of a batch have in common."""


def batch_fields(clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a sample from those of its clips."""
    fields: dict[str, Any] = {}
    for name in clips[0]:
        values = [clip[name] for clip in clips]
        if name in SHARED_FIELDS:
            fields[name] = values[0]
        elif name in ("waveforms", "prompts"):
            fields[name] = values
        else:
            fields[name] = torch.stack(values)
    return fields
