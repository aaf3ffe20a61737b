"""`omniavatar generate`: one video, or one for each line of a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..generation.samples import read_samples
from ..model.config import has_masked_video
from ..system.messages import counted, no_file
from .console import FAILED, say
from .jobs import Job, checked_job, make_video, talk_job
from .model_flags import SHARED_FLAGS, Flags, add_flags, add_model_flags, facts, flags_of_file, given, load_model

if TYPE_CHECKING:
    from ..model.config import CheckpointConfig

INPUT_FLAGS: Flags = {
    "prompt": (str, "describe the video: the person, what they do, the background"),
    "image": (str, "the portrait; V2V: the reference image (default: the video's first frame)"),
    "video": (
        str,
        "V2V: the video to dub, as `omniavatar dub` does; if it is shorter than the speech, it plays forward, then "
        "backward, in turn",
    ),
    "audio": (str, "the speech: a sound file, or a video with sound"),
    "out": (str, "the file to write: .mp4, .mov or .mkv"),
}
SETTING_FLAGS: Flags = {
    **SHARED_FLAGS,
    "crop_portrait": (
        bool,
        "take of --image the head and shoulders of its largest face, in the shape of the video (default: no)",
    ),
    "aligned": (
        bool,
        "V2V: --video is the face alone, placed as the model was trained, and taken whole; if not, the face is cut out "
        "as for `omniavatar dub` (default: the checkpoint's, else no)",
    ),
    "paste_source": (bool, "V2V, aligned: keep the video's own pixels outside the mouth (default: yes)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar generate`."""
    add_model_flags(parser)
    add_flags(parser, "one video", INPUT_FLAGS)
    many = parser.add_argument_group("many videos")
    many.add_argument(
        "--input_file", help="text file with one video per line: prompt@@image@@audio (V2V: prompt@@video@@audio)"
    )
    many.add_argument("--out_folder", default="outputs", help="folder for the videos (default: outputs)")
    add_flags(parser, "settings", SETTING_FLAGS)
    parser.add_argument("--config", help="YAML or JSON file with values for these flags; the command line overrides it")


def config_flags(args: argparse.Namespace) -> Iterator[str]:
    """The content of the config file as command-line arguments of `generate`."""
    return flags_of_file(args, "generate", {**INPUT_FLAGS, **SETTING_FLAGS}, {"input_file", "out_folder"})


def run(args: argparse.Namespace) -> int:
    """`omniavatar generate`: the exit code is 1 if a line of an input file failed."""
    inputs = given(args, INPUT_FLAGS)
    if args.input_file is not None:
        if inputs:
            raise ValueError(f"--input_file replaces {', '.join(f'--{name}' for name in inputs)}: leave one out.")
        return _generate_many(args, facts(args))
    missing = [f"--{name}" for name in ("prompt", "audio", "out") if name not in inputs]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; or give --input_file with one video per line.")
    for name in ("image", "video", "audio"):
        if name in inputs and not Path(inputs[name]).is_file():
            raise FileNotFoundError(f"--{name}: {no_file(inputs[name])}.")
    job = _checked(args, inputs, facts(args))
    make_video(load_model(args), job, args)
    return 0


def _checked(args: argparse.Namespace, inputs: Mapping[str, Any], known: CheckpointConfig) -> Job:
    """What these inputs and the settings ask for."""
    from ..generation.request import TalkRequest

    settings = given(args, SETTING_FLAGS)
    show_progress = settings.pop("show_progress", True)
    return checked_job(lambda: talk_job(TalkRequest(**inputs, **settings), known, show_progress))


def _generate_many(args: argparse.Namespace, known: CheckpointConfig) -> int:
    jobs, failed = _read_jobs(args, known)
    total = len(jobs) + failed
    if not jobs:
        raise ValueError(f"{args.input_file} has no line that can be used.")
    pipe = load_model(args)
    for number, job in jobs.items():
        try:
            make_video(pipe, job, args)
        except (ValueError, OSError) as error:
            if args.debug or getattr(args, "use_usp", False):  # the other processes would not know that it is left out
                raise
            say(f"error: {args.input_file}, line {number}: {error}")
            failed += 1
    if pipe.is_first_process:
        print(f"{total - failed} of {counted(total, 'video')} are in {args.out_folder}.")
    return FAILED if failed else 0


def _read_jobs(args: argparse.Namespace, known: CheckpointConfig) -> tuple[dict[int, Job], int]:
    """The jobs of an input file's good lines by their number, and how many lines are bad; those are reported."""
    samples, faults = read_samples(args.input_file)
    for number, fault in faults.items():
        say(f"error: {args.input_file}, line {number}: {fault}")
    failed = len(faults)
    source = "video" if has_masked_video(known.in_dim or 33) else "image"
    jobs = {}
    for number, sample in samples.items():
        out = Path(args.out_folder) / f"{number:03d}_{sample.audio.stem}.mp4"
        inputs = {"prompt": sample.prompt, source: sample.source, "audio": sample.audio, "out": out}
        try:
            jobs[number] = _checked(args, inputs, known)
        except (ValueError, OSError) as error:
            say(f"error: {args.input_file}, line {number}: {error}")
            failed += 1
    return jobs, failed
