"""What the commands that make videos share: the model's flags, those of sampling, and how the model is loaded."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..host.output import quiet_host
from ..model.files import MODELS, SMALL_FAMILY, model_files, parse_lora
from ..system.flag_files import read_flag_file
from .console import say

if TYPE_CHECKING:
    from ..generation.pipeline import OmniAvatarPipeline
    from ..model.config import CheckpointConfig

Flags = Mapping[str, tuple[Callable[[str], Any], str]]
"""Flag without its dashes -> type and help; `bool` makes a pair --flag and --no-flag."""

MODEL_FLAGS: Flags = {
    "dit": (str, "weights of the Wan transformer: files, or their folder (default: the model's)"),
    "text_encoder": (str, "weights of the text encoder (default: the model's)"),
    "vae": (str, "weights of the VAE (default: the model's)"),
    "tokenizer": (str, "folder of the tokenizer (default: the model's)"),
    "omniavatar": (
        str,
        "OmniAvatar checkpoint: a folder or a file; a merged one needs no --dit (default: the model's)",
    ),
    "wav2vec2": (str, "folder of the speech encoder, wav2vec2-base-960h (default: the model's)"),
    "device": (str, "cuda, cuda:1, cpu, ... (default: the GPU if there is one)"),
    "dtype": (
        str,
        "bfloat16, float16 or float32 (default: bfloat16 on a GPU, float32 on a CPU and for the small models)",
    ),
    "vram_limit": (float, "offload weights to CPU memory above this much GPU memory, in GiB (default: no offloading)"),
    "compile": (
        bool,
        "compile the transformer's blocks: faster steps, a slower first step (default: no)",
    ),
    "quantize": (
        str,
        "hold the transformer's layers in 8 bits, half the memory: fp8 (fastest; Ada and Hopper), int8, or fp8_weights "
        "(any GPU, no faster) (default: no)",
    ),
    "keep_bf16": (
        str,
        "with --quantize: what stays as it is, with commas between: first or last (block), self_attn, cross_attn, ffn, "
        "ffn.2, ... (default: nothing)",
    ),
    "quantize_attention": (
        bool,
        "self-attention in 8 bits, too; Hopper and nvidia-cudnn-frontend only, faster and coarser (default: no)",
    ),
    "stream_weights": (
        bool,
        "keep the weights of the transformer and the text encoder in CPU memory and copy each layer to the GPU just "
        "before use: for small GPUs; as fast as without for long chunks (default: no)",
    ),
    "use_usp": (bool, "use several GPUs for each video; start with torchrun --nproc_per_node GPUS (default: no)"),
    "cfg_parallel": (
        str,
        "with --use_usp: auto or off. auto lets GPUs make different passes of guidance where their numbers divide, the "
        "faster way; off lets all GPUs share each pass (default: auto)",
    ),
    "shard_weights": (
        bool,
        "with --use_usp: each GPU keeps a part of the transformer's weights, and gets each layer just before use "
        "(default: no)",
    ),
    "download_source": (
        str,
        "where to download from: modelscope or huggingface (default: huggingface for OmniAvatar and wav2vec2, "
        "DiffSynth's choice for Wan)",
    ),
    "checkpoint_preset": (
        str,
        "how a checkpoint without config.json was trained: lipforcing_teacher for Lip Forcing's omniavatar_ls_14b.pt "
        "under another name (default: told by the file's name)",
    ),
    "leading_audio_rows": (int, "frames before the sound starts, 0 or 1 (default: the checkpoint's, else 1)"),
    "first_frame": (str, "V2V: is the first frame known or masked? (default: the checkpoint's, else known)"),
}
SHARED_FLAGS: Flags = {
    "negative_prompt": (str, "describe what to avoid (default: the checkpoint's, else OmniAvatar's own text)"),
    "mouth_mask": (
        str,
        "V2V: image of the mouth mask: white is kept, black is generated (default: a built-in one for aligned faces)",
    ),
    "reference_video": (str, "V2V with 65 channels: another video of the person (default: another part of --video)"),
    "height": (int, "height of the video in pixels (default: the trained size nearest in shape)"),
    "width": (int, "width of the video in pixels (default: the trained size nearest in shape)"),
    "max_tokens": (
        int,
        "longest chunk: frames * height * width / 1024; less needs less memory (default: the checkpoint's, else 30000)",
    ),
    "overlap": (int, "frames that a chunk shares with the one before, 4n+1 (default: 13)"),
    "match_colours": (
        bool,
        "match the colours of each chunk to the portrait or source video, against colour drift "
        "(default: the checkpoint's, else no)",
    ),
    "silence": (float, "seconds of silence before the speech (default: 0.3; 0 for V2V)"),
    "sampler": (
        str,
        "preset of the flags from --steps to --guidance_to, for LoRAs with few steps: default, lightx2v4, lightx2v8, "
        "causvid, fusionx or fastwan; each of the flags overrides it (default: the checkpoint's settings)",
    ),
    "steps": (int, "denoising steps per chunk (default: the checkpoint's, else 50)"),
    "timesteps": (
        str,
        "timesteps of the steps, like 1000,750,500,250, which --sigma_shift then moves; '' for equal distances "
        "(default: the checkpoint's, else equal distances)",
    ),
    "sigma_shift": (
        float,
        "shift of the noise schedule; 1 takes --timesteps as they are (default: the checkpoint's, else 5)",
    ),
    "solver": (
        str,
        "euler, or renoise: fresh noise after each step (default: the checkpoint's, else euler)",
    ),
    "cfg_scale": (
        float,
        "text and audio guidance scale; 1 turns guidance off, but for that of --audio_cfg_scale (default: the "
        "checkpoint's, else 4.5)",
    ),
    "audio_cfg_scale": (
        float,
        "separate audio guidance scale; needs one more pass per step (default: the checkpoint's, else --cfg_scale)",
    ),
    "apg_eta": (
        float,
        "adaptive projected guidance against burnt colours: 0 to 1, how much counts of the part of guidance along the "
        "predicted picture; 0 is usual, 1 plain guidance (default: the checkpoint's, else 1)",
    ),
    "guidance_rescale": (
        float,
        "against burnt colours: 0 to 1, how far contrast goes back to that without guidance (default: the "
        "checkpoint's, else 0)",
    ),
    "guidance_from": (
        float,
        "part of the steps before which there is no guidance, 0 to 1 (default: the checkpoint's, else 0)",
    ),
    "guidance_to": (
        float,
        "part of the steps after which there is no guidance, 0 to 1 (default: the checkpoint's, else 1)",
    ),
    "seed": (int, "random seed; the same seed makes the same video (default: 42)"),
    "tiled": (
        bool,
        "run the VAE in tiles: less memory, several times as slow (default: yes above 720x720 pixels, else no)",
    ),
    "tea_cache_l1_thresh": (
        float,
        "TeaCache threshold: skip steps that change less; OmniAvatar uses 0.14 (default: skip none)",
    ),
    "tea_cache_model_id": (
        str,
        "use the TeaCache coefficients of this model, like Wan2.1-T2V-14B (default: chosen by the model's size)",
    ),
    "crf": (int, "H.264 quality, 0 (lossless) to 51; 13 to 18 look lossless (default: 15)"),
    "preview": (
        str,
        "a .png, .jpg or .webp file that after each step shows what the video will be, coarsely: a small picture for "
        "every four frames (default: none)",
    ),
    "show_progress": (bool, "show a progress bar (default: yes)"),
}
"""Settings of every video."""


def add_model_flags(parser: argparse.ArgumentParser, default: str | None = "14B") -> None:
    """The flags that say which model, and how it runs; without a default the command chooses."""
    parser.add_argument(
        "--model",
        choices=MODELS,
        default=default,
        help="released model, or a small model that comes with this package: nano animates a portrait, nano-v2v dubs a "
        f"video (default: {default or 'the largest whose files are there'})",
    )
    parser.add_argument(
        "--models_folder",
        help="folder with Wan2.1-T2V-14B/, OmniAvatar-14B/ and wav2vec2-base-960h/, or with a small model "
        "(default: download the files to models/)",
    )
    add_flags(parser, "single files of the model, and how it runs", MODEL_FLAGS)
    parser.add_argument(
        "--lora",
        action="append",
        metavar="FILE[:STRENGTH]",
        help="LoRA of another program for Wan 2.1 text-to-video, added to the weights: a .safetensors or .pt file, or "
        "OWNER/NAME:FILE of Hugging Face; can be given several times (default: none)",
    )


def add_flags(parser: argparse.ArgumentParser, title: str, flags: Flags) -> None:
    """Flags that leave no trace unless they are given, so that the functions' own defaults hold."""
    group = parser.add_argument_group(title)
    for name, (kind, text) in flags.items():
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = kind
        if name == "dit":
            options["nargs"] = "+"
        group.add_argument(f"--{name}", **options)


