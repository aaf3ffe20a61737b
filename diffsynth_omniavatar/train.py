"""Train OmniAvatar with DiffSynth's own loop:

    accelerate launch -m diffsynth_omniavatar.train --dataset_base_path data --dataset_metadata_path data/metadata.csv \
        --model_id_with_origin_paths "Wan-AI/Wan2.1-T2V-14B:diffusion_pytorch_model*.safetensors,..." --output_path
        runs/a

The flags are DiffSynth's, with OmniAvatar's beside them; `--config FILE.yaml` gives values for flags that the
command line does not give. `--dry_run` prints the plan and ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from . import host
from .data.dataset import OmniAvatarDataset
from .data.precompute import encoder_pipeline
from .data.sources import ClipSettings, ClipSource, Recipe, read_clips
from .generation.pipeline import OmniAvatarPipeline
from .losses.decode import AUX_MEMORY, choose_memory
from .losses.lpips import LpipsLoss, load_lpips
from .losses.sync import SyncLoss, load_syncnet
from .losses.trepa import TrepaLoss, load_videomae
from .media.timeline import latent_frames
from .model import checkpoint
from .model.blocks.memory_plan import BlockShape
from .model.blocks.runner import expandable_segments
from .model.config import IMAGE_SIZES, LORA_TARGETS, CheckpointConfig, Conventions, LoRAConfig
from .model.small_family import register_family
from .model.speech_encoder import AudioEncoder
from .training.accelerator import OmniAccelerator
from .training.auxiliary import AuxiliaryLosses
from .training.callbacks import TrainingLogger, find_latest
from .training.data_process import process_data
from .training.memory_report import predicted_rows
from .training.module import OmniAvatarTrainingModule, StepSettings, add_lora, trainable_parameters
from .training.settings import LoopSettings, steps_in_epochs
from .training.validation import Validation, load_metrics, read_samples

logger = logging.getLogger(__name__)

MODE_CHANNELS = {"i2v": 33, "v2v": 49}
DENOISER_FILES = "diffusion_pytorch_model"
"""How the files of Wan's transformer begin."""
TASKS = ("sft", "sft:data_process", "sft:train")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

UNUSED_HOST_FLAGS = {
    "lora_base_model": "the LoRA always goes on the denoiser",
    "lora_checkpoint": "use --omniavatar_checkpoint",
    "preset_lora_path": "merge it into the base first",
    "preset_lora_model": "merge it into the base first",
    "extra_inputs": "OmniAvatar's inputs follow from --omniavatar_mode",
    "resume_from_checkpoint": "use --resume",
    "template_model_id_or_path": "OmniAvatar has no template model",
    "audio_processor_config": "use --wav2vec2_path",
    "remove_prefix_in_ckpt": "checkpoints have the released names",
    "data_file_keys": "the columns are video, audio, reference and mask",
    "max_pixels": "give --height and --width, or let clips choose among the trained sizes",
    "enable_lora_hot_loading": "the LoRA trains",
}
"""Flags of the host that have no meaning here -> what to do instead."""


ALL_LOSSES = ("sync", "lpips", "trepa")
AUXILIARY_FLAGS = {
    "syncnet_path": ("sync",),
    "sync_loss_form": ("sync",),
    "sync_stride": ("sync",),
    "aux_sync_weight": ("sync",),
    "vgg_path": ("lpips",),
    "lpips_window": ("lpips",),
    "aux_lpips_weight": ("lpips",),
    "videomae_path": ("trepa",),
    "trepa_stride": ("trepa",),
    "aux_trepa_weight": ("trepa",),
    "aux_dtype": ("sync", "trepa"),
    "aux_recon_weight": ALL_LOSSES,
    "aux_num_frames": ALL_LOSSES,
    "aux_memory": ALL_LOSSES,
}
"""Flags of the losses on decoded frames -> the losses of which one must be on."""


class FlagError(ValueError):
    """Flags or configuration that cannot be; the message says what to change."""


# ---------------------------------------------------------------------------------------------------------------- flags


