"""From the flags of `--task distill` to the module that distils."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from ..data.cache import CachedClip
from ..data.cache_index import text_key
from ..data.clips import ClipSource
from ..generation.pipeline import OmniAvatarPipeline
from ..losses.sync import SyncLoss
from ..losses.syncnet import load_syncnet
from ..model.checkpoint import load_checkpoint, normalise_keys, read_tensors
from ..model.config import CheckpointConfig
from ..model.lora import split_lora
from .accelerator import OmniAccelerator
from .distill import DistillationModule
from .distill_flags import distill_settings
from .flags import FlagError
from .settings import StepSettings
from .sync_reward import SyncReward


def make_distillation(
    args: argparse.Namespace,
    pipe: OmniAvatarPipeline,
    config: CheckpointConfig,
    settings: StepSettings,
    clips: Sequence[ClipSource],
    accelerator: OmniAccelerator,
) -> DistillationModule:
    """The module that distils, as a part of the accelerator's loop.

    Args:
        args: of training.
        pipe, config, settings: those of `DistillationModule`.
        clips: what it trains on; the embedding of the teacher's negative prompt is taken from their cache.
        accelerator: of the loop.

    Raises:
        ValueError: the launch configuration shards weights, or nothing gives the negative prompt's embedding.
    """
    if accelerator.is_fsdp2 or accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise FlagError(
            "--task distill works in one process or with DDP, not with FSDP or DeepSpeed: its processes make different "
            "numbers of passes"
        )
    checkpoint = load_checkpoint(args.omniavatar_checkpoint)
    fused = checkpoint if checkpoint.form == "lora" else None
    if fused is not None and fused.config.lora is not None and not fused.config.lora.is_plain:
        raise FlagError(
            f"{checkpoint.source} is a {fused.config.lora.name} or has several ranks, which does not "
            "become one LoRA with the student's: merge it first (omniavatar convert --to merged)"
        )
    module = DistillationModule(pipe, config, settings, distill_settings(args), fused, args.seed)
    module.has_trajectories = args.trajectories is not None
    if args.sync_reward is not None:
        network = load_syncnet(args.syncnet_path, accelerator.device, getattr(torch, args.aux_dtype))
        module.reward = SyncReward(SyncLoss(network), args.sync_reward)
    if args.student_start is not None:
        module.start_from(*student_of(Path(args.student_start)))
    key = text_key(module.negative_prompt)
    caches = {id(clip.cache): clip.cache for clip in clips if isinstance(clip, CachedClip)}
    cache = next((cache for cache in caches.values() if key in cache.texts), None)
    if cache is not None:
        module.negative_context = cache.context(key)[None]
    elif pipe.text_encoder is None and module.scale != 1 and not module.has_trajectories:
        raise FlagError(
            "training needs text_encoder for the teacher's negative prompt, which the cache does not hold: add it with "
            "--model_paths, write the cache again, or take the empty one with --teacher_negative_prompt ''"
        )
    module.progress = lambda: (accelerator.steps_done, accelerator.loader.position)
    accelerator.companion = module
    return module


def student_of(folder: Path) -> tuple[dict[str, Tensor], str]:
    """The student's LoRA of a checkpoint that distillation wrote, by the keys of checkpoints; and its file.

    Raises:
        FlagError: there is none.
    """
    files = [folder / "student" / "lora.safetensors", folder / "model.safetensors"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FlagError(f"--student_start {folder} is no checkpoint step-N of a distillation")
    return split_lora(normalise_keys(read_tensors([file])))[0], str(file)