def flags_of_file(args: argparse.Namespace, command: str, flags: Flags, texts: set[str]) -> Iterator[str]:
    """The content of a config file as command-line arguments, but for lists that the command line has too.

    Args:
        args: the command line, with the file (YAML or JSON) as `config`.
        command: whose flags they are.
        flags: the command's, but for the model's.
        texts: flags beside these that take a text.
    """
    single = {"model", "models_folder", "lora", *texts}
    flags = {**MODEL_FLAGS, **flags}
    path = args.config
    content = read_flag_file(path)
    unknown = sorted(str(key) for key in content if key not in flags and key not in single)
    if unknown:
        raise ValueError(
            f"{path}: unknown keys {', '.join(unknown)}; the keys are the flags of `omniavatar {command}`."
        )
    for key, value in content.items():
        if value is None or isinstance(getattr(args, key, None), list):
            continue
        if key in flags and flags[key][0] is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{path}: {key} is {value!r}, wanted true or false.")
            yield f"--{key}" if value else f"--no-{key}"
        elif key == "dit" and isinstance(value, list):
            yield from ("--dit", *map(str, value))
        elif key in ("timesteps", "keep_bf16") and isinstance(value, list):
            yield f"--{key}={','.join(map(str, value))}"
        elif isinstance(value, list):
            yield from (f"--{key}={one}" for one in value)
        else:
            yield f"--{key}={value}"


