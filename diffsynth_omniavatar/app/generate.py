"""`omniavatar generate`: one video, or one for each line of a file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..generation.samples import read_samples
from ..host.output import quiet_host
from ..model.config import has_masked_video
from ..model.files import MODELS, SMALL_FAMILY, model_files
from ..system.flag_files import read_flag_file
from ..system.messages import counted
from .console import FAILED, say

if TYPE_CHECKING:
    from ..generation.pipeline import OmniAvatarPipeline
    from ..generation.request import TalkRequest
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
    "use_usp": (bool, "use several GPUs for each video; start with torchrun --nproc_per_node GPUS (default: no)"),
    "download_source": (
        str,
        "where to download from: modelscope or huggingface (default: huggingface for OmniAvatar and wav2vec2, "
        "DiffSynth's choice for Wan)",
    ),
    "leading_audio_rows": (int, "frames before the sound starts, 0 or 1 (default: the checkpoint's, else 1)"),
    "first_frame": (str, "V2V: is the first frame known or masked? (default: the checkpoint's, else known)"),
}
INPUT_FLAGS: Flags = {
    "prompt": (str, "describe the video: the person, what they do, the background"),
    "image": (str, "the portrait; V2V: the reference image (default: the video's first frame)"),
    "video": (str, "V2V: the video to dub; if it is shorter than the speech, it plays forward, then backward, in turn"),
    "audio": (str, "the speech: a sound file, or a video with sound"),
    "out": (str, "the file to write: .mp4, .mov or .mkv"),
}
SETTING_FLAGS: Flags = {
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
    "paste_source": (bool, "V2V: keep the video's own pixels outside the mouth (default: yes)"),
    "overlap": (int, "frames that a chunk shares with the one before, 4n+1 (default: 13)"),
    "match_colours": (
        bool,
        "match the colours of each chunk to the portrait or source video, against colour drift "
        "(default: the checkpoint's, else no)",
    ),
    "silence": (float, "seconds of silence before the speech (default: 0.3; 0 for V2V)"),
    "steps": (int, "denoising steps per chunk (default: the checkpoint's, else 50)"),
    "cfg_scale": (float, "text and audio guidance scale; 1 turns guidance off (default: the checkpoint's, else 4.5)"),
    "audio_cfg_scale": (
        float,
        "separate audio guidance scale; needs a third pass per step (default: the checkpoint's, else --cfg_scale)",
    ),
    "sigma_shift": (float, "shift of the noise schedule (default: the checkpoint's, else 5)"),
    "seed": (int, "random seed; the same seed makes the same video (default: 42)"),
    "tiled": (bool, "run the VAE in tiles: less memory (default: yes above 512x512 pixels, else no)"),
    "tea_cache_l1_thresh": (
        float,
        "TeaCache threshold: skip steps that change less; OmniAvatar uses 0.14 (default: skip none)",
    ),
    "tea_cache_model_id": (
        str,
        "use the TeaCache coefficients of this model, like Wan2.1-T2V-14B (default: chosen by the model's size)",
    ),
    "crf": (int, "H.264 quality, 0 (lossless) to 51; 13 to 18 look lossless (default: 15)"),
    "show_progress": (bool, "show a progress bar (default: yes)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar generate`."""
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="14B",
        help="released model, or a small model that comes with this package: nano animates a portrait, nano-v2v dubs a "
        "video (default: 14B)",
    )
    parser.add_argument(
        "--models_folder",
        help="folder with Wan2.1-T2V-14B/, OmniAvatar-14B/ and wav2vec2-base-960h/, or with a small model "
        "(default: download the files to models/)",
    )
    _add_flags(parser, "single files of the model, and how it runs", MODEL_FLAGS)
    _add_flags(parser, "one video", INPUT_FLAGS)
    many = parser.add_argument_group("many videos")
    many.add_argument(
        "--input_file", help="text file with one video per line: prompt@@image@@audio (V2V: prompt@@video@@audio)"
    )
    many.add_argument("--out_folder", default="outputs", help="folder for the videos (default: outputs)")
    _add_flags(parser, "settings", SETTING_FLAGS)
    parser.add_argument("--config", help="YAML or JSON file with values for these flags; the command line overrides it")


def _add_flags(parser: argparse.ArgumentParser, title: str, flags: Flags) -> None:
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


def config_flags(path: str) -> Iterator[str]:
    """The content of a config file as command-line arguments of `generate`."""
    single = {"model", "models_folder", "input_file", "out_folder"}
    flags = {**MODEL_FLAGS, **INPUT_FLAGS, **SETTING_FLAGS}
    content = read_flag_file(path)
    unknown = sorted(str(key) for key in content if key not in flags and key not in single)
    if unknown:
        raise ValueError(f"{path}: unknown keys {', '.join(unknown)}; the keys are the flags of `omniavatar generate`.")
    for key, value in content.items():
        if value is None:
            continue
        if key in flags and flags[key][0] is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{path}: {key} is {value!r}, wanted true or false.")
            yield f"--{key}" if value else f"--no-{key}"
        elif key == "dit" and isinstance(value, list):
            yield from ("--dit", *map(str, value))
        else:
            yield f"--{key}={value}"


def _given(args: argparse.Namespace, flags: Flags) -> dict[str, Any]:
    return {name: getattr(args, name) for name in flags if hasattr(args, name)}


