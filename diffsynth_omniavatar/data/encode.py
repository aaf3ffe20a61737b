"""The networks that encode clips, without a denoiser, and what the pipeline's units make of a clip with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .. import host
from ..generation.pipeline import OmniAvatarPipeline
from ..generation.pixels import encode_video
from ..generation.units import MaskedVideoUnit, ReferenceSequenceUnit, ReferenceUnit
from ..media.images import load_image, to_video
from ..media.timeline import audio_rows
from ..model.config import PRESETS
from ..model.speech_encoder import AudioEncoder
from .clip_faces import cut_frames, cut_picture, face_crops
from .clips import ClipFacts, ClipSettings
from .flags import DTYPES
from .video_clip import VideoClip, reference_start

REFERENCES = 8
UNUSED_WEIGHT = "masked_spec_embed"
"""A weight of wav2vec2 that only its own training uses; files lack it, and then it is random."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """How a cache is made."""

    references: int = REFERENCES
    """Reference frames a clip, evenly spaced over its whole length."""
    audio_dtype: torch.dtype = torch.bfloat16
    """Of the audio features; the others have the pipeline's. A bfloat16 model sees no difference to float32."""
    tiled: bool = False
    """Run the VAE in tiles: less memory, shifted colours."""

    def __post_init__(self) -> None:
        if self.references < 1 or self.audio_dtype not in DTYPES.values():
            raise ValueError(
                f"references is {self.references} and audio_dtype {self.audio_dtype}; wanted 1 or more, and one of "
                f"{', '.join(DTYPES)}"
            )


def encoder_pipeline(
    settings: ClipSettings,
    *,
    model_configs: Sequence[Any],
    tokenizer_config: Any,
    wav2vec2: str | Path,
    device: str | torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> OmniAvatarPipeline:
    """A pipeline without a denoiser: what `precompute` needs.

    Args:
        settings: of the samples.
        model_configs: the host's, of text encoder and VAE.
        tokenizer_config: the host's; None for the one that the host downloads.
        wav2vec2: folder of the speech encoder.
        device, dtype: of the networks; the speech encoder computes in float32 always.

    Raises:
        ValueError: `model_configs` lack one of the two, or have a denoiser.
    """
    options = {} if tokenizer_config is None else {"tokenizer_config": tokenizer_config}
    pipe = host.WanVideoPipeline.from_pretrained(
        torch_dtype=dtype, device=device, model_configs=list(model_configs), **options
    )
    missing = [name for name in ("text_encoder", "vae") if getattr(pipe, name) is None]
    if missing or pipe.dit is not None:
        raise ValueError(f"wanted model files of text encoder and VAE alone; missing: {', '.join(missing) or 'none'}")
    pipe = OmniAvatarPipeline.adopt(pipe, settings.conventions, AudioEncoder.from_pretrained(wav2vec2).to(device))
    # The units ask the denoiser which inputs it takes; its size makes no difference.
    pipe.dit = SimpleNamespace(config=replace(PRESETS["1.3B"], in_dim=settings.in_dim))  # type: ignore[assignment]
    return pipe


@torch.no_grad()
def network_key(network: nn.Module) -> str:
    """A short hash of a network's weights in bfloat16, by 64 numbers of each tensor, whatever the tensors are called.

    So the same weights have the same key on every device, in bfloat16 and float32, and under the host's wrappers.
    """
    samples = []
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith(UNUSED_WEIGHT):
            continue
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, max(flat.numel() - 1, 0), min(flat.numel(), 64), dtype=torch.float64).long()
        values = flat[places.to(flat.device)].to("cpu", torch.bfloat16)
        samples.append(repr((list(tensor.shape), values.float().tolist())).encode())
    return hashlib.sha256(b"".join(sorted(samples))).hexdigest()[:16]


@dataclass(frozen=True)
class RawClip:
    """A clip as it is read, before it is encoded; frames are uint8 [frames, H, W, 3]."""

    target: Tensor
    references: Tensor
    reference_sequence: Tensor | None
    waveform: Tensor