def frame_counts(text: str) -> tuple[int, ...]:
    """ "1,5,9,13" -> (1, 5, 9, 13); "" -> ()."""
    return tuple(int(number) for number in text.split(",") if number)


def memory_amount(text: str) -> float | str:
    """ "auto" -> "auto"; "16" -> 16.0."""
    if text == "auto":
        return text
    gib = float(text)
    if gib < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; give GiB, or auto")
    return gib


def build_parser() -> argparse.ArgumentParser:
    """The host's flags and OmniAvatar's."""
    parser = host.wan_parser()
    parser.prog = "diffsynth_omniavatar.train"
    parser.allow_abbrev = False
    for action in parser._actions:
        action.required = False  # the host requires dataset_base_path, which may come from --config
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(lora_rank=128, lora_target_modules=",".join(LORA_TARGETS), num_frames=None)
    _add_model_flags(parser.add_argument_group("OmniAvatar: model"))
    _add_recipe_flags(parser.add_argument_group("OmniAvatar: recipe"))
    _add_auxiliary_flags(parser.add_argument_group("OmniAvatar: losses on decoded frames"))
    _add_speed_flags(parser.add_argument_group("OmniAvatar: speed and memory"))
    _add_loop_flags(parser.add_argument_group("OmniAvatar: loop"))
    return parser


def _add_model_flags(group: Any) -> None:
    add = group.add_argument
    add(
        "--omniavatar_mode",
        choices=["i2v", "v2v"],
        default="i2v",
        help="Animate a portrait, or change a video's mouth.",
    )
    add("--omniavatar_checkpoint", help="Start from this checkpoint instead of the base model's weights alone.")
    add(
        "--use_ref_sequence",
        action="store_true",
        help="V2V with a second clip of the person: 65 channels instead of 49.",
    )
    add("--wav2vec2_path", help="Folder of wav2vec2-base-960h. Not needed with cached audio features.")
    add(
        "--tokenizer_path",
        help="Folder of umt5-xxl's tokenizer; the host's default is downloaded. Not needed with caches.",
    )
    add("--lora_alpha", type=float, help="LoRA scale is alpha / rank. Default: half the rank, as the authors have it.")
    add("--dtype", choices=list(DTYPES), default="bfloat16", help="Number format of the weights.")
    add(
        "--offload_frozen", action="store_true", help="Keep text encoder, VAE and wav2vec2 in main memory between uses."
    )


def _add_recipe_flags(group: Any) -> None:
    add = group.add_argument
    add("--first_frame", choices=["known", "masked"], help="V2V: frame 0 is given, or masked like the others.")
    add("--prefix_frames", type=frame_counts, help="Known frames at the start, one drawn for each sample: 1,5,9,13.")
    add(
        "--leading_audio_rows", type=int, choices=[0, 1], help="Rows of zeros before the sound; follows the checkpoint."
    )
    add("--mouth_mask", help="V2V: image, white is kept. Default: the built-in mask.")
    add("--mouth_weight", type=float, help="V2V: weight of the loss inside the mouth mask; 1 outside.")
    add("--text_drop_prob", type=float, default=0.1)
    add("--audio_drop_prob", type=float, default=0.1)
    add("--prefix_drop_prob", type=float, default=0.1)
    add("--min_frames", type=int, help="Shortest sample, 4n+1. Default: 4 more than the longest prefix.")
    add("--fixed_length", action="store_true", help="Samples as long as their clip and the limits allow.")
    add(
        "--max_tokens",
        type=int,
        help="Longest sample, frames * height * width / 1024; default: the checkpoint's, 30000.",
    )
    add("--image_sizes", choices=list(IMAGE_SIZES), help="Sizes among which clips choose; default: the checkpoint's.")
    add(
        "--batch_size",
        type=int,
        default=1,
        help="Clips of one size and length in a step; the host draws one timestep for all.",
    )


