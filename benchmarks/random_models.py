"""Pipelines of the published sizes with random weights, built on the device: nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.media.timeline import video_frames
from diffsynth_omniavatar.model.config import PRESETS, Conventions, LoRAConfig, OmniAvatarConfig
from diffsynth_omniavatar.model.dit import OmniAvatarDiT
from diffsynth_omniavatar.model.speech_encoder import AudioEncoder
from diffsynth_omniavatar.nano.family import randomise
from diffsynth_omniavatar.nano.tokenizers import write_byte_tokenizer
from diffsynth_omniavatar.training.module import add_lora, select_trainable


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have their weights on `device` in `dtype` from the start."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def random_dit(config: OmniAvatarConfig, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> OmniAvatarDiT:
    """The denoiser with its initial random weights."""
    with made_on(device, dtype):
        dit = OmniAvatarDiT(config)
    dit.freqs = tuple(table.to(torch.complex128) for table in dit.freqs)
    return dit.eval().requires_grad_(False)


def add_random_lora(dit: OmniAvatarDiT) -> None:
    """Let a LoRA of the default rank train, whose B is not the zeros of a training's start, which leave the gradients
    of A zero.
    """
    add_lora(dit, LoRAConfig())
    select_trainable(dit, full=False)
    for name, value in dit.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.01)


def random_inputs(
    config: OmniAvatarConfig,
    size: tuple[int, int, int],
    batch: int = 1,
    device: str | torch.device = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, torch.Tensor]:
    """Those of a pass of the denoiser; `size` in latent frames, rows and columns."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, device=device, dtype=dtype)

    return {
        "x": random(16, *size),
        "timestep": torch.full((batch,), 500.0, device=device, dtype=dtype),
        "context": random(512, config.text_dim),
        "y": random(config.in_dim - 16, *size),
        "audio_emb": random(video_frames(size[0]), config.audio_dim),
    }


def random_vae() -> host.WanVideoVAE:
    """The frozen VAE of Wan, random weights under which what it decodes has a sensible size; float32, CPU memory."""
    vae = host.WanVideoVAE()
    vae.load_state_dict(randomise(vae, torch.Generator().manual_seed(0)))
    return vae.requires_grad_(False)


def random_pipeline(config: OmniAvatarConfig = PRESETS["14B"], device: str = "cuda") -> OmniAvatarPipeline:
    """Denoiser, VAE, text encoder (all bf16) and wav2vec2-base (float32) of the published sizes."""
    pipe = host.WanVideoPipeline(device=device, torch_dtype=torch.bfloat16)
    pipe.audio_encoder = None
    pipe.dit = random_dit(config, device)
    with made_on(device, torch.bfloat16):
        pipe.text_encoder = host.WanTextEncoder().eval().requires_grad_(False)
        pipe.vae = host.WanVideoVAE().eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        write_byte_tokenizer(Path(folder))
        host.set_tokenizer(pipe, folder)
    encoder = AudioEncoder(Wav2Vec2Model(Wav2Vec2Config())).to(device)
    return OmniAvatarPipeline.adopt(pipe, Conventions(), encoder)
