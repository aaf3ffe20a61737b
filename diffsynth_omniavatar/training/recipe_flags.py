"""The flags of the recipe: what a sample is and what of it counts; and which of them go together."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from ..losses.noise_levels import HOST, SAMPLINGS, WEIGHTINGS, LevelWeight, NoiseLevels
from ..model.config import IMAGE_SIZES
from .distill_flags import TRAJECTORIES
from .prefix_errors import FORMS, OFF, PrefixErrors


def frame_counts(text: str) -> tuple[int, ...]:
    """ "1,5,9,13" -> (1, 5, 9, 13); "" -> ()."""
    return tuple(int(number) for number in text.split(",") if number)


WEIGHT = re.compile(r"\d+(\.\d+)?")


def with_weight(text: str) -> tuple[str, float]:
    """TABLE[:WEIGHT] -> table and weight, by default 1. What follows the last colon is one only if it is a number."""
    name, _, last = text.rpartition(":")
    return (name, float(last)) if name and WEIGHT.fullmatch(last) else (text, 1.0)


def curriculum(text: str) -> tuple[tuple[int, int], ...]:
    """ "0:21,1000:81" -> ((0, 21), (1000, 81)); ValueError for another text."""
    parts = [part.split(":") for part in text.split(",") if part]
    if not all(len(part) == 2 and all(number.isdecimal() for number in part) for part in parts):
        raise ValueError(f"is {text!r}, wanted STEP:FRAMES with commas between, like 0:21,1000:81")
    return tuple((int(step), int(frames)) for step, frames in parts)


def add_recipe_flags(group: Any) -> None:
    """All of them."""
    add = group.add_argument
    add(
        "--first_frame",
        choices=["known", "masked"],
        help="V2V: frame 0 is known, or masked like the others. (default: the checkpoint's, else known)",
    )
    add(
        "--prefix_frames",
        type=frame_counts,
        help="Numbers of known frames at the start of a sample, one of which is drawn for each. (default: the "
        "checkpoint's, else 1,5,9,13)",
    )
    add(
        "--leading_audio_rows",
        type=int,
        choices=[0, 1],
        help="Rows of zeros before the audio features. (default: the checkpoint's; 0 from Wan alone)",
    )
    add("--mouth_mask", help="V2V: image of the mouth mask: white is kept. (default: built-in)")
    add(
        "--mouth_weight",
        type=float,
        help="V2V: weight of the loss inside the mouth mask, against 1 outside. (default: 1)",
    )
    add("--text_drop_prob", type=float, default=0.1, help="Probability that a sample has the empty prompt.")
    add("--audio_drop_prob", type=float, default=0.1, help="Probability that a sample has silence as its sound.")
    add("--prefix_drop_prob", type=float, default=0.1, help="Probability that known frames become noise.")
    add(
        "--prefix_errors",
        default=OFF,
        metavar="NAME[:NUMBERS]",
        help=f"I2V: errors in the known frames, against drift of long videos: {FORMS}; bank has the model's own, P is "
        "the probability, 0.5 if it is left out. (default: none)",
    )
    add("--min_frames", type=int, help="Fewest frames per sample, 4n+1. (default: 4 more than --prefix_frames)")
    add(
        "--fixed_length",
        action="store_true",
        help="Make samples as long as clip and limits allow. (default: random length)",
    )
    add(
        "--curriculum_frames",
        default="",
        metavar="STEP:FRAMES,...",
        help="Most frames per sample, 4n+1, from these optimizer steps on, like 0:21,1000:81, within the other limits. "
        "(default: the same in all steps)",
    )
    add(
        "--max_tokens",
        type=int,
        help="Longest sample: frames * height * width / 1024. (default: the checkpoint's, else 30000)",
    )
    add(
        "--image_sizes",
        choices=list(IMAGE_SIZES),
        help="OmniAvatar's set of sizes; each clip takes the nearest in shape. (default: the checkpoint's)",
    )
    add(
        "--batch_size",
        type=int,
        default=1,
        help="Clips per batch, all of one size and length; each has its own noise level.",
    )
    add(
        "--timestep_sampling",
        default=HOST,
        metavar="NAME[:NUMBERS]",
        help=f"How noise levels are drawn: {SAMPLINGS}; a SHIFT above 1 favours noise. (default: host, uniform with "
        "a shift of 5; logit_normal has 0,1 and no shift)",
    )
    add(
        "--loss_weighting",
        default=HOST,
        metavar="NAME[:GAMMA]",
        help=f"Weight of the loss by noise level: {WEIGHTINGS}. (default: host, a bell around 500; GAMMA 5)",
    )


def recipe_faults(args: argparse.Namespace) -> Iterator[str]:
    """Of flags that do not go together, and values that cannot be."""
    named = (
        ("timestep_sampling", NoiseLevels.parse),
        ("loss_weighting", LevelWeight.parse),
        ("curriculum_frames", curriculum),
        ("prefix_errors", PrefixErrors.parse),
    )
    for name, parse in named:
        try:
            parse(getattr(args, name))
        except ValueError as error:
            yield f"--{name} {error}"
    weights = [weight for _, weight in map(with_weight, args.dataset_metadata_path or ())]
    if not all(weights):
        yield f"--dataset_metadata_path {' '.join(args.dataset_metadata_path)}: a weight is 0, wanted more"
    writes = args.task in ("sft:data_process", TRAJECTORIES)
    if writes and {*weights} - {1.0}:
        yield f"weights in --dataset_metadata_path have no meaning with --task {args.task}, which takes each clip once"
    if args.curriculum_frames and (writes or args.trajectories is not None):
        yield "--curriculum_frames has no meaning here: these samples have their whole length"
    if args.prefix_errors != OFF and args.omniavatar_mode == "v2v":
        yield "--prefix_errors is for I2V: in V2V the masked video shows the first known frame without an error"
    if args.prefix_errors != OFF and args.task == "sft:data_process":
        yield "--prefix_errors has no meaning with --task sft:data_process, which trains nothing"
    if args.timestep_sampling != HOST and (args.min_timestep_boundary, args.max_timestep_boundary) != (0, 1):
        yield "--min_timestep_boundary and --max_timestep_boundary are of the host's table: --timestep_sampling host"