def _add_auxiliary_flags(group: Any) -> None:
    add, default = group.add_argument, AuxiliaryLosses
    add("--use_sync_loss", action="store_true", help="StableSyncNet: lips and sound fit together.")
    add("--use_lpips_loss", action="store_true", help="LPIPS (VGG) of the lower half of the frames.")
    add("--use_trepa_loss", action="store_true", help="VideoMAE v2: the video moves like the clip.")
    add("--syncnet_path", help="LatentSync's stable_syncnet.pt.")
    add("--vgg_path", help="torchvision's vgg16-397923af.pth; without it, it is downloaded.")
    add("--videomae_path", help="VideoMAE v2's vit_g_hybrid_pt_1200e_ssv2_ft.pth.")
    add("--aux_recon_weight", type=float, default=default.recon_weight, help="Of the flow loss beside the others.")
    add("--aux_sync_weight", type=float, default=default.sync_weight)
    add("--aux_lpips_weight", type=float, default=default.lpips_weight)
    add("--aux_trepa_weight", type=float, default=default.trepa_weight)
    add("--aux_num_frames", type=int, help="Decode only so many successive frames, drawn anew in each step.")
    add("--sync_loss_form", choices=["cosine", "logits"], default="cosine")
    add("--sync_stride", type=int, default=16, help="Frames from a window of 16 to the next.")
    add("--trepa_stride", type=int, default=16, help="Frames from a window of 16 to the next.")
    add("--lpips_window", type=int, default=4, help="Frames that VGG sees at a time; only memory depends on it.")
    add("--aux_dtype", choices=[*DTYPES, "float16"], default="bfloat16", help="Of StableSyncNet and VideoMAE.")
    add("--aux_memory", choices=AUX_MEMORY, default="auto", help="Where the decoder's backward keeps what it needs.")


def _add_speed_flags(group: Any) -> None:
    add = group.add_argument
    add(
        "--activation_memory",
        type=memory_amount,
        metavar="auto|GIB",
        help="LoRA: keep results of the blocks for the backward pass instead of computing them again, dearest first: "
        "so many GiB, or what the GPU has free. The result is the same.",
    )
    add("--compile", action="store_true", help="Compile the transformer's blocks; the first steps take a minute.")
    add(
        "--stream_weights",
        action="store_true",
        help="LoRA: the blocks' frozen weights wait in main memory and come to the GPU one block ahead.",
    )
    add("--reference", action="store_true", help="DiffSynth's own blocks, whatever these flags say: to compare.")


