"""The flags of the recipe: what a sample is and what of it counts; and which of them go together."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from ..losses.noise_levels import HOST, SAMPLINGS, WEIGHTINGS, LogitNormal, MinSNR
from ..model.config import IMAGE_SIZES


def frame_counts(text: str) -> tuple[int, ...]:
    """ "1,5,9,13" -> (1, 5, 9, 13); "" -> ()."""
    return tuple(int(number) for number in text.split(",") if number)


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
    add("--min_frames", type=int, help="Fewest frames per sample, 4n+1. (default: 4 more than --prefix_frames)")
    add(
        "--fixed_length",
        action="store_true",
        help="Make samples as long as clip and limits allow. (default: random length)",
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
    for name, parse in (("timestep_sampling", LogitNormal.parse), ("loss_weighting", MinSNR.parse)):
        try:
            parse(getattr(args, name))
        except ValueError as error:
            yield f"--{name} {error}"
    if args.timestep_sampling != HOST and (args.min_timestep_boundary, args.max_timestep_boundary) != (0, 1):
        yield "--min_timestep_boundary and --max_timestep_boundary are of the host's table: --timestep_sampling host"
