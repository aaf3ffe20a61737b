"""The flags of training: the host's and OmniAvatar's, values for them from a file, and which of them go together."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import host
from ..data.flags import DTYPES
from ..losses.decode import AUX_MEMORY
from ..metrics.evaluate import ALL_GROUPS
from ..model.blocks.quantized import METHODS
from ..model.config import LORA_TARGETS, size_fault
from ..model.quantize import check_quantize, layer_names
from ..system.flag_files import read_flag_file
from ..system.messages import unknown_flags
from ..system.output_folder import can_write, nearest_existing
from .auxiliary import AuxiliaryLosses
from .best import LOSS, Goal
from .distill_flags import TASK, TRAJECTORIES, add_distill_flags, distill_faults, distills, numbers
from .distill_settings import DISTILL_PRESETS
from .flag_texts import DESCRIPTION, HOST_HELP, HelpFormatter
from .loop_flags import add_loop_flags, loop_faults
from .lora_flags import add_lora_flags, lora_faults
from .recipe_flags import add_recipe_flags, frame_counts, recipe_faults
from .validation_metrics import metric_names

DENOISER_FILES = "diffusion_pytorch_model"
"""How the files of Wan's transformer begin."""
TASKS = ("sft", "sft:data_process", "sft:train", TASK, TRAJECTORIES)