def _add_loop_flags(group: Any) -> None:
    add = group.add_argument
    add("--max_steps", type=int, help="Optimizer steps in all; default: --num_epochs times the data.")
    add("--warmup_steps", type=int, default=0)
    add("--lr_schedule", choices=["constant", "cosine", "linear"], default="constant")
    add("--max_grad_norm", type=float, default=math.inf, help="Clip the gradient's L2 norm to this.")
    add("--fp32_master_weights", action="store_true", help="AdamW steps float32 copies of the trained weights.")
    add("--seed", type=int, default=0)
    add("--resume", help="'latest' of --output_path (or start anew if there is none), or a checkpoint folder.")
    add("--checkpoints_total_limit", type=int, help="Keep only so many checkpoints.")
    add("--validation_data", help="File of lines prompt@@image@@audio (V2V: prompt@@video@@audio).")
    add("--validation_steps", type=int, help="Optimizer steps between validations.")
    add("--validation_num_inference_steps", type=int, default=25)
    add("--validate_at_start", action="store_true")
    add("--validation_metrics", default="", help="Functions that measure a video: module:function, comma-separated.")
    add("--strict_data", action="store_true", help="Stop at an unreadable clip instead of passing over it.")
    add("--log_steps", type=int, default=1, help="Optimizer steps between lines on the console.")
    add("--config", help="YAML or JSON file: flag name -> value; the command line has precedence.")
    add("--vram_report", action="store_true", help="Print the memory of each stage after the third step (CUDA).")
    add("--dry_run", action="store_true", help="Print the plan and end.")
    add("--debug", action="store_true", help="Show the whole traceback of an error.")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command line over values of `--config` over defaults.

    Raises:
        FlagError: an unknown key, or flags that contradict each other or the host.
    """
    parser = build_parser()
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        other = {
            "fp8_models",
            "quant_options",
            "enable_model_cpu_offload",
            "enable_optimizer_cpu_offload",
            "offload_models",
        }
        missing = [flag for flag in unknown if flag.lstrip("-").split("=")[0] in other]
        hint = f" {', '.join(missing)} needs DiffSynth 2.x." if missing else ""
        raise FlagError(f"Unknown flags: {' '.join(unknown)}.{hint}")
    if known.config is not None:
        parser.set_defaults(**_config_values(parser, Path(known.config)))
        known = parser.parse_args(argv)
    _check_flags(parser, known)
    return known


def _config_values(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FlagError(f"--config {path} does not exist.")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise FlagError(f"--config {path} holds a {type(content).__name__}, wanted flag names and values.")
    actions = {action.dest: action for action in parser._actions}
    unknown = [key for key in content if key not in actions or key in ("config", "help")]
    if unknown:
        raise FlagError(f"--config {path} has unknown keys: {', '.join(map(str, unknown))}.")
    values = {}
    for key, value in content.items():
        action = actions[key]
        if value is None:
            continue
        if isinstance(value, list):
            value = ",".join(map(str, value)) if key != "model_paths" else json.dumps(value)
        elif isinstance(value, Mapping):
            value = json.dumps(value)
        if action.choices is not None and value not in action.choices:
            raise FlagError(f"--config {path}: {key} is {value!r}, wanted one of {list(action.choices)}.")
        values[key] = action.type(value) if callable(action.type) and isinstance(value, str) else value
    return values


def _check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    faults = [
        f"--{name} has no meaning here: {instead}"
        for name, instead in UNUSED_HOST_FLAGS.items()
        if getattr(args, name, None) != parser.get_default(name) and hasattr(args, name)
    ]
    is_v2v = args.omniavatar_mode == "v2v"
    for name in ("use_ref_sequence", "first_frame", "mouth_mask", "mouth_weight"):
        if getattr(args, name) and not is_v2v:
            faults.append(f"--{name} needs --omniavatar_mode v2v")
    if args.task not in TASKS:
        faults.append(f"--task is {args.task}, wanted one of {', '.join(TASKS)}")
    elif args.task != "sft" and host.GENERATION == "wan_video_new":
        faults.append(f"--task {args.task} needs DiffSynth 2.x; write caches with `omniavatar precompute`")
    if args.trainable_models not in (None, "dit"):
        faults.append(
            f"--trainable_models {args.trainable_models}: only dit (all its weights) can train beside the LoRA"
        )
    if args.image_sizes is not None and args.height is not None:
        faults.append("--image_sizes and --height --width exclude each other")
    if (args.height is None) != (args.width is None):
        faults.append("give both --height and --width, or neither")
    if (args.validation_data is None) != (args.validation_steps is None):
        faults.append("--validation_data and --validation_steps go together")
    if args.validation_metrics and args.validation_data is None:
        faults.append("--validation_metrics needs --validation_data")
    if not args.dataset_base_path and not args.dataset_metadata_path:
        faults.append("name the data with --dataset_metadata_path and --dataset_base_path")
    for loss, path in (("sync", "syncnet_path"), ("trepa", "videomae_path")):
        if getattr(args, f"use_{loss}_loss") and getattr(args, path) is None:
            faults.append(f"--use_{loss}_loss needs --{path}")
    own_blocks = args.compile or args.stream_weights or args.activation_memory is not None
    if own_blocks and not args.reference and getattr(args, "enable_model_cpu_offload", False):
        faults.append(
            "--enable_model_cpu_offload brings weights when DiffSynth's blocks run: --stream_weights instead of it, or "
            "without --compile and --activation_memory"
        )
    unused = [
        f"--{flag}"
        for flag, losses in AUXILIARY_FLAGS.items()
        if getattr(args, flag) != parser.get_default(flag)
        and not any(getattr(args, f"use_{one}_loss") for one in losses)
    ]
    if unused:
        faults.append(
            f"{', '.join(unused)}: the loss is not on; add --use_sync_loss, --use_lpips_loss, --use_trepa_loss"
        )
    if args.task == "sft:data_process" and args.wav2vec2_path is None:
        faults.append("--task sft:data_process needs --wav2vec2_path")
    for flag in ("fp8_models", "offload_models"):
        for named in (getattr(args, flag, None) or "").split(","):
            if DENOISER_FILES in named:
                faults.append(
                    f"--{flag} {named}: DiffSynth wraps the denoiser's layers for it, and LoRA does not go on those; "
                    f"--quant_options '{named}:torchao_fp8_w8a16' keeps the weights in 8 bits, --stream_weights in "
                    "main memory"
                )
    if args.model_paths is None and args.model_id_with_origin_paths is None:
        faults.append("name the base model with --model_paths or --model_id_with_origin_paths")
    if faults:
        raise FlagError("; ".join(faults) + ".")


# ---------------------------------------------------------------------------------------------------------------- model


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
    full = args.trainable_models == "dit"
    encoder = None if args.wav2vec2_path is None else AudioEncoder.from_pretrained(args.wav2vec2_path).to(device)
    options: dict[str, Any] = {"torch_dtype": dtype, "device": str(device)}
    if args.tokenizer_path is not None:
        options["tokenizer_config"] = host.ModelConfig(path=args.tokenizer_path)
    elif not _names_text_encoder(args):
        options["tokenizer_config"] = None if host.GENERATION == "wan_video" else _NoTokenizer()
    if args.omniavatar_checkpoint is not None:
        configs = [*_base_configs(args, device), host.ModelConfig(path=args.omniavatar_checkpoint)]
        options["omniavatar_lora"] = "fused" if full else "adapters"
        options["omniavatar_channels"] = channels
        pipe = OmniAvatarPipeline.from_pretrained(model_configs=configs, **options)
        lora = checkpoint.read_lora(args.omniavatar_checkpoint)
        if lora is None and not full:
            lora = _lora_flags(args)
            add_lora(pipe.dit, lora)
    else:
        lora = _lora_flags(args)
        pipe = host.WanVideoPipeline.from_pretrained(model_configs=_base_configs(args, device), **options)
        if pipe.dit is None:
            raise FlagError("the base model has no denoiser: add diffusion_pytorch_model*.safetensors of Wan2.1-T2V")
        generator = torch.Generator().manual_seed(args.seed)
        width = {} if encoder is None else {"audio_dim": encoder.feature_dim}
        checkpoint.initialise_on_wan(pipe.dit, channels, dtype=dtype, device=device, generator=generator, **width)
        if not full:
            add_lora(pipe.dit, lora)
        pipe = OmniAvatarPipeline.adopt(pipe, conventions)
    pipe.conventions = conventions
    if encoder is not None:
        pipe.speech_encoder = encoder
    config = CheckpointConfig(
        in_dim=channels, lora=None if full else lora, model=pipe.dit.config, conventions=conventions
    )
    return pipe, config


def channels_of(args: argparse.Namespace) -> int:
    """Input channels of the denoiser that the flags ask for."""
    return 65 if args.use_ref_sequence else MODE_CHANNELS[args.omniavatar_mode]


def _base_configs(args: argparse.Namespace, device: torch.device) -> list[Any]:
    """The host's ModelConfigs of its flags, as its own trainer makes them."""
    offered = ("fp8_models", "offload_models", "quant_options")
    extra = {name: getattr(args, name) for name in offered if hasattr(args, name)}
    if extra:
        extra["device"] = str(device)
    module = host.DiffusionTrainingModule()
    return module.parse_model_configs(args.model_paths, args.model_id_with_origin_paths, **extra)