def given(args: argparse.Namespace, flags: Flags) -> dict[str, Any]:
    """Those of the flags that were given, with their values."""
    return {name: getattr(args, name) for name in flags if hasattr(args, name)}


def named_loras(args: argparse.Namespace) -> list[tuple[str, float]]:
    """Files and strengths of --lora."""
    return [parse_lora(text) for text in args.lora or ()]


def facts(args: argparse.Namespace) -> CheckpointConfig:
    """What is known of the checkpoint before it is loaded; one that is yet to be downloaded is upstream's."""
    from ..model.checkpoint import needed_sources, read_facts
    from ..model.checkpoint_presets import preset_conventions
    from ..model.config import CheckpointConfig
    from ..model.part_files import check_parts

    preset = preset_conventions(args.checkpoint_preset) if hasattr(args, "checkpoint_preset") else None
    if args.models_folder is not None and not Path(args.models_folder).is_dir():
        raise FileNotFoundError(f"--models_folder: {args.models_folder} is no folder.")
    files = model_files(args.model, args.models_folder, {part: getattr(args, part, None) for part in SMALL_FAMILY})
    sources = needed_sources(files)
    check_parts(sources)
    if args.lora:
        from ..generation.loading import check_loras

        check_loras(named_loras(args), sources, args.model, getattr(args, "download_source", None))
    config = read_facts(sources["omniavatar"]) or CheckpointConfig(in_dim=33)
    stated = {name: getattr(args, name) for name in ("leading_audio_rows", "first_frame") if hasattr(args, name)}
    return replace(config, conventions=replace(preset or config.conventions, **stated))


def load_model(args: argparse.Namespace) -> OmniAvatarPipeline:
    """The pipeline that the flags name; a line tells what was loaded."""
    started = time.monotonic()
    with quiet_host(args.debug):
        from ..generation.loading import load_pipeline

        pipe = load_pipeline(args.model, args.models_folder, loras=named_loras(args), **given(args, MODEL_FLAGS))
    if pipe.is_first_process:
        mode = "V2V" if pipe.dit.config.has_masked_video else "I2V"
        dtype = str(pipe.torch_dtype).removeprefix("torch.")
        say(
            f"{args.models_folder or args.model}: {mode}, {dtype} on {pipe.device}, "
            f"loaded in {time.monotonic() - started:.0f} s."
        )
    return pipe
