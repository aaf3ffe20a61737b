"""Folders of the small families: the tiny one with random weights, and what the nano one is trained from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Wav2Vec2Model

from .. import host
from ..model.checkpoint import EXTRA_MODULES, save_omniavatar
from ..model.config import LATENT_CHANNELS, LORA_TARGETS, CheckpointConfig, Conventions, LoRAConfig, OmniAvatarConfig
from ..model.dit import OmniAvatarDiT, wan_sizes
from ..model.files import SMALL_FAMILY as FILES
from ..model.lora import adapted_layers
from ..model.small_family import NANO, TINY, build_text_encoder, build_wan, networks
from .tokenizers import write_byte_tokenizer, write_word_tokenizer

LORA = LoRAConfig(rank=4, alpha=2.0)
"""Of the random checkpoints."""


def randomise(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights with which every part has an effect, norms near 1; of the module, which can be on "meta", the shapes."""
    tensors = {}
    for key, tensor in module.state_dict().items():
        normal = torch.randn(tensor.shape, generator=generator)
        is_norm = key.endswith(("weight", "gamma")) and (tensor.dim() == 1 or key.endswith("gamma"))
        fan_in = max(tensor.numel() // max(tensor.shape[0], 1), 1) if tensor.dim() > 1 else 2500
        tensors[key] = 1 + 0.02 * normal if is_norm else normal / fan_in**0.5
    return tensors


def write_random_family(
    folder: str | Path, in_dim: int = 33, seed: int = 0, conventions: Conventions = TINY.conventions
) -> Path:
    """Write the whole tiny family with random weights: base transformer, VAE, text encoder, tokenizer, wav2vec2,
    checkpoint.

    Args:
        folder: is made if need be.
        in_dim: input channels of the OmniAvatar checkpoint, 33, 49 or 65.
        seed: of the weights.
        conventions: written to the checkpoint's config.json.

    Returns:
        The folder; `FILES` names what is in it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for name, network in networks(TINY).items():
        with torch.device("meta"):
            shapes = network.made()
        save_file(randomise(shapes, generator), folder / FILES[name])
    _write_wan_config(folder, TINY.dit)
    write_byte_tokenizer(folder / FILES["tokenizer"])
    wav2vec2 = Wav2Vec2Model(TINY.wav2vec2)
    wav2vec2.load_state_dict(randomise(wav2vec2, generator))
    wav2vec2.save_pretrained(folder / FILES["wav2vec2"])
    write_random_checkpoint(folder / FILES["omniavatar"], replace(TINY.dit, in_dim=in_dim), generator, conventions)
    return folder


def _write_wan_config(folder: Path, config: OmniAvatarConfig) -> None:
    wan_config = {"_class_name": "WanModel", **wan_sizes(config, LATENT_CHANNELS)}
    (folder / "config.json").write_text(json.dumps(wan_config, indent=2), encoding="utf-8")


def write_random_checkpoint(
    folder: Path, config: OmniAvatarConfig, generator: torch.Generator, conventions: Conventions
) -> None:
    """Write an OmniAvatar checkpoint in LoRA form with random weights."""
    with torch.device("meta"):
        dit = OmniAvatarDiT(config)
    tensors = {k: t for k, t in randomise(dit, generator).items() if k.startswith(EXTRA_MODULES)}
    for name, layer in adapted_layers(dit, LORA_TARGETS).items():
        sizes = {"A": (LORA.rank, layer.in_features), "B": (layer.out_features, LORA.rank)}
        for part, size in sizes.items():
            low_rank = torch.randn(size, generator=generator) / size[1] ** 0.5
            tensors[f"{name}.lora_{part}.weight"] = low_rank
    save_omniavatar(
        folder, tensors, CheckpointConfig(in_dim=config.in_dim, lora=LORA, model=config, conventions=conventions)
    )


def write_fresh_nano(folder: str | Path, prompts: Iterable[str], seed: int = 0) -> Path:
    """Write the parts of the nano family that are not trained on their own: an untrained base transformer, the text
    encoder, whose weights stay random, and a tokenizer whose commonest words are those of the prompts.

    The VAE and wav2vec2 come from `train_vae` and `train_speech` and belong into the same folder.

    Args:
        folder: is made if need be.
        prompts: what the speaker's clips are described with.
        seed: of the weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    wan = build_wan(**networks(NANO)["dit"].arguments)
    save_file(_fresh_wan(wan, generator), folder / FILES["dit"])
    _write_wan_config(folder, NANO.dit)
    text_encoder = build_text_encoder(**NANO.text_encoder)
    save_file(half(_readable_text_encoder(text_encoder, generator)), folder / FILES["text_encoder"])
    write_word_tokenizer(folder / FILES["tokenizer"], prompts, NANO.text_encoder["vocab"])
    return folder


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are shipped, in float16."""
    return {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}


def _fresh_wan(wan: host.WanModel, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights to train a Wan transformer from.

    Source: `init_weights` of Wan 2.1's model (xavier for matrices, zero for their biases and for the head). It draws
    the time and text embeddings with a deviation of 0.02, which suits its widths and is too little for this one.
    """
    tensors = dict(wan.state_dict())
    for key, tensor in tensors.items():
        if key.endswith("modulation"):
            tensors[key] = torch.randn(tensor.shape, generator=generator) / wan.dim**0.5
        elif tensor.dim() > 1:
            matrix = torch.empty(tensor.shape).flatten(1)
            tensors[key] = nn.init.xavier_uniform_(matrix, generator=generator).reshape(tensor.shape)
        elif key.endswith("bias"):
            tensors[key] = torch.zeros(tensor.shape)
    tensors["head.head.weight"] = torch.zeros(tensors["head.head.weight"].shape)
    return tensors


def _readable_text_encoder(encoder: host.WanTextEncoder, generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights that keep the words apart: each token's embedding is its own, with some of its surroundings."""
    tensors = randomise(encoder, generator)
    tensors["token_embedding.weight"] = torch.randn(tensors["token_embedding.weight"].shape, generator=generator)
    for key, tensor in tensors.items():
        if key.endswith(("attn.q.weight", "attn.o.weight", "ffn.fc2.weight")):
            tensors[key] = 0.3 * tensor
    return tensors
