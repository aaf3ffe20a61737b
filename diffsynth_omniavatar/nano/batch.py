"""Several clips of the small model at once: what `generate` makes one by one, made together, in memory.

A GPU is busy with a batch of 32 for hardly longer than with one clip of this model. Each clip gets what `generate`
would give it, so that one made here equals one made there; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..generation.colours import match_colours
from ..generation.generate import chunk_features
from ..generation.masks import load_mouth_mask, paste_outside_mouth
from ..generation.pipeline import OmniAvatarPipeline
from ..generation.scheduler import FreshNoise, StepScheduler
from ..generation.units import ConditionUnit, MaskedVideoUnit, PrefixUnit
from ..media.images import to_bytes, to_video
from ..media.timeline import DEFAULT_OVERLAP, ChunkPlan, chunk_length, ping_pong, plan_chunks
from ..model import sampling as settings
from ..model.small_family import NANO

SEED_STEP = 1000
"""Seeds between the clips of a batch; each chunk of a clip takes one."""


_SHIPPED = NANO.conventions.sampling


@dataclass(frozen=True, kw_only=True)
class Sampling(settings.Sampling):
    """How the clips of a batch are sampled: as the shipped weights say, unless given."""

    steps: int = _SHIPPED.steps
    cfg_scale: float = _SHIPPED.cfg_scale
    audio_cfg_scale: float | None = _SHIPPED.audio_cfg_scale
    sigma_shift: float = _SHIPPED.sigma_shift
    match_colours: bool = _SHIPPED.match_colours
    negative_prompt: str = _SHIPPED.negative_prompt
    seed: int = 0
    """Chunk k of clip i starts from the noise of seed + SEED_STEP i + k."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Take:
    """What a clip is made from."""

    prompt: str
    portrait: np.ndarray
    """uint8 [H, W, 3]."""
    waveform: np.ndarray
    """float32 [n], mono at 16 kHz; of one length in a batch."""
    video: np.ndarray | None = None
    """V2V: uint8 [frames, H, W, 3]; behind its end it runs back."""


def generate_batch(
    pipe: OmniAvatarPipeline, takes: Sequence[Take], sampling: Sampling, *, mute: bool = False
) -> np.ndarray:
    """Videos of the takes, uint8 [B, F, H, W, 3]: all of `generate_chunks`."""
    return np.concatenate([*generate_chunks(pipe, takes, sampling, mute=mute)], axis=1)


@torch.no_grad()
def generate_chunks(
    pipe: OmniAvatarPipeline, takes: Sequence[Take], sampling: Sampling, *, mute: bool = False
) -> Iterator[np.ndarray]:
    """Videos of the takes, chunk by chunk.

    Args:
        pipe: I2V or V2V (33 or 49 channels).
        takes: of one size and length.
        sampling: how.
        mute: features of zero instead of the sounds'.

    Yields:
        uint8 [B, n, H, W, 3], n in all = rows of the sound + leading rows; frame j hears row j - leading rows.
    """
    if sampling.guided_steps != range(sampling.steps) or sampling.guidance_rescale or sampling.apg_eta != 1:
        names = "apg_eta, guidance_rescale, guidance_from and guidance_to"
        raise ValueError(f"{names} are not for clips that are made together.")
    height, width = takes[0].portrait.shape[:2]
    plan = plan_chunks(
        len(takes[0].waveform),
        length=chunk_length(height, width, pipe.conventions.max_tokens),
        overlap=min(DEFAULT_OVERLAP, max(pipe.conventions.prefix_frames)),
        leading_rows=pipe.conventions.leading_audio_rows,
    )
    features = torch.stack([pipe.encode_speech(torch.from_numpy(take.waveform), plan.padded_rows) for take in takes])
    positive = torch.cat([pipe.encode_prompt(take.prompt) for take in takes])
    texts = positive, pipe.encode_prompt(sampling.negative_prompt).expand_as(positive)
    reference = encode_videos(pipe, pixels([take.portrait[None] for take in takes]))
    mask = load_mouth_mask(None, height, width) if pipe.dit.config.has_masked_video else None
    carried: Tensor | None = None
    for chunk in plan.chunks:
        audio = torch.stack([chunk_features(rows, chunk) for rows in features]).to(reference)
        seeds = [sampling.seed + SEED_STEP * clip + chunk.index for clip in range(len(takes))]
        scheduler = StepScheduler(pipe.scheduler, sampling, FreshNoise(seeds))
        scheduler.set_timesteps(sampling.steps, shift=sampling.sigma_shift)
        noise = _noise(pipe, seeds, plan, reference)
        original = pixels([_shown(take, chunk.frames) for take in takes])
        inputs = _condition(pipe, original, reference, carried, noise)
        inputs["omni_audio"] = audio * 0 if mute else audio
        frames = _denoise(pipe, sampling, scheduler, noise, texts, inputs)
        if sampling.match_colours:
            frames = match_colours(frames, original)
        carried = frames[:, :, plan.length - plan.overlap :]
        if mask is not None:
            frames = paste_outside_mouth(frames, original, mask)
        kept = frames[:, :, chunk.kept.start : chunk.kept.stop]
        yield to_bytes(kept).permute(0, 2, 3, 4, 1).cpu().numpy()


