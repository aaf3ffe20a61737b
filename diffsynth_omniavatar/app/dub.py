"""`omniavatar dub`: any video, with somebody in it saying something else."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..system.messages import no_file
from .jobs import checked_job, dub_job, make_video
from .model_flags import SHARED_FLAGS, Flags, add_flags, add_model_flags, facts, flags_of_file, given, load_model

DUB_FLAGS: Flags = {
    "out": (str, "the file to write: .mp4, .mov or .mkv"),
    "prompt": (str, "describe the video (default: A person speaks to the camera.)"),
    "extend": (
        str,
        "if the speech is longer than the video: loop plays it backward, then forward, in turn; hold shows the last "
        "picture; stop ends with the video (default: loop)",
    ),
    "keep_audio": (
        str,
        "the video's own sound: no, a loudness like -20dB to mix it under, or gaps to keep sound and pictures wherever "
        "the new speech has no voice (default: no)",
    ),
    "detections": (str, "file with faces, instead of looking for them: docs/faces.md"),
    "debug_video": (str, "also write a video that shows the faces, the mask, and why frames were left as they are"),
}
LIST_FLAGS: Flags = {
    "audio": (str, "the speech: a sound file, or a video with sound; once for each --face"),
    "face": (
        str,
        "whose mouth is changed: largest, left, right, speaking, or a number as the log gives it; again, with another "
        "--audio, for several (default: largest)",
    ),
}
"""Flags that can be given several times."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar dub`."""
    parser.add_argument("video", metavar="VIDEO", help="the video, of any size, frame rate and codec")
    several = parser.add_argument_group("who says what")
    for name, (kind, text) in LIST_FLAGS.items():
        several.add_argument(f"--{name}", action="append", type=kind, default=argparse.SUPPRESS, help=text)
    add_flags(parser, "the dubbed video", DUB_FLAGS)
    add_model_flags(parser)
    add_flags(parser, "settings", SHARED_FLAGS)
    parser.add_argument("--config", help="YAML or JSON file with values for these flags; the command line overrides it")


def config_flags(args: argparse.Namespace) -> Iterator[str]:
    """The content of the config file as command-line arguments of `dub`."""
    return flags_of_file(args, "dub", {**LIST_FLAGS, **DUB_FLAGS, **SHARED_FLAGS}, set())


def run(args: argparse.Namespace) -> int:
    """`omniavatar dub`."""
    from ..generation.dub_request import DubRequest

    asked = given(args, {**LIST_FLAGS, **DUB_FLAGS, **SHARED_FLAGS})
    show_progress = asked.pop("show_progress", True)
    missing = [f"--{name}" for name in ("audio", "out") if name not in asked]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing.")
    if not Path(args.video).is_file():
        raise FileNotFoundError(f"{no_file(args.video)}.")
    job = checked_job(lambda: dub_job(DubRequest(video=args.video, **asked), facts(args), show_progress))
    make_video(load_model(args), job, args)
    return 0
