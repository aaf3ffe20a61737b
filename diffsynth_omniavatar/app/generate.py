"""`omniavatar generate`: one video, or one for each line of a file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..flag_files import read_flag_file
from ..generation.samples import read_samples
from ..model.config import has_masked_video
from ..model.files import MODELS, SMALL_FAMILY, model_files
from .console import FAILED, quiet_host, say

if TYPE_CHECKING:
    from ..generation.pipeline import OmniAvatarPipeline
    from ..generation.request import TalkRequest
    from ..model.config import CheckpointConfig

Flags = Mapping[str, tuple[Callable[[str], Any], str]]
"""Flag without its dashes -> type and help; `bool` makes a pair --flag and --no-flag."""

MODEL_FLAGS: Flags = {
    "dit": (str, "weights of the Wan transformer: files, or the folder that holds them"),
    "text_encoder": (str, "weights of the text encoder"),
    "vae": (str, "weights of the VAE"),
    "tokenizer": (str, "folder of the tokenizer"),
    "omniavatar": (str, "OmniAvatar checkpoint: a folder or file; one with all weights needs no --dit"),
    "wav2vec2": (str, "folder of the speech encoder"),
    "device": (str, "cuda, cuda:1, cpu, ...; by default the GPU if there is one"),
    "dtype": (str, "bfloat16, float16 or float32; by default bfloat16 on a GPU and float32 on a CPU"),
    "vram_limit": (float, "GiB of GPU memory from which on weights wait in main memory; by default all go to the GPU"),
    "compile": (
        bool,
        "compute the transformer's blocks faster: compiled in the first step (default: no)",
    ),
    "use_usp": (bool, "make each video by all GPUs; start with torchrun --nproc_per_node GPUS (default: no)"),
    "download_source": (str, "modelscope or huggingface, for the files that are downloaded"),
    "leading_audio_rows": (int, "0 or 1: frames before the sound, where the checkpoint does not say it"),
    "first_frame": (str, "V2V, known or masked: the first frame, where the checkpoint does not say it"),
}
INPUT_FLAGS: Flags = {
    "prompt": (str, "what is to be seen: the person, what they do, the background"),
    "image": (str, "the portrait; V2V: the identity image, by default the video's first frame"),
    "video": (str, "V2V: the video whose mouth is changed"),
    "audio": (str, "the speech: a sound file, or a video whose sound is taken"),
    "out": (str, "the file to write: .mp4, .mov or .mkv"),
}
SETTING_FLAGS: Flags = {
    "negative_prompt": (str, "what is not to be seen (default: the checkpoint's, else upstream's text)"),
    "mouth_mask": (str, "V2V: image of the mouth mask, white is kept (default: a built-in one for aligned faces)"),
    "reference_video": (str, "V2V with 65 channels: another clip of the person (default: another part of the video)"),
    "height": (int, "pixels (default: the trained size nearest in shape)"),
    "width": (int, "pixels (default: the trained size nearest in shape)"),
    "max_tokens": (int, "length of a chunk: frames * height * width / 1024 (default: the trained length)"),
    "paste_source": (bool, "V2V: keep the video's own pixels outside the mouth (default: yes)"),
    "overlap": (int, "frames that a chunk takes over from the one before, 1 + 4n (default: 13)"),
    "match_colours": (
        bool,
        "give each chunk the colours of the portrait or source video (default: the checkpoint's, else no)",
    ),
    "silence": (float, "seconds of silence in front (default: 0.3, for V2V 0)"),
    "steps": (int, "denoising steps a chunk, at least 1 (default: the checkpoint's, else 50)"),
    "cfg_scale": (float, "guidance by the text; 1 for none (default: the checkpoint's, else 4.5)"),
    "audio_cfg_scale": (
        float,
        "guidance by the sound: a third pass a step (default: the checkpoint's, else that of the text)",
    ),
    "sigma_shift": (float, "shift of the noise schedule (default: the checkpoint's, else 5.0)"),
    "seed": (int, "chunk k starts from the noise of seed + k (default: 42)"),
    "tiled": (bool, "run the VAE in tiles (default: above 512x512)"),
    "tea_cache_l1_thresh": (
        float,
        "TeaCache: skip steps that change less; upstream's value is 0.14 (default: skip none)",
    ),
    "tea_cache_model_id": (str, "whose TeaCache coefficients (default: the model's own)"),
    "crf": (int, "quality of the H.264 file; 13 to 18 look like the original (default: 15)"),
    "show_progress": (bool, "draw a progress bar (default: yes)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar generate`."""
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="14B",
        help="published size, or a small model of this package: nano animates a portrait, nano-v2v dubs (default: 14B)",
    )
    parser.add_argument(
        "--models_folder",
        help="folder with Wan2.1-T2V-14B/, OmniAvatar-14B/ and wav2vec2-base-960h/, or a small family's; "
        "by default the files are downloaded to models/",
    )
    _add_flags(parser, "parts of the model that lie elsewhere, and how it runs", MODEL_FLAGS)
    _add_flags(parser, "one video", INPUT_FLAGS)
    many = parser.add_argument_group("many videos")
    many.add_argument(
        "--input_file", help="text file with a line prompt@@image@@audio for each video (V2V: prompt@@video@@audio)"
    )
    many.add_argument("--out_folder", default="outputs", help="folder for their videos (default: outputs)")
    _add_flags(parser, "settings", SETTING_FLAGS)
    parser.add_argument("--config", help="YAML or JSON file with any of these flags; the command line goes before it")


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
            raise ValueError(
                f"--input_file stands in place of {', '.join(f'--{name}' for name in inputs)}: leave one out."
            )
        return _generate_many(args, _facts(args))
    missing = [f"--{name}" for name in ("prompt", "audio", "out") if name not in inputs]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing; or give --input_file with a line for each video.")
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
            f"{made.path}: {made.frames} frames of {made.height}x{made.width}, {made.chunks} chunks, "
            f"{made.steps} steps, {made.seconds:.1f} s"
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
        print(f"{total - failed} of {total} videos are in {args.out_folder}.")
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