def pixels(videos: Sequence[np.ndarray]) -> Tensor:
    """uint8 [F, H, W, 3] each -> float [B, 3, F, H, W] in [-1, 1]."""
    return to_video(torch.from_numpy(np.stack(videos)))


def encode_videos(pipe: OmniAvatarPipeline, video: Tensor) -> Tensor:
    """Latents [B, 16, T, h, w] of videos [B, 3, F, H, W], all at once: they are small."""
    return pipe.vae.single_encode(video.to(pipe.torch_dtype), pipe.device).to(pipe.torch_dtype)


def _noise(pipe: OmniAvatarPipeline, seeds: Sequence[int], plan: ChunkPlan, reference: Tensor) -> Tensor:
    shape = (1, reference.shape[1], plan.latent_length, *reference.shape[3:])
    return torch.cat([pipe.generate_noise(shape, seed=seed, rand_device="cpu") for seed in seeds])


def _condition(
    pipe: OmniAvatarPipeline,
    original: Tensor,
    reference: Tensor,
    carried: Tensor | None,
    noise: Tensor,
) -> dict[str, Any]:
    """What the units make of the known frames, for all takes."""
    masked: dict[str, Any] = {}
    if pipe.dit.config.has_masked_video:
        source = original.clone()
        if carried is not None and pipe.conventions.first_frame == "known":
            source[:, :, :1] = carried[:, :, :1].to(source)
        masked = MaskedVideoUnit().process(pipe, source, None, None, None, None, *source.shape[-3:], tiled=False)
    if carried is not None:
        prefix = {"omni_prefix_latents": encode_videos(pipe, carried)}
    else:
        prefix = PrefixUnit().process(pipe, None, None, None, reference, masked.get("omni_masked_latents"), None)
    known = prefix.get("omni_prefix_latents")
    made = ConditionUnit().process(
        pipe, noise, reference, known, masked.get("omni_mouth_mask_latents"), masked.get("omni_masked_latents"), None
    )
    return {**made, "omni_prefix_latents": known}


def _shown(take: Take, places: range) -> np.ndarray:
    """What a chunk shows: the source's frames, or the portrait [1, H, W, 3]."""
    if take.video is None:
        return take.portrait[None]
    return take.video[[ping_pong(place, len(take.video)) for place in places]]


def _denoise(
    pipe: OmniAvatarPipeline,
    sampling: Sampling,
    scheduler: StepScheduler,
    latents: Tensor,
    texts: tuple[Tensor, Tensor],
    inputs: dict[str, Any],
) -> Tensor:
    """Frames [B, 3, F, H, W] in [-1, 1] from noise [B, 16, T, h, w].

    With s and a the guidance by text and by sound, the flow is n + s (o - n) + a (p - o): p of weight a, o of s - a,
    n of 1 - s; those of weight zero are left out, and the others computed as one batch.
    """
    text_scale, audio_scale = sampling.cfg_scale, sampling.audio_scale
    positive, negative = texts
    audio, silence = inputs["omni_audio"], torch.zeros_like(inputs["omni_audio"])
    passes = [
        (weight, context, sound)
        for weight, context, sound in (
            (audio_scale, positive, audio),
            (text_scale - audio_scale, positive, silence),
            (1 - text_scale, negative, silence),
        )
        if weight != 0
    ]
    count = len(passes)
    known = inputs["omni_prefix_latents"]
    common = {
        "context": torch.cat([context for _, context, _ in passes]),
        "omni_audio": torch.cat([sound for _, _, sound in passes]),
        "omni_y": inputs["omni_y"].repeat(count, 1, 1, 1, 1),
        "omni_prefix_latents": None if known is None else known.repeat(count, 1, 1, 1, 1),
    }
    for timestep in scheduler.timesteps:
        now = timestep[None].to(dtype=pipe.torch_dtype, device=pipe.device)
        flows = pipe.model_fn(dit=pipe.dit, latents=latents.repeat(count, 1, 1, 1, 1), timestep=now, **common)
        flow = sum(weight * part for (weight, _, _), part in zip(passes, flows.chunk(count), strict=True))
        latents = scheduler.step(flow, timestep, latents)
    if known is not None:
        latents = torch.cat([known, latents[:, :, known.shape[2] :]], dim=2)
    return pipe.vae.single_decode(latents, pipe.device)


def generate_takes(
    pipe: OmniAvatarPipeline, takes: Sequence[Take], sampling: Sampling, *, batch: int, mute: bool = False
) -> list[np.ndarray]:
    """Videos uint8 [F, H, W, 3] of takes of one length, `batch` at a time."""
    videos: list[np.ndarray] = []
    for start in range(0, len(takes), batch):
        seeded = replace(sampling, seed=sampling.seed + SEED_STEP * start)
        videos += list(generate_batch(pipe, takes[start : start + batch], seeded, mute=mute))
    return videos
