"""`omniavatar evaluate --nano`: what the small model makes of speech, in figures."""

from __future__ import annotations

import argparse

from ..model.files import NANO_FOLDER
from .batch import Sampling
from .figures import LONG_SECONDS, evaluate_nano


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """The flags that go with `--nano`."""
    default = Sampling()
    add = parser.add_argument
    add("--family", default=NANO_FOLDER, help="folder of a small model (default: the one of this package)")
    add("--clips", type=int, default=64, help="number of held-out clips (default: 64)")
    add("--lively", action="store_true", help="clips with moves that nothing decides, and textures")
    add("--long_seconds", type=float, default=LONG_SECONDS, help="length of the videos of --figures long (default: 20)")
    add(
        "--match_colours",
        action=argparse.BooleanOptionalAction,
        help="bring each chunk to the portrait's colours (default: the checkpoint's)",
    )
    add("--sampler", help="preset of steps, timesteps, guidance and solver, as of `omniavatar generate`")
    add("--steps", type=int, help=f"denoising steps per chunk (default: {default.steps})")
    add("--solver", help=f"euler, or renoise: fresh noise after each step (default: {default.solver})")
    add("--cfg_scale", type=float, help=f"text and audio guidance scale (default: {default.cfg_scale:g})")
    add("--audio_cfg_scale", type=float, help="separate audio guidance scale (default: --cfg_scale)")
    add("--seed", type=int, default=0, help="random seed of clips and noise (default: 0)")
    add(
        "--leading_audio_rows",
        type=int,
        choices=[0, 1],
        help="frames before the sound starts (default: the checkpoint's)",
    )
    add("--batch", type=int, help="clips per batch (default: 32 on a GPU, 2 on a CPU)")


def run(args: argparse.Namespace) -> int:
    """Measure the small model; the exit code is 1 if a goal is missed.

    Raises:
        ValueError: an unknown group of figures, or a setting is out of its range.
    """
    figures = evaluate_nano(
        args.out,
        family=args.family,
        clips=args.clips,
        sampling=Sampling(seed=args.seed).with_given(
            sampler=args.sampler,
            steps=args.steps,
            solver=args.solver,
            cfg_scale=args.cfg_scale,
            audio_cfg_scale=args.audio_cfg_scale,
            match_colours=args.match_colours,
        ),
        groups=args.figures.split(",") if args.figures else None,
        lively=args.lively,
        long_seconds=args.long_seconds,
        seed=args.seed,
        device=args.device,
        leading_audio_rows=args.leading_audio_rows,
        batch=args.batch,
    )
    missed = [figure for figure in figures if figure.ok is False]
    print(f"\n{len(figures) - len(missed)} of {len(figures)} goals are met; the results are in {args.out}.")
    return 1 if missed else 0