def _names_text_encoder(args: argparse.Namespace) -> bool:
    named = f"{args.model_paths or ''},{args.model_id_with_origin_paths or ''}"
    return "umt5" in named or "text_encoder" in named


def _lora_flags(args: argparse.Namespace) -> LoRAConfig:
    alpha = args.lora_rank / 2 if args.lora_alpha is None else args.lora_alpha
    return LoRAConfig(rank=args.lora_rank, alpha=alpha, target_modules=tuple(args.lora_target_modules.split(",")))


def conventions_of(args: argparse.Namespace) -> Conventions:
    """Those of the checkpoint that training starts from, or else frames that hear their own row; flags override."""
    given: dict[str, Any] = {
        "first_frame": args.first_frame,
        "leading_audio_rows": args.leading_audio_rows,
        "prefix_frames": args.prefix_frames,
        "max_tokens": args.max_tokens,
        "image_sizes": IMAGE_SIZES.get(args.image_sizes) if args.height is None else ((args.height, args.width),),
    }
    if args.first_frame == "masked" and args.prefix_frames is None:
        given["prefix_frames"] = ()
    start = Conventions(leading_audio_rows=0)
    if args.omniavatar_checkpoint is not None:
        start = checkpoint.read_config(checkpoint.weight_files(args.omniavatar_checkpoint)).conventions
    conventions = dataclasses.replace(start, **{name: value for name, value in given.items() if value is not None})
    if args.omniavatar_mode == "v2v" and conventions.first_frame == "known" and not conventions.prefix_frames:
        raise FlagError("--first_frame known makes frame 0 known: --prefix_frames must name at least 1.")
    return conventions


