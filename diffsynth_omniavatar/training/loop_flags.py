"""The flags of the loop: their help, and which of them go together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

from .distill_flags import distills
from .optimizers import OPTIMIZERS


def add_loop_flags(group: Any) -> None:
    """All of them."""
    add = group.add_argument
    add("--max_steps", type=int, help="Total optimizer steps. (default: --num_epochs passes over the data)")
    add("--warmup_steps", type=int, default=0, help="Optimizer steps in which the learning rate rises linearly.")
    add(
        "--lr_schedule",
        choices=["constant", "cosine", "linear"],
        default="constant",
        help="Learning rate after the warm-up; cosine and linear fall to zero at the last step.",
    )
    add(
        "--max_grad_norm", type=float, default=math.inf, help="Clip the L2 norm of the gradient. (default: no clipping)"
    )
    add("--fp32_master_weights", action="store_true", help="Let AdamW update float32 copies of the trained weights.")
    add(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adamw",
        help="Optimizer: adamw8bit needs the package bitsandbytes, lion and prodigy pytorch-optimizer (the extra "
        "optimizers); prodigy multiplies --learning_rate, to be 1, with a rate that it finds.",
    )
    add(
        "--ema_decay",
        type=float,
        default=0.0,
        help="Decay, per optimizer step, of an average of the trained weights, which model.safetensors then holds and "
        "validations use; 0 for none. (default: 0; 0.99 with --task distill, per update of the student)",
    )
    add("--seed", type=int, default=0, help="Seed of the order of clips and all random choices.")
    add(
        "--resume",
        help="Checkpoint folder to go on from; latest: the newest in --output_path; auto: the newest, or from the "
        "start if there is none. (default: from the start)",
    )
    add("--checkpoints_total_limit", type=int, help="Keep only this many of the newest step-N. (default: all)")
    add("--strict_data", action="store_true", help="Stop at a faulty clip instead of leaving it out.")
    add("--log_steps", type=int, default=1, help="Optimizer steps between lines on the console.")
    add(
        "--log_noise_levels",
        type=int,
        metavar="N",
        help="Log the mean error of the samples in each of N equal parts of the timesteps apart. (default: no)",
    )
    add("--log_samples", action="store_true", help="Write samples.csv: each sample of each step, with its loss.")
    add("--config", help="YAML or JSON file with values for these flags; the command line overrides it.")
    add(
        "--profile",
        nargs="?",
        type=int,
        const=3,
        metavar="STEPS",
        help="Write a trace of so many steps (3), after the first 2, and a table of operators into profile/ of "
        "--output_path. (default: no)",
    )
    add("--vram_report", action="store_true", help="Print the GPU memory of each stage after the third step.")
    add("--dry_run", action="store_true", help="Print samples, steps, trained parameters and memory, and end.")
    add("--debug", action="store_true", help="Show where an error comes from.")


def loop_faults(args: argparse.Namespace) -> Iterator[str]:
    """Of flags that do not go together, and values out of their range."""
    if args.optimizer != "adamw":
        others = ("customized_optimizer", "enable_model_cpu_offload")
        for flag in (name for name in others if getattr(args, name, None)):
            yield f"--optimizer {args.optimizer} does not go with --{flag}: leave one out"
    if args.optimizer == "prodigy" and args.learning_rate < 0.01:
        yield f"--optimizer prodigy multiplies --learning_rate, here {args.learning_rate:g}: give --learning_rate 1"
    if args.optimizer == "prodigy" and args.lr_audio is not None:
        yield "--optimizer prodigy has one rate for all: leave --lr_audio out"
    if distills(args):
        return
    if not 0 <= args.ema_decay < 1:
        yield f"--ema_decay is {args.ema_decay}, wanted 0 up to, but not, 1"
    if args.ema_decay and getattr(args, "enable_model_cpu_offload", False):
        yield "--ema_decay does not go with --enable_model_cpu_offload: leave one out"
