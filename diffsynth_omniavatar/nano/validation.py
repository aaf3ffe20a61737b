"""The loss of the small model on clips, so that two models can be compared by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..generation.pipeline import OmniAvatarPipeline
from ..generation.record import StepRecord
from ..generation.units import ConditionUnit
from ..training.validation_loss import fixed_noise_losses, noise_levels
from .batch import encode_videos, pixels
from .speaker.clips import SpeakerClip


@torch.no_grad()
def validation_loss(
    pipe: OmniAvatarPipeline, clips: Sequence[SpeakerClip], *, draws: int = 8, seed: int = 0, batch: int = 8
) -> float:
    """`training.validation_loss` of drawn clips, at the levels (i + 1/2) / draws.

    The first frame is known and the reference; it is out of the loss. Two models can be compared by it far more sharply
    than by training losses, each of which is at a level drawn for it.

    Args:
        pipe: I2V (33 channels).
        clips: of one length of 4n+1 frames.
        draws: noise levels, each with its own noise.
        batch: clips at a time.
    """
    losses: list[float] = []
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        numbers = range(start, start + len(part))
        losses += fixed_noise_losses(pipe, _known_inputs(pipe, part), numbers, noise_levels(draws), seed)
    return math.fsum(losses) / len(losses)


def _known_inputs(pipe: OmniAvatarPipeline, clips: Sequence[SpeakerClip]) -> dict[str, Any]:
    """What the model function gets of clips, and what the loss covers."""
    frames = len(clips[0].frames)
    latents = encode_videos(pipe, pixels([clip.frames for clip in clips]))
    first = latents[:, :, :1]
    features = torch.stack([pipe.encode_speech(torch.from_numpy(clip.waveform), frames)[:frames] for clip in clips])
    condition = ConditionUnit().process(pipe, latents, first, first, None, None, None)
    return {
        "input_latents": latents,
        "omni_record": StepRecord(known_frames=1),
        "context": torch.cat([pipe.encode_prompt(clip.prompt) for clip in clips]),
        "omni_audio": features.to(latents),
        "omni_prefix_latents": first,
        **condition,
    }