def reference_places(frames: int, count: int) -> list[int]:
    """`count` frames evenly spaced over a clip, each in the middle of its part; fewer if the clip has fewer."""
    count = min(count, frames)
    return [(2 * place + 1) * frames // (2 * count) for place in range(count)]


def read_raw_clip(clip: VideoClip, facts: ClipFacts, settings: ClipSettings, references: int) -> RawClip:
    """All frames that are needed, in one pass through the video, behind one that looks for faces if they matter.

    Raises:
        ValueError, OSError: the clip cannot be read, or one cannot train with its face.
    """
    size, places = (facts.height, facts.width), reference_places(facts.frames, references)
    template, crops = settings.conventions.template, None
    if settings.faces != "any":
        crops = face_crops(clip.video, size, template, aligned=settings.faces == "aligned")
    sequence = range(reference_start(facts), facts.frames) if settings.in_dim == 65 else range(0)
    wanted = {*range(facts.longest), *sequence, *(places if clip.reference is None else ())}
    shown = clip.pictures(size) if crops is None else cut_frames(clip.video, crops, size)
    frames = {place: frame for place, frame in enumerate(islice(shown, max(wanted) + 1)) if place in wanted}
    target = torch.stack([frames[place] for place in range(facts.longest)])
    if clip.reference is not None and crops is not None:
        pictures = cut_picture(load_image(clip.reference), size, template)[None]
    elif clip.reference is not None:
        pictures = clip.reference_image(target, 0, size)[None]
    else:
        pictures = torch.stack([frames[place] for place in places])
    return RawClip(
        target=target,
        references=pictures,
        reference_sequence=torch.stack([frames[place] for place in sequence]) if sequence else None,
        waveform=clip.waveform(facts.frames, facts.longest),
    )


@torch.no_grad()
def encode_clip(
    pipe: OmniAvatarPipeline,
    raw: RawClip,
    clip: VideoClip,
    settings: ClipSettings,
    options: CacheOptions,
) -> dict[str, Tensor]:
    """The tensors of a clip's file (`sources.CachedClip`), on the CPU, made by the pipeline's units."""
    frames, height, width = raw.target.shape[:3]
    tiles: dict[str, Any] = {"tiled": options.tiled, "tile_size": (30, 52), "tile_stride": (15, 26)}
    size: dict[str, Any] = {"height": height, "width": width, **tiles}
    pixels = to_video(raw.target[None])
    tensors = {"input_latents": encode_video(pipe, pixels, **tiles)[0]}
    references = ReferenceUnit().process(
        pipe,
        input_image=to_video(raw.references[:, None]),
        omni_reference_latents=None,
        omni_source_video=None,
        **size,
    )
    tensors["reference_latents"] = references["omni_reference_latents"]
    masked = MaskedVideoUnit().process(
        pipe,
        omni_source_video=pixels,
        omni_mouth_mask=clip.used_mask(settings),
        omni_prefix_video=None,
        omni_masked_latents=None,
        omni_mouth_mask_latents=None,
        num_frames=frames,
        **size,
    )
    if masked:
        tensors["masked_latents"] = masked["omni_masked_latents"][0]
        tensors["mouth_mask_latents"] = masked["omni_mouth_mask_latents"][:, :, :1]
    sequence = ReferenceSequenceUnit().process(
        pipe,
        omni_reference_video=None if raw.reference_sequence is None else to_video(raw.reference_sequence[None]),
        omni_reference_sequence_latents=None,
        num_frames=frames,
        **size,
    )
    if sequence:
        tensors["reference_sequence_latents"] = sequence["omni_reference_sequence_latents"][0]
    rows = pipe.encode_speech(raw.waveform, max(audio_rows(len(raw.waveform)), frames))[:frames]
    tensors["audio_features"] = rows.to(options.audio_dtype)
    tensors["waveform"] = raw.waveform
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
