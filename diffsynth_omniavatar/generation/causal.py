"""A video by a causal student: one chunk of latent frames after the other, in memory that does not grow.

    x = e;  for each noise level s, the next one s':  x_0 = x - s v;  x = (1 - s') x_0 + s' e'  with fresh noise
    the last x_0 is the chunk; one more pass at level 0 keeps its keys and values for the chunks behind it

Source: Lip Forcing, https://github.com/T-64/LipForcing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.causal import CausalDenoiser
from ..model.config import LATENT_CHANNELS
from ..model.frame_decoder import FrameDecoder
from ..model.frame_encoder import FrameEncoder
from ..model.sampling import TRAIN_TIMESTEPS
from .masks import mask_to_latents, mask_video

LIP_FORCING_LEVELS = (0.999, 0.769)
"""The noise levels of its published student."""


class ChunkInputs(NamedTuple):
    """What a chunk of F latent frames is made from."""

    y: Tensor
    """Conditioning channels [B, in_dim - 16, F, h, w]."""
    audio: Tensor
    """Audio features, one row per video frame: [B, 4F-3, C] of the first chunk, [B, 4F, C] of the others."""


def source_chunks(vae: Any, frames: Iterable[Tensor], mask: Tensor, audio: Iterable[Tensor]) -> Iterator[ChunkInputs]:
    """The inputs of each chunk of a video to dub, 65 channels, encoded as its frames come.

    As Lip Forcing has it, the reference is the video's first latent frame, the reference sequence the video itself
    with its mouth, and all frames are masked.

    Args:
        frames: those of each chunk [B, 3, 4F-3, H, W], then [B, 3, 4F, H, W], in [-1, 1].
        mask: the mouth mask [1, H, W], 1 keep, from `masks.load_mouth_mask`.
        audio: features of each chunk, one row per video frame, in the denoiser's number format.

    Raises:
        ValueError: as `FrameEncoder`.
    """
    whole, masked = FrameEncoder(vae), FrameEncoder(vae)
    reference: Tensor | None = None
    for pictures, rows in zip(frames, audio, strict=False):
        sequence, hidden = whole(pictures), masked(mask_video(pictures, mask, known_frames=0))
        if reference is None:
            reference = sequence[:, :, :1]
        count = sequence.shape[2]
        generate = mask_to_latents(mask, count).to(sequence).expand(len(sequence), -1, -1, -1, -1)
        parts = [reference.expand(-1, -1, count, -1, -1), generate, hidden, sequence]
        yield ChunkInputs(torch.cat(parts, dim=1).to(rows.dtype), rows)


@torch.no_grad()
def causal_latents(
    denoise: CausalDenoiser,
    chunks: Iterable[ChunkInputs],
    noise: Callable[[Sequence[int]], Tensor],
    levels: Sequence[float] = LIP_FORCING_LEVELS,
) -> Iterator[Tensor]:
    """The clean latents [B, 16, F, h, w] of each chunk, as soon as they are there.

    The next chunk's inputs are asked for when its latents are, so they may be encoded, or wait for sound, until then.

    Args:
        denoise: of this video; it has seen no chunk yet.
        chunks: their inputs, in order.
        noise: shape -> fresh noise, standard normal.
        levels: noise levels of the steps, falling, below 1.
    """
    finished: tuple[Tensor, ChunkInputs] | None = None
    for inputs in chunks:
        if finished is not None:
            latents, shown = finished
            denoise(latents, torch.zeros(1, device=latents.device), *shown, keep=True)
        shape = (inputs.y.shape[0], LATENT_CHANNELS, *inputs.y.shape[2:])
        x = noise(shape).to(inputs.y.device, torch.float32)
        for level, following in pairwise((*levels, 0.0)):
            timestep = torch.tensor([level * TRAIN_TIMESTEPS], device=x.device)
            x = x - level * denoise(x.to(inputs.y), timestep, *inputs).float()
            if following:
                x = (1 - following) * x + following * noise(shape).to(x)
        finished = x.to(inputs.y), inputs
        yield finished[0]


@torch.no_grad()
def decoded(vae: Any, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The video frames [B, 3, 4F-3 or 4F, H, W] of each chunk of latents, clamped, as soon as they are there.

    Raises:
        ValueError: as `FrameDecoder`.
    """
    decoder, latent = FrameDecoder(vae), 0
    state = decoder.start()
    for chunk in chunks:
        frames = []
        for inputs in decoder.inputs(chunk).split(1, dim=2):
            frames.append(decoder.step(inputs, latent, state).clamp(-1, 1))
            latent += 1
        yield torch.cat(frames, dim=2)