# ----------------------------------------------------------------------------------------------------------------- data


def named_clips(args: argparse.Namespace) -> list[ClipSource]:
    """The clips that the flags name."""
    return read_clips(args.dataset_metadata_path or args.dataset_base_path, args.dataset_base_path)


def recipe_of(args: argparse.Namespace, conventions: Conventions) -> Recipe:
    """The random choices that the flags ask for."""
    return Recipe(
        prefix_frames=conventions.prefix_frames,
        text_drop_prob=args.text_drop_prob,
        audio_drop_prob=args.audio_drop_prob,
        prefix_drop_prob=args.prefix_drop_prob,
        max_tokens=conventions.max_tokens,
        num_frames=args.num_frames,
        min_frames=args.min_frames,
        dynamic_length=not args.fixed_length,
    )


def clip_settings(args: argparse.Namespace, conventions: Conventions) -> ClipSettings:
    """What the model takes of a clip."""
    return ClipSettings(
        in_dim=channels_of(args),
        conventions=conventions,
        height=args.height,
        width=args.width,
        mouth_mask=None if args.mouth_mask is None else Path(args.mouth_mask),
        sound=args.use_sync_loss,
    )


def build_dataset(args: argparse.Namespace, conventions: Conventions) -> OmniAvatarDataset:
    """The samples that the flags name. In a distributed run every process must call it."""
    return OmniAvatarDataset(
        named_clips(args),
        settings=clip_settings(args, conventions),
        recipe=recipe_of(args, conventions),
        batch_size=args.batch_size,
        repeat=args.dataset_repeat,
        strict=args.strict_data,
    )


def check_networks(dataset: OmniAvatarDataset, pipe: OmniAvatarPipeline, auxiliary: AuxiliaryLosses | None) -> None:
    """Raise FlagError if the samples or the losses need a network that was not loaded."""
    needed = dataset.needed_networks()
    if auxiliary is not None:
        needed["vae"] = "the losses on decoded frames"
    flags = {"speech_encoder": "--wav2vec2_path", "text_encoder": "--model_paths", "vae": "--model_paths"}
    missing = [
        f"{name} for {purpose} (add it with {flags[name]}, or put it into a cache)"
        for name, purpose in needed.items()
        if getattr(pipe, name, None) is None
    ]
    if missing:
        raise FlagError(f"training needs {'; '.join(missing)}.")


# ------------------------------------------------------------------------------------------------------------ auxiliary


def load_auxiliary(args: argparse.Namespace, device: torch.device) -> AuxiliaryLosses | None:
    """The losses on decoded frames that the flags ask for, with their networks on the device."""
    if not (args.use_sync_loss or args.use_lpips_loss or args.use_trepa_loss):
        return None
    dtype = getattr(torch, args.aux_dtype)
    sync = trepa = lpips = None
    if args.use_sync_loss:
        sync = SyncLoss(load_syncnet(args.syncnet_path, device, dtype), args.sync_loss_form, args.sync_stride)
    if args.use_lpips_loss:
        lpips = LpipsLoss(load_lpips(args.vgg_path, device), args.lpips_window)
    if args.use_trepa_loss:
        trepa = TrepaLoss(load_videomae(args.videomae_path, device, dtype), args.trepa_stride)
    return AuxiliaryLosses(
        sync=sync,
        lpips=lpips,
        trepa=trepa,
        recon_weight=args.aux_recon_weight,
        sync_weight=args.aux_sync_weight,
        lpips_weight=args.aux_lpips_weight,
        trepa_weight=args.aux_trepa_weight,
        num_frames=args.aux_num_frames,
        memory=choose_memory(args.aux_memory, device),
    )


