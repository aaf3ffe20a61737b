"""The loss of the small model on clips, so that two models can be compared by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..generation.pipeline import OmniAvatarPipeline
from ..generation.units import ConditionUnit
from .batch import encode_videos, pixels
from .speaker.clips import SpeakerClip


@torch.no_grad()
def validation_loss(
    pipe: OmniAvatarPipeline, clips: Sequence[SpeakerClip], *, draws: int = 8, seed: int = 0, batch: int = 8
) -> float:
    """Mean squared error of the predicted flow on clips, at fixed noise levels and fixed noise.

    The levels are (i + 1/2) / draws; the first frame is known and the reference; it is out of the loss. Two models can
    be compared by it far more sharply than by training losses, each of which is at a level drawn for it.

    Args:
        pipe: I2V (33 channels).
        clips: of one length of 4n+1 frames.
        draws: noise levels, each with its own noise.
        batch: clips at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for start in range(0, len(clips), batch):
        latents, common = _known_inputs(pipe, clips[start : start + batch])
        for index in range(draws):
            sigma = (index + 0.5) / draws
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            flow = pipe.model_fn(
                dit=pipe.dit,
                latents=(1 - sigma) * latents + sigma * noise,
                timestep=torch.tensor([1000 * sigma]).to(latents),
                **common,
            )
            errors = (flow - (noise - latents))[:, :, 1:].float().square().mean(dim=(1, 2, 3, 4))
            losses += errors.tolist()
    return float(np.mean(losses))


def _known_inputs(pipe: OmniAvatarPipeline, clips: Sequence[SpeakerClip]) -> tuple[Tensor, dict[str, Tensor]]:
    """Latents [B, 16, T, h, w] of clips, and all that the model function gets beside them and the time."""
    frames = len(clips[0].frames)
    latents = encode_videos(pipe, pixels([clip.frames for clip in clips]))
    first = latents[:, :, :1]
    features = torch.stack([pipe.encode_speech(torch.from_numpy(clip.waveform), frames)[:frames] for clip in clips])
    condition = ConditionUnit().process(pipe, latents, first, first, None, None, None)
    return latents, {
        "context": torch.cat([pipe.encode_prompt(clip.prompt) for clip in clips]),
        "omni_audio": features.to(latents),
        "omni_prefix_latents": first,
        **condition,
    }
