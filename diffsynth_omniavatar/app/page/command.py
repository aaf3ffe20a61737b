"""`omniavatar page`: its flags."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from ...system.output_folder import check_output_folder, reserved
from ..console import say
from ..model_flags import add_model_flags
from .state import UPLOADS, PageApp

PIP = "pip install 'diffsynth-omniavatar[ui]'"
FOLDER = "outputs/page"
LAST_PORT = 65535
MAX_UPLOAD = 500
"""MB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar page`."""
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: 7860)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all (default: 127.0.0.1, this machine)"
    )
    parser.add_argument(
        "--share", action="store_true", help="also open a public address through gradio's servers (default: no)"
    )
    parser.add_argument(
        "--auth", type=user_and_password, metavar="USER:PASSWORD", help="ask for this name and password (default: no)"
    )
    parser.add_argument(
        "--output_path", default=FOLDER, help=f"folder for uploads, videos and training runs (default: {FOLDER})"
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder with clips, caches, checkpoints or evaluations that the page may read and show; can be given "
        "several times (default: only what lies in --output_path)",
    )
    parser.add_argument(
        "--max_upload", type=int, default=MAX_UPLOAD, help=f"largest file that is taken, in MB (default: {MAX_UPLOAD})"
    )
    add_model_flags(parser, default=None)


def user_and_password(text: str) -> tuple[str, str]:
    """USER:PASSWORD in two; the password may have colons."""
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("wanted USER:PASSWORD")
    return user, password


def run(args: argparse.Namespace) -> int:
    """`omniavatar page`."""
    check_output_folder(args.output_path)
    folder = Path(args.output_path).resolve()
    for data in args.data:
        if not Path(data).is_dir():
            raise ValueError(f"--data {data} is no folder")
    if not 1 <= args.port <= LAST_PORT:
        raise ValueError(f"--port is {args.port}, wanted 1 to {LAST_PORT}.")
    if args.max_upload < 1:
        raise ValueError(f"--max_upload is {args.max_upload}, wanted 1 MB or more.")
    if getattr(args, "use_usp", False):
        raise ValueError("--use_usp makes a video by several processes; the page runs in one: leave it out.")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / UPLOADS)
    say("starting the page; that takes some seconds.")
    try:
        from .page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(f"The page needs gradio: {PIP}") from error
    with reserved(folder):
        shutil.rmtree(folder / UPLOADS, ignore_errors=True)  # of an earlier page; jobs have copies
        serve(PageApp.open(args, folder))
    return 0