UNUSED_HOST_FLAGS = {
    "lora_base_model": "the LoRA always goes on the denoiser",
    "lora_checkpoint": "use --omniavatar_checkpoint",
    "preset_lora_path": "use --base_lora",
    "preset_lora_model": "use --base_lora",
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
FIGURE_FLAGS = {"syncnet_path": "stable_sync", "vgg_path": "lpips", "videomae_path": "fvd_videomae"}
"""Some of them -> the group of --validation_metrics that needs them too."""

VALIDATION_WEIGHTS = {
    "validation_syncnet_path": "sync",
    "validation_inception_path": "fid",
    "validation_fvd_path": "fvd",
}
"""Flags -> the group of --validation_metrics that alone needs them."""


class FlagError(ValueError):
    """Flags or configuration that cannot be; the message says what to change."""


def memory_amount(text: str) -> float | str:
    """ "auto" -> "auto"; "16" -> 16.0."""
    if text == "auto":
        return text
    gib = float(text)
    if gib < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; give GiB, or auto")
    return gib


def _refuse(message: str) -> NoReturn:
    raise FlagError(message)


def build_parser() -> argparse.ArgumentParser:
    """The host's flags and OmniAvatar's."""
    parser = host.wan_parser()
    parser.prog = "python -m diffsynth_omniavatar.train"
    parser.usage = "%(prog)s [flags]"
    parser.allow_abbrev = False
    parser.error = _refuse  # type: ignore[method-assign] # else the usage, of a hundred lines, goes before it
    for action in parser._actions:
        action.required = False  # the host requires dataset_base_path, which may come from --config
        refused = action.dest in UNUSED_HOST_FLAGS
        action.help = argparse.SUPPRESS if refused else HOST_HELP.get(action.dest, action.help)
    parser.description = DESCRIPTION
    parser.formatter_class = HelpFormatter
    table = next(action for action in parser._actions if action.dest == "dataset_metadata_path")
    table.nargs, table.metavar = "+", "TABLE[:WEIGHT]"
    parser.set_defaults(lora_rank=128, lora_target_modules=",".join(LORA_TARGETS), num_frames=None)
    _add_model_flags(parser.add_argument_group("OmniAvatar: model"))
    add_recipe_flags(parser.add_argument_group("OmniAvatar: recipe"))
    _add_auxiliary_flags(parser.add_argument_group("OmniAvatar: losses on decoded frames"))
    _add_speed_flags(parser.add_argument_group("OmniAvatar: speed and memory"))
    add_loop_flags(parser.add_argument_group("OmniAvatar: loop"))
    _add_validation_flags(parser.add_argument_group("OmniAvatar: validation"))
    add_distill_flags(parser.add_argument_group("OmniAvatar: distillation, with --task distill"))
    return parser


def _add_model_flags(group: Any) -> None:
    add = group.add_argument
    add(
        "--omniavatar_mode",
        choices=["i2v", "v2v"],
        default="i2v",
        help="i2v: portrait to video; v2v: dubbing.",
    )
    add("--omniavatar_checkpoint", help="Checkpoint to start from. (default: start from Wan alone)")
    add(
        "--base_lora",
        nargs="+",
        metavar="FILE[:STRENGTH]",
        help="LoRAs of other programs, added to the frozen weights that the LoRA trains on; files, or OWNER/NAME:FILE "
        "of Hugging Face. Videos need them too, as --lora. (default: none)",
    )
    add(
        "--use_ref_sequence",
        action="store_true",
        help="V2V: add a reference sequence, another part of the clip: 65 channels instead of 49.",
    )
    add("--wav2vec2_path", help="Folder of wav2vec2-base-960h; not needed with a cache.")
    add(
        "--tokenizer_path",
        help="Folder of the umt5-xxl tokenizer; not needed with a cache. (default: download it)",
    )
    add_lora_flags(group)
    add("--dtype", choices=list(DTYPES), default="bfloat16", help="Number format of the weights.")
    add(
        "--offload_frozen",
        action="store_true",
        help="Offload text encoder, VAE and wav2vec2 to CPU memory between uses.",
    )


def _add_auxiliary_flags(group: Any) -> None:
    add, default = group.add_argument, AuxiliaryLosses
    add("--use_sync_loss", action="store_true", help="Add the lip sync loss (StableSyncNet).")
    add("--use_lpips_loss", action="store_true", help="Add the LPIPS loss (VGG16) on the lower half of the frames.")
    add("--use_trepa_loss", action="store_true", help="Add the TREPA loss (VideoMAE v2), on motion.")
    add("--syncnet_path", help="File stable_syncnet.pt of LatentSync.")
    add("--vgg_path", help="File vgg16-397923af.pth of torchvision. (default: download it)")
    add("--videomae_path", help="File vit_g_hybrid_pt_1200e_ssv2_ft.pth of VideoMAE v2.")
    add("--aux_recon_weight", type=float, default=default.recon_weight, help="Weight of the flow loss.")
    add("--aux_sync_weight", type=float, default=default.sync_weight, help="Weight of the lip sync loss.")
    add("--aux_lpips_weight", type=float, default=default.lpips_weight, help="Weight of the LPIPS loss.")
    add("--aux_trepa_weight", type=float, default=default.trepa_weight, help="Weight of the TREPA loss.")
    add(
        "--aux_num_frames",
        type=int,
        help="Decode only this many frames in a row, at a random place in each step. (default: all)",
    )
    add(
        "--sync_loss_form",
        choices=["cosine", "logits"],
        default="cosine",
        help="Form of the lip sync loss; see docs/losses.md.",
    )
    add("--sync_stride", type=int, default=16, help="Lip sync: frames from one window of 16 to the next.")
    add("--trepa_stride", type=int, default=16, help="TREPA: frames from one window of 16 to the next.")
    add("--lpips_window", type=int, default=4, help="LPIPS: frames per pass; changes memory only.")
    add(
        "--aux_dtype",
        choices=[*DTYPES, "float16"],
        default="bfloat16",
        help="Number format of StableSyncNet and VideoMAE.",
    )
    add(
        "--aux_memory",
        choices=AUX_MEMORY,
        default="auto",
        help="Where the VAE decoder's backward pass keeps activations; see docs/losses.md.",
    )


def _add_speed_flags(group: Any) -> None:
    add = group.add_argument
    add(
        "--activation_memory",
        type=memory_amount,
        metavar="auto|GIB",
        help="LoRA: keep activations for the backward pass instead of computing them again. Faster, same result. GiB "
        "of GPU memory for them, or auto for all that is free. (default: all, or none with gradient checkpointing)",
    )
    add("--compile", action="store_true", help="Compile the transformer's blocks: faster steps, a slower first step.")
    add(
        "--stream_weights",
        action="store_true",
        help="LoRA: offload the frozen weights to CPU memory and load each block just before it is used.",
    )
    add(
        "--quantize",
        choices=METHODS,
        help="LoRA: hold the frozen layers in 8 bits, half the memory. fp8 also computes in 8 bits: faster; needs an "
        "Ada or Hopper GPU. int8 does so in the forward pass. fp8_weights only saves memory. (default: no)",
    )
    add(
        "--keep_bf16",
        default="",
        metavar="NAMES",
        help="With --quantize: what stays as it is, with commas between: first or last (block), self_attn, cross_attn, "
        "ffn, ffn.2, ... (default: nothing)",
    )
    add(
        "--quantize_attention",
        action="store_true",
        help="LoRA: self-attention in float8; its gradients are computed in bf16 from that. Faster; needs a Hopper GPU "
        "and pip install nvidia-cudnn-frontend.",
    )
    add(
        "--reference",
        action="store_true",
        help="Use DiffSynth's own blocks and ignore the flags above, for comparison.",
    )


def _add_validation_flags(group: Any) -> None:
    add = group.add_argument
    add("--validation_steps", type=int, help="Optimizer steps between validations.")
    add("--validate_at_start", action="store_true", help="Also validate before the first step.")
    add(
        "--validation_loss_data",
        help="Table of held-out clips, or cache: their loss at fixed noise levels and fixed "
        "noise is logged as validation_loss.",
    )
    add("--validation_loss_levels", type=int, default=8, help="Noise levels of --validation_loss_data for each clip.")
    add(
        "--validation_data",
        help="Text file with one video per line: prompt@@image@@audio (V2V: prompt@@video@@audio), then "
        "@@reference, the real video, if there is one. (V2V: the video itself, where it has that sound)",
    )
    add("--validation_num_inference_steps", type=int, default=25, help="Denoising steps of validation videos.")
    add(
        "--validation_metrics",
        default="",
        help=f"What to measure on validation videos, comma-separated: {', '.join(ALL_GROUPS)}, as "
        "`omniavatar evaluate` does; or your own module:function.",
    )
    add(
        "--validation_syncnet_path",
        help="syncnet_v2.model, for sync. (stable_sync needs --syncnet_path, lpips --vgg_path, fvd_videomae "
        "--videomae_path)",
    )
    add("--validation_inception_path", help="weights-inception-2015-12-05-6726825d.pth of torch-fidelity, for fid.")
    add("--validation_fvd_path", help="i3d_pretrained_400.pt of cd-fvd, for fvd.")
    add(
        "--best_by",
        help="Keep the checkpoint that is best by this figure of the validations in best/: validation_loss, "
        "validation_sync_c, ...; with :min or :max for figures of your own.",
    )
    add("--patience", type=int, help="End after so many validations in a row without a better --best_by figure.")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command line over values of `--config` over defaults.

    Raises:
        FlagError: an unknown key, or flags that contradict each other or the host.
    """
    parser = build_parser()
    defaults = {action.dest: action.default for action in parser._actions}
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
        hint = f". {', '.join(missing)} needs DiffSynth 2.x." if missing else ""
        raise FlagError(f"U{unknown_flags(unknown, parser)[1:]}{hint}")
    in_file = {} if known.config is None else _config_values(parser, Path(known.config))
    parser.set_defaults(**in_file)
    known = parser.parse_args(argv)
    if distills(known):
        parser.set_defaults(**{**DISTILL_PRESETS[known.distill_preset], **in_file})
        known = parser.parse_args(argv)
    _check_flags(parser, known, defaults)
    return known


def _config_values(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    content = read_flag_file(path)
    actions = {action.dest: action for action in parser._actions}
    unknown = [key for key in content if key not in actions or key in ("config", "help")]
    if unknown:
        raise FlagError(f"--config {path} has unknown keys: {', '.join(map(str, unknown))}.")
    values = {}
    for key, value in content.items():
        if value is not None:
            try:
                values[key] = _config_value(actions[key], value)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                raise FlagError(f"--config {path}: {key} is {str(value)[:80]!r}, {error}.") from error
    return values


def _config_value(action: argparse.Action, value: Any) -> Any:
    """What the command line would make of a flag with this value of a file.

    Raises:
        ValueError, TypeError, argparse.ArgumentTypeError: it is of another kind; the message says what is wanted.
    """
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError("wanted true or false, without quotes")
        return value
    if action.nargs == "+":
        return [_text(one) for one in value] if isinstance(value, list) else [_text(value)]
    kind: Any = action.type or str
    if isinstance(value, bool) or (kind is str and isinstance(value, int | float)):
        raise ValueError(f"wanted {_KIND_NAMES.get(kind, 'a value')}")
    if isinstance(value, list | Mapping) and kind in (int, float):
        raise ValueError(f"wanted {_KIND_NAMES[kind]}")
    if (action.dest == "model_paths" and isinstance(value, list)) or isinstance(value, Mapping):
        value = json.dumps(value)
    elif isinstance(value, list):
        if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in value):
            raise ValueError("wanted a list of names or numbers")
        value = ",".join(map(str, value))
    try:
        value = kind(str(value))
    except ValueError as error:
        raise ValueError(f"wanted {_KIND_NAMES.get(kind, error)}") from error
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"wanted one of {list(action.choices)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("wanted names in quotes")
    return value


_KIND_NAMES = {int: "a whole number", float: "a number", str: "text, in quotes", frame_counts: "numbers of frames"}
_KIND_NAMES[numbers] = "numbers"


def _check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    faults = [
        f"--{name} has no meaning here: {instead}"
        for name, instead in UNUSED_HOST_FLAGS.items()
        if getattr(args, name, None) != parser.get_default(name) and hasattr(args, name)
    ]
    faults += [*_number_faults(args), *_task_faults(args), *_validation_faults(args)]
    faults += [
        *_loss_faults(parser, args),
        *_model_faults(args),
        *lora_faults(args),
        *recipe_faults(args),
        *loop_faults(args),
    ]
    faults += distill_faults(args, defaults)
    if faults:
        raise FlagError("; ".join(faults) + ".")


LEAST = {
    "batch_size": 1,
    "checkpoints_total_limit": 1,
    "dataset_num_workers": 0,
    "dataset_repeat": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "log_noise_levels": 1,
    "log_steps": 1,
    "lora_rank": 1,
    "max_steps": 1,
    "num_epochs": 1,
    "patience": 1,
    "profile": 1,
    "save_steps": 1,
    "validation_loss_levels": 1,
    "validation_num_inference_steps": 1,
    "validation_steps": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
}
"""Flags -> the smallest value that they can have."""


def _number_faults(args: argparse.Namespace) -> Iterator[str]:
    """Of numbers that are out of their range."""
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            yield f"--{name} is {value}, wanted at least {least}"
    if abs(args.seed) >= 2**63:
        yield f"--seed is {args.seed}, wanted a number of 63 bits"
    for name in ("text_drop_prob", "audio_drop_prob", "prefix_drop_prob"):
        if not 0 <= getattr(args, name) <= 1:
            yield f"--{name} is {getattr(args, name)}, wanted 0 to 1"


def _task_faults(args: argparse.Namespace) -> Iterator[str]:
    """Of mode, task, sizes and data."""
    for name in ("use_ref_sequence", "first_frame", "mouth_mask", "mouth_weight"):
        if getattr(args, name) and args.omniavatar_mode != "v2v":
            yield f"--{name} needs --omniavatar_mode v2v"
    if args.task not in TASKS:
        yield f"--task is {args.task}, wanted one of {', '.join(TASKS)}"
    elif args.task.startswith("sft:") and host.GENERATION == "wan_video_new":
        yield f"--task {args.task} needs DiffSynth 2.x; write caches with `omniavatar precompute`"
    if args.task == "sft:data_process" and args.wav2vec2_path is None:
        yield "--task sft:data_process needs --wav2vec2_path"
    if args.image_sizes is not None and args.height is not None:
        yield "--image_sizes and --height --width exclude each other"
    if (args.height is None) != (args.width is None):
        yield "give both --height and --width, or neither"
    elif args.height is not None and (fault := size_fault(args.height, args.width)):
        yield f"--height and --width are {fault}"
    if not args.dataset_base_path and not args.dataset_metadata_path and args.trajectories is None:
        yield "name the data with --dataset_metadata_path and --dataset_base_path"
    if not args.output_path:
        yield "--output_path is empty; give a folder"
    there = nearest_existing(args.output_path)
    if not there.is_dir():
        yield f"--output_path {args.output_path}: {there} is a file; give a folder"
    elif not can_write(there):
        yield f"--output_path {args.output_path}: nothing can be written into {there}; give another folder"


def _validation_faults(args: argparse.Namespace) -> Iterator[str]:
    """Of what is validated, and what follows from it."""
    validates = args.validation_data is not None or args.validation_loss_data is not None
    if validates != (args.validation_steps is not None):
        yield "--validation_data and --validation_steps go together, or --validation_loss_data and --validation_steps"
    if args.validation_metrics and args.validation_data is None:
        yield "--validation_metrics needs --validation_data"
    groups = metric_names(args.validation_metrics)[0]
    for flag, group in VALIDATION_WEIGHTS.items():
        if getattr(args, flag) is not None and group not in groups:
            yield f"--{flag} needs --validation_metrics {group}"
    if args.patience is not None and args.best_by is None:
        yield "--patience needs --best_by"
    if args.best_by is not None:
        try:
            figure = Goal.parse(args.best_by).figure
        except ValueError as error:
            yield f"--best_by {error}"
        else:
            needed = "validation_loss_data" if figure == LOSS else "validation_data"
            if getattr(args, needed) is None:
                yield f"--best_by {figure} needs --{needed}"


def _loss_faults(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[str]:
    """Of the losses on decoded frames."""
    for loss, path in (("sync", "syncnet_path"), ("trepa", "videomae_path")):
        if getattr(args, f"use_{loss}_loss") and getattr(args, path) is None:
            yield f"--use_{loss}_loss needs --{path}"
    groups = metric_names(args.validation_metrics)[0]
    unused = [
        f"--{flag}"
        for flag, losses in AUXILIARY_FLAGS.items()
        if getattr(args, flag) != parser.get_default(flag)
        and not any(getattr(args, f"use_{one}_loss") for one in losses)
        and FIGURE_FLAGS.get(flag) not in groups
        and not (args.sync_reward is not None and flag in ("syncnet_path", "aux_dtype"))
    ]
    if unused:
        yield f"{', '.join(unused)}: the loss is not on; add --use_sync_loss, --use_lpips_loss, --use_trepa_loss"


def _model_faults(args: argparse.Namespace) -> Iterator[str]:
    """Of the base model, what trains of it, and where its weights wait."""
    if args.model_paths is None and args.model_id_with_origin_paths is None:
        yield "name the base model with --model_paths or --model_id_with_origin_paths"
    if args.trainable_models not in (None, "dit"):
        yield f"--trainable_models {args.trainable_models}: only dit (all its weights) can train beside the LoRA"
    if args.base_lora and args.trainable_models == "dit":
        yield "--base_lora is frozen: leave it away, or --trainable_models dit"
    eight_bits = args.quantize or args.quantize_attention
    own_blocks = args.compile or args.stream_weights or eight_bits or args.activation_memory is not None
    if args.quantize and args.reference:
        yield "--quantize does not go with --reference: DiffSynth's own blocks have --quant_options"
    if args.quantize_attention and args.reference:
        yield "--quantize_attention does not go with --reference: DiffSynth's own blocks cannot do it"
    try:
        check_quantize(args.quantize, layer_names(args.keep_bf16), "cpu")
    except ValueError as error:
        yield f"--{error}"
    if own_blocks and not args.reference and getattr(args, "enable_model_cpu_offload", False):
        yield (
            "--enable_model_cpu_offload brings weights when DiffSynth's blocks run: --stream_weights instead of it, or "
            "without --compile and --activation_memory"
        )
    for flag in ("fp8_models", "offload_models"):
        for named in (getattr(args, flag, None) or "").split(","):
            if DENOISER_FILES in named:
                yield (
                    f"--{flag} {named}: DiffSynth wraps the denoiser's layers for it, and LoRA does not go on those; "
                    f"--quant_options '{named}:torchao_fp8_w8a16' keeps the weights in 8 bits, --stream_weights in "
                    "CPU memory"
                )
