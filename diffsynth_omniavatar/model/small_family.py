"""Small models of the same classes as 14B: their sizes and their entries for the host's loader.

Every network is of the class that the big models use: Wan transformer, Wan VAE, Wan text encoder, wav2vec2, tokenizer.
The host recognises the files by hash once `register_family` has told it. There are two sizes: `TINY`, with random
weights, for tests, and `NANO`, which is trained and part of this package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Wav2Vec2Config

from .. import host
from ..media.faces.template import Template
from .checkpoint import shapes_of
from .config import LATENT_CHANNELS, Conventions, OmniAvatarConfig
from .conv_on_cpu import use_onednn
from .dit import wan_sizes
from .files import SMALL_FAMILY as FILES
from .sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class FamilySizes:
    """Sizes of the networks of a family; the dicts are keyword arguments of the host's classes."""

    dit: OmniAvatarConfig
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    wav2vec2: Wav2Vec2Config
    conventions: Conventions


def _feature_dim(wav2vec2: Wav2Vec2Config) -> int:
    """Width of a row of audio features: the last state and all hidden states."""
    return wav2vec2.hidden_size * (wav2vec2.num_hidden_layers + 2)


_TINY_SPEECH = Wav2Vec2Config(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=(32,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
TINY = FamilySizes(
    dit=OmniAvatarConfig(
        dim=96,
        ffn_dim=256,
        num_heads=3,
        num_layers=6,
        text_dim=64,
        freq_dim=64,
        audio_dim=_feature_dim(_TINY_SPEECH),
    ),
    vae={"dim": 8},
    text_encoder={
        "vocab": 257,
        "dim": 64,
        "dim_attn": 64,
        "dim_ffn": 128,
        "num_heads": 4,
        "num_layers": 2,
        "num_buckets": 32,
        "shared_pos": False,
    },
    wav2vec2=_TINY_SPEECH,
    conventions=Conventions(image_sizes=((128, 128),), max_tokens=528, aligned=True),
)
"""Random weights, 1.9 M parameters."""

_NANO_SPEECH = Wav2Vec2Config(
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=256,
    conv_dim=(32, 64, 96, 96, 96, 96, 96),
    num_conv_pos_embeddings=32,
    num_conv_pos_embedding_groups=4,
)
NANO = FamilySizes(
    dit=OmniAvatarConfig(
        dim=192,
        ffn_dim=768,
        num_heads=4,
        num_layers=8,
        text_dim=64,
        freq_dim=64,
        audio_dim=_feature_dim(_NANO_SPEECH),
    ),
    vae={"dim": 16, "num_res_blocks": 1},
    text_encoder={**TINY.text_encoder, "vocab": 512},
    wav2vec2=_NANO_SPEECH,
    conventions=Conventions(
        leading_audio_rows=0,
        image_sizes=((128, 128),),
        max_tokens=576,
        aligned=True,
        # Means over 150 drawn people, whole and within pictures of 640x360: each of them within 3 pixels.
        template=Template(canvas=(128, 128), left_brow=(44.7, 42.8), right_brow=(83.3, 42.8), nose=(64, 65.9)),
        # Without guidance the shipped weights open the mouth 0.9 times as far as they should, with 2 1.2 times. Where
        # training dropped the text, the prompt was empty. The small VAE turns a wall's colours by up to 5 of 255 in
        # 20 s unless they are matched.
        sampling=Sampling(steps=10, cfg_scale=1.0, match_colours=True, negative_prompt=""),
    ),
)
"""Trained: 33 frames of 128x128 a chunk. 5.2 M parameters of the transformer, 2.6 M of the VAE, 0.5 M of wav2vec2."""


def build_wan(**sizes: Any) -> host.WanModel:
    """The base transformer; the host's loader imports this by its dotted path."""
    return host.WanModel(**sizes)


def build_text_encoder(**sizes: Any) -> host.WanTextEncoder:
    """The text encoder; the host's loader imports this by its dotted path."""
    return host.WanTextEncoder(**sizes)


class SmallVAE(host.WanVideoVAE):
    """The Wan VAE at a smaller width: 8x8x4 compression, 16 channels, latents normalised by Wan's own constants."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.model = host.VideoVAE_(z_dim=16, **sizes).eval().requires_grad_(False)
        use_onednn(self.model)


class Network(NamedTuple):
    """How the host makes a network of a family."""

    slot: str
    """The host's name of the kind of model."""
    build: Callable[..., nn.Module]
    arguments: dict[str, Any]

    def made(self) -> nn.Module:
        """The network, untrained."""
        return self.build(**self.arguments)


def networks(sizes: FamilySizes) -> dict[str, Network]:
    """Part of `FILES` -> its network, of the parts that the host's loader makes."""
    return {
        "dit": Network("wan_video_dit", build_wan, wan_sizes(sizes.dit, LATENT_CHANNELS)),
        "text_encoder": Network("wan_video_text_encoder", build_text_encoder, sizes.text_encoder),
        "vae": Network("wan_video_vae", SmallVAE, sizes.vae),
    }


def register_family() -> None:
    """Tell the host's loader the files of both sizes."""
    for hash_, network in _hashes().items():
        factory = f"{__name__}.{network.build.__name__}"
        host.add_model_entry(hash_, network.slot, factory, None, network.arguments)


@functools.cache
def _hashes() -> dict[str, Network]:
    """Hash by which the host recognises a file -> the network in it; half a second."""
    with torch.device("meta"):
        return {
            host.model_hash(shapes_of(network.made().state_dict())): network
            for sizes in (TINY, NANO)
            for network in networks(sizes).values()
        }


def family_configs(folder: str | Path) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for a folder of this family."""
    register_family()
    paths = {name: str(Path(folder) / file) for name, file in FILES.items()}
    tokenizer = host.ModelConfig(path=paths.pop("tokenizer"))
    return {"model_configs": [host.ModelConfig(path=path) for path in paths.values()], "tokenizer_config": tokenizer}
