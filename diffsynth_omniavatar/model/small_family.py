"""Small models of the same classes as 14B: their sizes, how they are written, their entries for the host's loader.

Every network is of the class that the big models use: Wan transformer, Wan VAE, Wan text encoder, wav2vec2, tokenizer.
The host recognises the files by hash once `register_family` has told it. There are two sizes: `TINY`, with random
weights, for tests and the demonstration, and `NANO`, which is trained and part of this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Wav2Vec2Config, Wav2Vec2Model

from .. import host
from .checkpoint import EXTRA_MODULES, save_omniavatar
from .config import LORA_TARGETS, CheckpointConfig, Conventions, LoRAConfig, OmniAvatarConfig
from .dit import OmniAvatarDiT
from .files import SMALL_FAMILY as FILES
from .lora import adapted_layers


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
    conventions=Conventions(image_sizes=((128, 128),), max_tokens=528),
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
    conventions=Conventions(leading_audio_rows=0, image_sizes=((128, 128),), max_tokens=576),
)
"""Trained: 33 frames of 128x128 a chunk. 5.2 M parameters of the transformer, 2.6 M of the VAE, 0.5 M of wav2vec2."""

DIT, CONVENTIONS = TINY.dit, TINY.conventions
LORA = LoRAConfig(rank=4, alpha=2.0)


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


def _wan_sizes(config: OmniAvatarConfig) -> dict[str, Any]:
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "out_dim", "text_dim", "freq_dim", "eps")
    sizes = {name: getattr(config, name) for name in names}
    return {**sizes, "in_dim": 16, "patch_size": list(config.patch_size), "has_image_input": False}


def _factories(sizes: FamilySizes) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Network -> the host's slot, factory, keyword arguments."""
    return {
        "dit": ("wan_video_dit", "build_wan", _wan_sizes(sizes.dit)),
        "text_encoder": ("wan_video_text_encoder", "build_text_encoder", sizes.text_encoder),
        "vae": ("wan_video_vae", "SmallVAE", sizes.vae),
    }


def register_family() -> None:
    """Tell the host's loader the files of both sizes."""
    for sizes in (TINY, NANO):
        for slot, factory, arguments in _factories(sizes).values():
            with torch.device("meta"):
                network = globals()[factory](**arguments)
            shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
            host.add_model_entry(host.model_hash(shapes), slot, f"{__name__}.{factory}", None, arguments)


# ------------------------------------------------------------------------------------------------------- random weights


def _randomise(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights with which every part has an effect, norms near 1."""
    tensors = {}
    for key, tensor in module.state_dict().items():
        normal = torch.randn(tensor.shape, generator=generator)
        is_norm = key.endswith(("weight", "gamma")) and (tensor.dim() == 1 or key.endswith("gamma"))
        fan_in = max(tensor.numel() // max(tensor.shape[0], 1), 1) if tensor.dim() > 1 else 2500
        tensors[key] = 1 + 0.02 * normal if is_norm else normal / fan_in**0.5
    return tensors


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes, in the format of the host's."""
    vocabulary = {"<pad>": 0, **{chr(code): code + 1 for code in range(256)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    _save_tokenizer(tokenizer, folder, unk_token="<pad>")


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, **special: str) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **special).save_pretrained(folder)
    # transformers 5 writes a class name there that transformers 4 does not know; both know this one.
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")


def write_random_family(
    folder: str | Path, in_dim: int = 33, seed: int = 0, conventions: Conventions = CONVENTIONS
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
    for name, (_, factory, sizes) in _factories(TINY).items():
        save_file(_randomise(globals()[factory](**sizes), generator), folder / FILES[name])
    _write_wan_config(folder, TINY.dit)
    write_tokenizer(folder / FILES["tokenizer"])
    wav2vec2 = Wav2Vec2Model(TINY.wav2vec2)
    wav2vec2.load_state_dict(_randomise(wav2vec2, generator))
    wav2vec2.save_pretrained(folder / FILES["wav2vec2"])
    write_random_checkpoint(folder / FILES["omniavatar"], replace(TINY.dit, in_dim=in_dim), generator, conventions)
    return folder


def _write_wan_config(folder: Path, config: OmniAvatarConfig) -> None:
    wan_config = {"_class_name": "WanModel", **_wan_sizes(config)}
    (folder / "config.json").write_text(json.dumps(wan_config, indent=2), encoding="utf-8")


def write_random_checkpoint(
    folder: Path, config: OmniAvatarConfig, generator: torch.Generator, conventions: Conventions
) -> None:
    """Write an OmniAvatar checkpoint in LoRA form with random weights."""
    dit = OmniAvatarDiT(config)
    tensors = {k: t for k, t in _randomise(dit, generator).items() if k.startswith(EXTRA_MODULES)}
    for name, layer in adapted_layers(dit, LORA_TARGETS).items():
        sizes = {"A": (LORA.rank, layer.in_features), "B": (layer.out_features, LORA.rank)}
        for part, size in sizes.items():
            low_rank = torch.randn(size, generator=generator) / size[1] ** 0.5
            tensors[f"{name}.lora_{part}.weight"] = low_rank
    save_omniavatar(
        folder, tensors, CheckpointConfig(in_dim=config.in_dim, lora=LORA, model=config, conventions=conventions)
    )


def family_configs(folder: str | Path) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for a folder of this family."""
    register_family()
    paths = {name: str(Path(folder) / file) for name, file in FILES.items()}
    tokenizer = host.ModelConfig(path=paths.pop("tokenizer"))
    return {"model_configs": [host.ModelConfig(path=path) for path in paths.values()], "tokenizer_config": tokenizer}


# ------------------------------------------------------------------------------------------- weights to train from


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
    factories = _factories(NANO)
    wan = build_wan(**factories["dit"][2])
    save_file(_fresh_wan(wan, generator), folder / FILES["dit"])
    _write_wan_config(folder, NANO.dit)
    text_encoder = build_text_encoder(**factories["text_encoder"][2])
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
    tensors = _randomise(encoder, generator)
    tensors["token_embedding.weight"] = torch.randn(tensors["token_embedding.weight"].shape, generator=generator)
    for key, tensor in tensors.items():
        if key.endswith(("attn.q.weight", "attn.o.weight", "ffn.fc2.weight")):
            tensors[key] = 0.3 * tensor
    return tensors


def write_word_tokenizer(folder: Path, prompts: Iterable[str], size: int) -> None:
    """A byte-level BPE tokenizer of at most `size` tokens, learned from `prompts`; other words fall into pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(prompts, trainer)
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    _save_tokenizer(tokenizer, folder, eos_token="</s>")