def check_lengths(dataset: OmniAvatarDataset, auxiliary: AuxiliaryLosses | None) -> None:
    """Raise FlagError if samples can be shorter than a window of the losses."""
    if auxiliary is not None and dataset.recipe.shortest < auxiliary.shortest:
        raise FlagError(
            f"samples can have {dataset.recipe.shortest} frames, but {' and '.join(auxiliary.names)} look at "
            f"{auxiliary.shortest} at once: --min_frames 17"
        )


# ----------------------------------------------------------------------------------------------------------- validation


def make_validation(
    args: argparse.Namespace, module: OmniAvatarTrainingModule, accelerator: OmniAccelerator
) -> Validation | None:
    """What generates and measures the validation videos; None without `--validation_data`."""
    if args.validation_data is None:
        return None
    return Validation(
        module=module,
        accelerator=accelerator,
        samples=read_samples(args.validation_data),
        folder=Path(args.output_path) / "validation",
        steps=args.validation_num_inference_steps,
        seed=args.seed,
        metrics=load_metrics(args.validation_metrics),
        at_start=args.validate_at_start,
    )


# ----------------------------------------------------------------------------------------------------------------- main


def print_plan(lines: Iterable[tuple[str, Any]]) -> None:
    """A table of names and values."""
    for name, value in lines:
        print(f"{name:<24} {value}")


