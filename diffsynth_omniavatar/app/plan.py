"""`omniavatar plan`: which flags train fastest on a GPU, in how much memory, and how long a step takes.

    omniavatar plan --model 14B --gpu 24GiB --size 512x512x81

Imports no torch.
"""

from __future__ import annotations

import argparse
import re

from ..model.blocks.memory_plan import describe
from ..model.blocks.step_memory import SPARE, count_weights
from ..model.config import PRESETS
from .measured import GIB, IN_DIM, SIDE_STEP, Size, Table, Task, measured_table
from .prediction import ALIKE, CONTEXT, fastest, help_for, predict_all


def parse_size(text: str) -> Size:
    """ "512x512x81" -> height, width, frames.

    Raises:
        ValueError: another form, or numbers that the model cannot take.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None:
        raise ValueError(f"--size is {text!r}, wanted height x width x frames, like 512x512x81.")
    size = Size(*map(int, match.groups()))
    for name, side in (("height", size.height), ("width", size.width)):
        if side < SIDE_STEP or side % SIDE_STEP:
            lower = max(SIDE_STEP, side // SIDE_STEP * SIDE_STEP)
            raise ValueError(
                f"--size {text}: {name} {side} is no multiple of {SIDE_STEP}; take {lower} or {lower + SIDE_STEP}."
            )
    if size.frames < 5 or size.frames % 4 != 1:
        lower = max(5, (size.frames - 1) // 4 * 4 + 1)
        raise ValueError(f"--size {text}: {size.frames} frames, wanted 4n + 1 of them; take {lower} or {lower + 4}.")
    return size


def parse_gpu(text: str) -> float:
    """ "24GiB" -> 24.0.

    Raises:
        ValueError: another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:GiB)?", text)
    if match is None or float(match.group(1)) <= CONTEXT:
        raise ValueError(f"--gpu is {text!r}, wanted the GPU's memory in GiB, like 24GiB.")
    return float(match.group(1))


def report(task: Task, gpu: float, table: Table) -> str:
    """What the command prints."""
    predictions = predict_all(task, gpu, table)
    best = fastest(predictions, gpu)
    lines = [
        f"{task.model} {task.mode}, LoRA of rank {task.lora_rank}, batch {task.batch}, {task.size} "
        f"({task.size.tokens:,} tokens), cached inputs, bf16; a GPU of {gpu:g} GiB",
        "",
        f"{'way':<46}{'peak GiB':>10} {'':<10}{'s / step':>9}",
    ]
    for one in predictions:
        seconds = "?" if one.seconds is None else f"{one.seconds:.2f}"
        marks = ["measured" if known else "computed" for known in (one.peak_measured, one.seconds_measured)]
        marks[1] = "not measured" if one.seconds is None else marks[1]
        fits = "" if one.need <= gpu else f"  needs {one.need:.1f} GiB"
        lines.append(f"{one.name:<46}{one.peak:>10.1f} {marks[0]:<10}{seconds:>9} {marks[1]}{fits}")
    lines.append("")
    if best is None:
        least = min(predictions, key=lambda one: one.need)
        lines.append(
            f"Nothing fits: {least.name} needs {least.need:.1f} GiB, {least.need - gpu:.1f} more than there are. "
            f"What helps: {'; '.join(help_for(task, gpu, table))}."
        )
    else:
        lines.append(f"Use: {best.flags}")
        if any(one.seconds < best.seconds for one in predictions if one.need <= gpu and one.seconds and best.seconds):
            lines.append(
                f"Times within {ALIKE - 1:.0%} of the fastest count as equal, because computed times are not exact. Of "
                "these ways, a measured one is chosen first, then the one that copies least to CPU memory."
            )
        if best.way.blocks != "host":
            lines.append(f"Kept for the backward pass, beside the blocks' inputs: {describe(best.kept)}.")
        if best.way.stream:
            blocks = count_weights(task.config, task.lora).blocks / GIB
            lines.append(f"{blocks:.1f} GiB of weights are offloaded to CPU memory.")
    lines.append(
        f"Times are for an {table.gpu}, torch {table.torch}, {table.date}. A GPU needs "
        f"{SPARE:.0%} more memory than the peak, "
        f"and {CONTEXT} GiB for CUDA."
    )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar plan`."""
    parser.add_argument("--model", choices=list(PRESETS), default="14B", help="released model (default: 14B)")
    parser.add_argument("--gpu", required=True, help="memory of the GPU in GiB, like 24GiB")
    parser.add_argument(
        "--size", default="512x512x81", help="size of a clip: height x width x frames (default: 512x512x81)"
    )
    parser.add_argument(
        "--omniavatar_mode",
        choices=list(IN_DIM),
        default="i2v",
        help="i2v: portrait to video; v2v: dubbing (default: i2v)",
    )
    parser.add_argument("--lora_rank", type=int, default=128, help="rank of the LoRA (default: 128)")
    parser.add_argument("--batch_size", type=int, default=1, help="clips per step (default: 1)")


def run(args: argparse.Namespace) -> int:
    """`omniavatar plan`: the exit code is 1 if nothing fits."""
    gpu, table = parse_gpu(args.gpu), measured_table()
    if args.batch_size < 1:
        raise ValueError(f"--batch_size is {args.batch_size}, wanted at least 1.")
    task = Task(
        model=args.model,
        size=parse_size(args.size),
        mode=args.omniavatar_mode,
        lora_rank=args.lora_rank,
        batch=args.batch_size,
    )
    print(report(task, gpu, table))
    return 0 if fastest(predict_all(task, gpu, table), gpu) is not None else 1
