"""Sizes of the small model family, and a folder of it with random weights.

Every network is of the class that the big models use: Wan transformer, Wan VAE, Wan text encoder, wav2vec2, tokenizer.
The host recognises the files by hash once `register_family` has told it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Wav2Vec2Config, Wav2Vec2Model

from .. import host
from ..checkpoint import EXTRA_MODULES, adapted_layers, save_omniavatar
from ..config import LORA_TARGETS, CheckpointConfig, Conventions, LoRAConfig, OmniAvatarConfig
from ..dit import OmniAvatarDiT
from ..files import SMALL_FAMILY as FILES

TEXT_DIM = 64
VAE_DIM = 8
TEXT_ENCODER = {
    "vocab": 257,
    "dim": TEXT_DIM,
    "dim_attn": TEXT_DIM,
    "dim_ffn": 128,
    "num_heads": 4,
    "num_layers": 2,
    "num_buckets": 32,
    "shared_pos": False,
}
WAV2VEC2 = Wav2Vec2Config(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=(32,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
AUDIO_DIM = WAV2VEC2.hidden_size * (WAV2VEC2.num_hidden_layers + 2)
DIT = OmniAvatarConfig(
    dim=96, ffn_dim=256, num_heads=3, num_layers=6, text_dim=TEXT_DIM, freq_dim=64, audio_dim=AUDIO_DIM
)
CONVENTIONS = Conventions(image_sizes=((128, 128),), max_tokens=528)
LORA = LoRAConfig(rank=4, alpha=2.0)


def build_wan(**sizes: Any) -> host.WanModel:
    """The base transformer; the host's loader imports this by its dotted path."""
    return host.WanModel(**sizes)


def build_text_encoder(**sizes: Any) -> host.WanTextEncoder:
    """The text encoder; the host's loader imports this by its dotted path."""
    return host.WanTextEncoder(**sizes)


class SmallVAE(host.WanVideoVAE):
    """The Wan VAE at a smaller width: 8x8x4 compression, 16 channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.model = host.VideoVAE_(dim=dim, z_dim=16).eval().requires_grad_(False)


def _wan_sizes(config: OmniAvatarConfig) -> dict[str, Any]:
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "out_dim", "text_dim", "freq_dim", "eps")
    sizes = {name: getattr(config, name) for name in names}
    return {**sizes, "in_dim": 16, "patch_size": list(config.patch_size), "has_image_input": False}


def _factories() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Network -> the host's slot, factory, keyword arguments."""
    return {
        "dit": ("wan_video_dit", "build_wan", _wan_sizes(DIT)),
        "text_encoder": ("wan_video_text_encoder", "build_text_encoder", TEXT_ENCODER),
        "vae": ("wan_video_vae", "SmallVAE", {"dim": VAE_DIM}),
    }


def register_family() -> None:
    """Tell the host's loader the files of this family."""
    for slot, factory, sizes in _factories().values():
        with torch.device("meta"):
            shapes = {key: list(tensor.shape) for key, tensor in globals()[factory](**sizes).state_dict().items()}
        host.add_model_entry(host.model_hash(shapes), slot, f"{__name__}.{factory}", None, sizes)


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
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<pad>").save_pretrained(folder)
    # transformers 5 writes a class name there that transformers 4 does not know; both know this one.
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")


def write_random_family(
    folder: str | Path, in_dim: int = 33, seed: int = 0, conventions: Conventions = CONVENTIONS
) -> Path:
    """Write the whole family with random weights: base transformer, VAE, text encoder, tokenizer, wav2vec2, checkpoint.

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
    for name, (_, factory, sizes) in _factories().items():
        save_file(_randomise(globals()[factory](**sizes), generator), folder / FILES[name])
    wan_config = {"_class_name": "WanModel", **_wan_sizes(DIT)}
    (folder / "config.json").write_text(json.dumps(wan_config, indent=2), encoding="utf-8")
    write_tokenizer(folder / FILES["tokenizer"])
    wav2vec2 = Wav2Vec2Model(WAV2VEC2)
    wav2vec2.load_state_dict(_randomise(wav2vec2, generator))
    wav2vec2.save_pretrained(folder / FILES["wav2vec2"])
    write_random_checkpoint(folder / FILES["omniavatar"], replace(DIT, in_dim=in_dim), generator, conventions)
    return folder


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