def run(args: argparse.Namespace) -> int:
    """`omniavatar generate`: the exit code is 1 if a line of an input file failed."""
    inputs = _given(args, INPUT_FLAGS)
    if args.input_file is not None:
        if inputs:
            raise ValueError(f"--input_file replaces {', '.join(f'--{name}' for name in inputs)}: leave one out.")
        return _generate_many(args, _facts(args))
    missing = [f"--{name}" for name in ("prompt", "audio", "out") if name not in inputs]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; or give --input_file with one video per line.")
    for name in ("image", "video", "audio"):
        if name in inputs and not Path(inputs[name]).is_file():
            raise FileNotFoundError(f"--{name}: {inputs[name]} is not there.")
    request = _checked(args, inputs, _facts(args))
    _generate_one(_load(args), request, args)
    return 0


def _facts(args: argparse.Namespace) -> CheckpointConfig:
    """What is known of the checkpoint before it is loaded; one that is yet to be downloaded is upstream's."""
    from ..model.checkpoint import needed_sources, read_facts
    from ..model.config import CheckpointConfig

    files = model_files(args.model, args.models_folder, {part: getattr(args, part, None) for part in SMALL_FAMILY})
    config = read_facts(needed_sources(files)["omniavatar"]) or CheckpointConfig(in_dim=33)
    given = {name: getattr(args, name) for name in ("leading_audio_rows", "first_frame") if hasattr(args, name)}
    return replace(config, conventions=replace(config.conventions, **given))


def _checked(args: argparse.Namespace, inputs: Mapping[str, Any], facts: CheckpointConfig) -> TalkRequest:
    """The request of these inputs and the settings, its files read once to find what is wrong with them."""
    from ..generation.inputs import read_inputs
    from ..generation.request import RequestError, TalkRequest

    settings = _given(args, SETTING_FLAGS)
    settings.pop("show_progress", None)
    try:
        request = TalkRequest(**inputs, **settings)
        read_inputs(request, facts.in_dim or 33, facts.conventions)
    except RequestError as error:
        raise ValueError(error.flags()) from error
    return request


def _load(args: argparse.Namespace) -> OmniAvatarPipeline:
    started = time.monotonic()
    with quiet_host(args.debug):
        from ..generation.loading import load_pipeline

        pipe = load_pipeline(args.model, args.models_folder, **_given(args, MODEL_FLAGS))
    if pipe.is_first_process:
        mode = "V2V" if pipe.dit.config.has_masked_video else "I2V"
        dtype = str(pipe.torch_dtype).removeprefix("torch.")
        say(
            f"{args.models_folder or args.model}: {mode}, {dtype} on {pipe.device}, "
            f"loaded in {time.monotonic() - started:.0f} s."
        )
    return pipe


def _generate_one(pipe: OmniAvatarPipeline, request: TalkRequest, args: argparse.Namespace) -> None:
    from ..generation.generate import generate

    out = Path(request.out)
    before = out.stat().st_mtime_ns if out.exists() else None
    try:
        made = generate(pipe, request, show_progress=getattr(args, "show_progress", True))
    except KeyboardInterrupt:
        if out.exists() and out.stat().st_mtime_ns != before:
            raise KeyboardInterrupt(f"{out} has the part that was done and can be played.") from None
        raise KeyboardInterrupt(f"not even the first chunk was done, so {out} was not written.") from None
    if pipe.is_first_process:
        print(
            f"{made.path}: {made.frames} frames of {made.height}x{made.width}, {counted(made.chunks, 'chunk')}, "
            f"{counted(made.steps, 'step')}, {made.seconds:.1f} s"
        )


def _generate_many(args: argparse.Namespace, facts: CheckpointConfig) -> int:
    requests, failed = _read_requests(args, facts)
    total = len(requests) + failed
    if not requests:
        raise ValueError(f"{args.input_file} has no line that can be used.")
    pipe = _load(args)
    for number, request in requests.items():
        try:
            _generate_one(pipe, request, args)
        except (ValueError, OSError) as error:
            if args.debug or getattr(args, "use_usp", False):  # the other processes would not know that it is left out
                raise
            say(f"error: {args.input_file}, line {number}: {error}")
            failed += 1
    if pipe.is_first_process:
        print(f"{total - failed} of {counted(total, 'video')} are in {args.out_folder}.")
    return FAILED if failed else 0


def _read_requests(args: argparse.Namespace, facts: CheckpointConfig) -> tuple[dict[int, TalkRequest], int]:
    """The requests of an input file's good lines by their number, and how many lines are bad; those are reported."""
    samples, faults = read_samples(args.input_file)
    for number, fault in faults.items():
        say(f"error: {args.input_file}, line {number}: {fault}")
    failed = len(faults)
    source = "video" if has_masked_video(facts.in_dim or 33) else "image"
    requests = {}
    for number, sample in samples.items():
        out = Path(args.out_folder) / f"{number:03d}_{sample.audio.stem}.mp4"
        inputs = {"prompt": sample.prompt, source: sample.source, "audio": sample.audio, "out": out}
        try:
            requests[number] = _checked(args, inputs, facts)
        except (ValueError, OSError) as error:
            say(f"error: {args.input_file}, line {number}: {error}")
            failed += 1
    return requests, failed
