"""From the flags to the pipeline that trains: its networks, and a LoRA and audio modules on the denoiser."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .. import host
from ..data.flags import DTYPES
from ..generation.loading import named_downloads
from ..generation.pipeline import OmniAvatarPipeline
from ..host.output import quiet_host
from ..model.checkpoint import LORA_KEY, read_lora, read_shapes, weight_files
from ..model.config import CheckpointConfig, Conventions, LoRAConfig
from ..model.files import TOKENIZER, HubFiles
from ..model.lora_files import ReadLoRA
from ..model.lora_merge import fitted, merge
from ..model.speech_encoder import AudioEncoder
from ..model.upgrade import initialise_on_wan
from .base_lora import named_loras, recorded_loras
from .distill import ADAPTERS
from .distill_flags import distills
from .flags import FlagError
from .lora_flags import rank_pattern
from .module import add_lora

MODE_CHANNELS = {"i2v": 33, "v2v": 49}


class _NoTokenizer:
    """In place of a tokenizer's ModelConfig where text comes from a cache."""

    path = None

    def download_if_necessary(self, **_: Any) -> None:
        """Nothing."""


def load_training_pipeline(
    args: argparse.Namespace, conventions: Conventions, device: torch.device
) -> tuple[OmniAvatarPipeline, CheckpointConfig]:
    """The pipeline with LoRA and audio modules on it, and what its checkpoints will say."""
    channels, dtype = channels_of(args), DTYPES[args.dtype]
    full, is_teacher = args.trainable_models == "dit", distills(args)
    encoder = None if args.wav2vec2_path is None else AudioEncoder.from_pretrained(args.wav2vec2_path).to(device)
    options: dict[str, Any] = {"torch_dtype": dtype, "device": str(device)}
    if args.tokenizer_path is not None:
        options["tokenizer_config"] = host.ModelConfig(path=args.tokenizer_path)
    elif not _names_text_encoder(args):
        options["tokenizer_config"] = None if host.GENERATION == "wan_video" else _NoTokenizer()
    if args.omniavatar_checkpoint is not None:
        configs = [*base_configs(args, device), host.ModelConfig(path=args.omniavatar_checkpoint)]
        options["omniavatar_lora"] = "fused" if full or is_teacher else "adapters"
        options["omniavatar_channels"] = channels
        options["omniavatar_loras"] = named_loras(args)
        pipe = OmniAvatarPipeline.from_pretrained(model_configs=configs, **options)
        lora = None if is_teacher else read_lora(args.omniavatar_checkpoint)
        if lora is None and not full:
            lora = new_lora(args)
            add_lora(pipe.dit, lora, args.seed, *([ADAPTERS] if is_teacher else []))
    else:
        lora = new_lora(args)
        pipe = host.WanVideoPipeline.from_pretrained(model_configs=base_configs(args, device), **options)
        if pipe.dit is None:
            raise FlagError("the base model has no denoiser: add diffusion_pytorch_model*.safetensors of Wan2.1-T2V")
        merge(pipe.dit, [fitted(ReadLoRA.of(one), pipe.dit) for one in named_loras(args)])
        generator = torch.Generator().manual_seed(args.seed)
        width = {} if encoder is None else {"audio_dim": encoder.feature_dim}
        initialise_on_wan(pipe.dit, channels, dtype=dtype, device=device, generator=generator, **width)
        if not full:
            add_lora(pipe.dit, lora, args.seed)
        pipe = OmniAvatarPipeline.adopt(pipe, conventions)
    pipe.conventions = conventions
    if encoder is not None:
        pipe.speech_encoder = encoder
    config = CheckpointConfig(
        in_dim=channels,
        lora=None if full else lora,
        model=pipe.dit.config,
        conventions=conventions,
        base_loras=recorded_loras(args),
    )
    return pipe, config


def channels_of(args: argparse.Namespace) -> int:
    """Input channels of the denoiser that the flags ask for."""
    return 65 if args.use_ref_sequence else MODE_CHANNELS[args.omniavatar_mode]


def base_configs(args: argparse.Namespace, device: torch.device) -> list[Any]:
    """The host's ModelConfigs of its flags, as its own trainer makes them."""
    offered = ("fp8_models", "offload_models", "quant_options")
    extra = {name: getattr(args, name) for name in offered if hasattr(args, name)}
    if extra:
        extra["device"] = str(device)
    module = host.DiffusionTrainingModule()
    return module.parse_model_configs(args.model_paths, args.model_id_with_origin_paths, **extra)


@contextmanager
def loading(args: argparse.Namespace) -> Iterator[None]:
    """Inside it the host loads what the flags name; it says nothing, and a failed download is named."""
    named = (args.model_id_with_origin_paths or "").split(",")
    sources = [HubFiles(*name.split(":", 1)) for name in named if ":" in name]
    if args.tokenizer_path is None and _names_text_encoder(args):
        sources.append(TOKENIZER)
    with quiet_host(args.debug), named_downloads(sources, "files that you have (--model_paths, --tokenizer_path)"):
        yield


def _names_text_encoder(args: argparse.Namespace) -> bool:
    named = f"{args.model_paths or ''},{args.model_id_with_origin_paths or ''}"
    return "umt5" in named or "text_encoder" in named


def new_lora(args: argparse.Namespace) -> LoRAConfig:
    """The LoRA that the flags ask for, where the checkpoint has none."""
    usual = args.lora_rank if distills(args) else args.lora_rank / 2
    alpha = usual if args.lora_alpha is None else args.lora_alpha
    if args.lora_kind == "rslora":  # its scale is alpha / sqrt(rank), and that of a LoRA alpha / rank
        alpha *= math.sqrt(args.lora_rank)
    return LoRAConfig(
        rank=args.lora_rank,
        alpha=alpha,
        target_modules=tuple(args.lora_target_modules.split(",")),
        kind="lora" if args.lora_kind == "rslora" else args.lora_kind,
        rank_pattern=tuple(rank_pattern(args.lora_rank_pattern)),
    )


def check_new_lora(args: argparse.Namespace) -> None:
    """Raise FlagError if the flags want a LoRA of a kind that the one of the checkpoint is not."""
    wanted = [flag for flag in ("lora_kind", "lora_rank_pattern") if getattr(args, flag) not in ("lora", "")]
    path = args.omniavatar_checkpoint
    if wanted and path is not None and any(map(LORA_KEY.match, read_shapes(weight_files(path)))):
        raise FlagError(
            f"--{' and --'.join(wanted)} go with a new LoRA, but {path} has one, which trains on: leave them away, or "
            "merge it first (omniavatar convert --to merged)"
        )
