"""The flags that `check` and `precompute` share: which clips there are, and what the model takes of them."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..media.images import load_image
from ..media.timeline import MAX_TOKENS
from ..model.config import IMAGE_SIZES, Conventions
from .clip_faces import FaceMode
from .clips import ClipSettings, ClipSource
from .recipe import Recipe
from .tables import read_clips

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""Number formats that one can train and encode in, by their names."""


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which clips there are and what the model takes of them."""
    parser.add_argument(
        "data", metavar="DATA", help="table of clips (.csv, .json, .jsonl), list of directories, or cache"
    )
    parser.add_argument("--dataset_base_path", help="folder that paths are relative to (default: the folder of DATA)")
    parser.add_argument(
        "--omniavatar_mode",
        choices=["i2v", "v2v"],
        default="i2v",
        help="i2v: portrait to video; v2v: dubbing (default: i2v)",
    )
    parser.add_argument("--use_ref_sequence", action="store_true", help="V2V with a reference sequence: 65 channels")
    parser.add_argument(
        "--first_frame",
        choices=["known", "masked"],
        default="known",
        help="V2V: is frame 0 known or masked? (default: known)",
    )
    parser.add_argument(
        "--portraits",
        action="store_true",
        help="rows without a video are portraits with a speech, for distillation (default: they are faults)",
    )
    faces = parser.add_mutually_exclusive_group()
    faces.add_argument(
        "--align",
        action="store_true",
        help="V2V: cut the face out of ordinary footage, to where a V2V model expects it",
    )
    faces.add_argument(
        "--no_face_check",
        action="store_true",
        help="V2V: take clips whatever they show, as drawn people (default: each needs one aligned face)",
    )
    parser.add_argument(
        "--mouth_mask", type=Path, help="V2V: image of the mouth mask: white is kept (default: built-in)"
    )
    parser.add_argument(
        "--height", type=int, help="height of all samples in pixels, with --width (default: by --image_sizes)"
    )
    parser.add_argument(
        "--width", type=int, help="width of all samples in pixels, with --height (default: by --image_sizes)"
    )
    parser.add_argument(
        "--image_sizes",
        choices=list(IMAGE_SIZES),
        default="720",
        help="OmniAvatar's set of sizes; each clip takes the nearest in shape (default: 720)",
    )
    parser.add_argument(
        "--num_frames", type=int, help="most frames per sample, 4n+1 (default: limited by --max_tokens alone)"
    )
    parser.add_argument(
        "--min_frames",
        type=int,
        help="fewest frames per sample, 4n+1 (default: 4 more than the longest of --prefix_frames)",
    )
    parser.add_argument(
        "--max_tokens",
        type=int,
        default=MAX_TOKENS,
        help=f"longest sample: frames * height * width / 1024 (default: {MAX_TOKENS})",
    )
    parser.add_argument(
        "--prefix_frames",
        default="1,5,9,13",
        help="numbers of known frames at the start of a sample (default: 1,5,9,13)",
    )


def data_of(args: argparse.Namespace) -> tuple[list[ClipSource], ClipSettings, Recipe]:
    """Clips, settings and recipe from the flags of `add_data_arguments`.

    Raises:
        ValueError: a flag does not fit.
    """
    if args.use_ref_sequence and args.omniavatar_mode != "v2v":
        raise ValueError("--use_ref_sequence goes with --omniavatar_mode v2v")
    if args.align and args.omniavatar_mode != "v2v":
        raise ValueError("--align goes with --omniavatar_mode v2v")
    try:
        prefixes = tuple(int(length) for length in args.prefix_frames.split(",") if length)
    except ValueError as error:
        raise ValueError(f"--prefix_frames {args.prefix_frames}: wanted whole numbers, such as 1,5,9,13") from error
    settings = ClipSettings(
        in_dim=33 if args.omniavatar_mode == "i2v" else 65 if args.use_ref_sequence else 49,
        conventions=Conventions(first_frame=args.first_frame, image_sizes=IMAGE_SIZES[args.image_sizes]),
        height=args.height,
        width=args.width,
        mouth_mask=args.mouth_mask,
        faces=_faces(args),
        portraits=args.portraits,
    )
    recipe = Recipe(
        prefix_frames=prefixes, max_tokens=args.max_tokens, num_frames=args.num_frames, min_frames=args.min_frames
    )
    if args.mouth_mask is not None:
        load_image(args.mouth_mask)  # so that a bad one is not found by the first clip
    return read_clips(args.data, args.dataset_base_path), settings, recipe


def _faces(args: argparse.Namespace) -> FaceMode:
    if args.omniavatar_mode == "i2v" or args.no_face_check:
        return "any"
    return "aligned" if args.align else "checked"