def plan_of(
    args: argparse.Namespace,
    dataset: OmniAvatarDataset,
    module: OmniAvatarTrainingModule,
    settings: LoopSettings,
    processes: int,
) -> list[tuple[str, Any]]:
    """What `--dry_run` prints."""
    height, width = args.height, args.width
    size = f"{height}x{width}" if height else "of the clips, among the trained sizes"
    trained = trainable_parameters(module)
    others = sum(value.nbytes for name, value in module.named_parameters() if not name.startswith("pipe.dit."))
    frames = args.num_frames or "up to max_tokens"
    tokens = module.config.conventions.max_tokens
    if height and args.num_frames:
        tokens = latent_frames(args.num_frames) * (height // 16) * (width // 16)
    config = module.pipe.dit.config
    memory = predicted_rows(
        config,
        module.config.lora,
        module.settings,
        BlockShape.of(config, batch=args.batch_size, tokens=tokens, element_size=DTYPES[args.dtype].itemsize),
        module.pipe.dit.runner,
        fp32_master_weights=settings.fp32_master_weights,
    )
    return [
        ("mode", f"{args.omniavatar_mode}, {module.config.in_dim} channels"),
        ("samples", len(dataset)),
        ("size", size),
        ("frames", frames),
        ("losses", ", ".join(["flow", *(module.auxiliary.names if module.auxiliary is not None else [])])),
        ("transformer tokens", tokens),
        ("processes", processes),
        ("batch", f"{args.batch_size} x accumulation {settings.gradient_accumulation_steps} x {processes} process(es)"),
        ("optimizer steps", settings.max_steps),
        ("trainable parameters", f"{trained:,}"),
        ("encoders", f"{others / 2**30:.2f} GiB"),
        *memory,
        *([("quantised", "not counted")] if hasattr(module.pipe.dit, "quantize_config") else []),
    ]


def _resume_folder(args: argparse.Namespace) -> Path | None:
    if args.resume is None:
        return None
    return find_latest(args.output_path) if args.resume == "latest" else Path(args.resume)


def _loop_settings(args: argparse.Namespace, samples: int, processes: int) -> LoopSettings:
    steps = args.max_steps or steps_in_epochs(args.num_epochs, samples, processes, args.gradient_accumulation_steps)
    return LoopSettings(
        max_steps=steps,
        seed=args.seed,
        lr_schedule=args.lr_schedule,
        warmup_steps=args.warmup_steps,
        max_grad_norm=args.max_grad_norm,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        fp32_master_weights=args.fp32_master_weights,
        resume=_resume_folder(args),
    )


def _save_arguments(args: argparse.Namespace) -> None:
    values = {name: value for name, value in sorted(vars(args).items()) if name not in ("config", "dry_run")}
    text = yaml.safe_dump({name: list(v) if isinstance(v, tuple) else v for name, v in values.items()})

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    checkpoint.write_atomically(Path(args.output_path) / "config.yaml", write)


def _logger_options(args: argparse.Namespace) -> dict[str, Any]:
    names = (
        "enable_tensorboard_log",
        "enable_csv_log",
        "enable_wandb_log",
        "enable_swanlab_log",
        "wandb_project",
        "swanlab_project",
    )
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def run_data_process(args: argparse.Namespace, conventions: Conventions) -> None:
    """`--task sft:data_process`: write a cache to the output path."""
    accelerator = Accelerator()
    settings = clip_settings(args, conventions)
    pipe = encoder_pipeline(
        settings,
        model_configs=_base_configs(args, accelerator.device),
        tokenizer_config=None if args.tokenizer_path is None else host.ModelConfig(path=args.tokenizer_path),
        wav2vec2=args.wav2vec2_path,
        device=str(accelerator.device),
        dtype=DTYPES[args.dtype],
    )
    report = process_data(
        pipe,
        named_clips(args),
        settings=settings,
        recipe=recipe_of(args, conventions),
        accelerator=accelerator,
        args=args,
    )
    if accelerator.is_main_process:
        for name, reason in report.faults:
            logger.warning("left out: %s: %s", name, reason)
        print(f"{args.output_path}: {report.encoded} clips encoded, {len(report.faults)} faults")


def train(args: argparse.Namespace) -> None:
    """Run what the flags say."""
    processes = PartialState().num_processes
    register_family()
    conventions = conventions_of(args)
    if args.task == "sft:data_process":
        run_data_process(args, conventions)
        return
    dataset = build_dataset(args, conventions)
    settings = _loop_settings(args, len(dataset), processes)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=args.find_unused_parameters)]
    accelerator = OmniAccelerator(settings, kwargs_handlers=handlers)
    place = torch.device("cpu") if args.stream_weights and not args.reference else accelerator.device
    pipe, config = load_training_pipeline(args, conventions, place)
    pipe.device = accelerator.device
    auxiliary = load_auxiliary(args, accelerator.device)
    check_lengths(dataset, auxiliary)
    check_networks(dataset, pipe, auxiliary)
    module = OmniAvatarTrainingModule(pipe, config, _step_settings(args), auxiliary)
    module.on_parts = accelerator.report_parts
    if accelerator.is_main_process:
        print_plan(plan_of(args, dataset, module, settings, processes))
    if args.dry_run:
        return
    if accelerator.is_main_process:
        _save_arguments(args)
    training_logger = TrainingLogger(
        accelerator,
        module,
        args.output_path,
        trained_tensors=module.trained_tensors,
        export=module.export,
        checkpoints_total_limit=args.checkpoints_total_limit,
        validate=make_validation(args, module, accelerator),
        validation_steps=args.validation_steps,
        log_steps=args.log_steps,
        **_logger_options(args),
    )
    args.num_epochs = accelerator.epochs_to_run(len(dataset))
    host.launch_training_task(accelerator, dataset, module, training_logger, args)


def _step_settings(args: argparse.Namespace) -> StepSettings:
    names = [field.name for field in dataclasses.fields(StepSettings)]
    return StepSettings(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 for faulty flags."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    expandable_segments()
    try:
        train(parse_arguments(argv))
    except (ValueError, FileNotFoundError) as error:
        if "--debug" in (sys.argv if argv is None else argv):
            raise
        print(f"diffsynth_omniavatar.train: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
