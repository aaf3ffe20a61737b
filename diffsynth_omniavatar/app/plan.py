"""`omniavatar plan`: which flags train fastest on a GPU, in how much memory, and how long a step takes.

    omniavatar plan --model 14B --gpu 24GiB --size 512x512x81

Memory follows from sizes (`memory_plan`). Seconds follow from `measured.json`, steps that `benchmarks/speed.py` and
`benchmarks/scaling.py` measured: attention takes its operations at the measured rate, quadratic in the tokens; the
rest of a measured step grows with the matrix products, linear in the tokens. Imports no torch.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, NamedTuple

from ..media.timeline import latent_frames
from ..model.blocks.memory_plan import (
    KEEPABLE,
    SPARE,
    BlockShape,
    Kept,
    StepMemory,
    Way,
    adapted,
    auto_budget,
    count_weights,
    describe,
    plan_kept,
    step_memory,
)
from ..model.config import PRESETS, LoRAConfig, OmniAvatarConfig

GIB = 2**30
CONTEXT = 0.75
"""GiB of the GPU that CUDA and its libraries take."""
IN_DIM = {"i2v": 33, "v2v": 49}
ATTENTION_BACKWARD = 2.5
"""Operations of attention's backward pass for each of its forward pass: five matrix products for two."""
FRAME_STEP, SIDE_STEP = 4, 16
ALIKE = 1.1
"""Times that differ by less are taken for equal: computed ones are not better."""

WAYS: Mapping[str, Way] = {
    "DiffSynth's blocks": Way(),
    "DiffSynth's blocks, inputs in main memory": Way(offload=True),
    "compiled": Way(blocks="compiled"),
    "compiled, inputs in main memory": Way(blocks="compiled", offload=True),
    "compiled, weights in main memory": Way(blocks="compiled", stream=True),
    "compiled, weights and inputs in main memory": Way(blocks="compiled", stream=True, offload=True),
}
"""What is compared, by name; what moves least through main memory first."""


class Size(NamedTuple):
    """Of a clip in pixels and frames."""

    height: int
    width: int
    frames: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.height}x{self.width}"

    @property
    def tokens(self) -> int:
        """Tokens of the transformer."""
        return latent_frames(self.frames) * (self.height // SIDE_STEP) * (self.width // SIDE_STEP)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: a published size with LoRA, on cached clips of one size, in bf16."""

    model: str
    size: Size
    mode: str = "i2v"
    lora_rank: int = 128
    batch: int = 1

    @property
    def config(self) -> OmniAvatarConfig:
        """The model's sizes."""
        return replace(PRESETS[self.model], in_dim=IN_DIM[self.mode])

    @property
    def lora(self) -> LoRAConfig:
        """Of the authors' layers."""
        return LoRAConfig(rank=self.lora_rank, alpha=self.lora_rank / 2)

    @property
    def shape(self) -> BlockShape:
        """A block's work."""
        return BlockShape.of(self.config, batch=self.batch, tokens=self.size.tokens, element_size=2)


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A training step of LoRA rank 128 and batch 1 that was measured."""

    task: Task
    way: Way
    kept: Mapping[str, int]
    """How many blocks keep what beside their input."""
    limit: float | None
    """GiB that the step could have, where that decided what is kept."""
    seconds: float
    peak: float | None
    """GiB; None if it is not known."""

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Measurement:
        """From a row of the table."""
        return cls(
            task=Task(model=row["model"], size=Size(row["height"], row["width"], row["frames"])),
            way=Way(blocks=row["blocks"], offload=row.get("offload", False), stream=row.get("stream", False)),
            kept=row.get("kept", {}),
            limit=row.get("limit_gib"),
            seconds=row["seconds"],
            peak=row.get("peak_gib"),
        )


@dataclass(frozen=True, kw_only=True)
class Table:
    """What was measured on one GPU."""

    gpu: str
    torch: str
    date: str
    attention_rate: float
    """Operations of attention in a second, forward and backward."""
    copy_rate: float | None
    """Bytes that come from main memory in a second; None if not measured."""
    steps: Sequence[Measurement]

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Table:
        """From the content of `measured.json`."""
        copies = content.get("copy_gib_per_second")
        return cls(
            gpu=content["gpu"],
            torch=content["torch"],
            date=content["date"],
            attention_rate=content["attention_tflops"] * 1e12,
            copy_rate=None if copies is None else copies * GIB,
            steps=[Measurement.read(row) for row in content["steps"]],
        )


@functools.cache
def measured_table() -> Table:
    """The table of this package."""
    return Table.read(json.loads(resources.files(__package__).joinpath("measured.json").read_text(encoding="utf-8")))


# -------------------------------------------------------------------------------------------------------------- seconds


class Operations(NamedTuple):
    """Floating-point operations of a training step."""

    attention: float
    products: float
    """Matrix products with weights."""


def operations(task: Task, way: Way, kept: Mapping[str, int]) -> Operations:
    """Those of forward and backward pass, with what is computed again; `kept` blocks keep each of `KEEPABLE`."""
    shape, config = task.shape, task.config
    layers, saved = config.num_layers, shape.operations_of
    again = {name: (layers - kept.get(name, 0)) * saved[name] for name in KEEPABLE}
    attention = layers * saved["attention"] * (1 + ATTENTION_BACKWARD) + again["attention"]
    forward = layers * (saved["middle"] + saved["qkv"] + 2 * saved["ffn"])
    recomputed = again["middle"] + again["qkv"] + again["ffn"]
    if way.blocks == "host":
        recomputed += layers * saved["ffn"]  # also the last projection, whose result no gradient needs
    thin = 2 * shape.batch * shape.tokens * layers * task.lora_rank * sum(map(sum, adapted(config, task.lora).values()))
    return Operations(attention, 2 * forward + recomputed + 5 * thin)  # LoRA: twice forward, thrice as much backward


def count_kept(plan: Sequence[Kept]) -> dict[str, int]:
    """How many blocks keep what."""
    return {name: sum(name in kept for kept in plan) for name in KEEPABLE}


def seconds_of(task: Task, way: Way, kept: Mapping[str, int], table: Table) -> float | None:
    """Seconds of a step on the table's GPU, from the measured one that is most alike; None if there is none."""
    rows = [row for row in table.steps if row.task.model == task.model and row.way.blocks == way.blocks]
    if not rows:
        return None
    mine = operations(task, way, kept)

    def unlikeness(row: Measurement) -> tuple[Any, ...]:
        other = operations(row.task, row.way, row.kept)
        return (
            (row.way.stream != way.stream) + (row.way.offload != way.offload),
            abs(math.log(task.shape.tokens / row.task.shape.tokens)),
            abs(math.log(mine.products / other.products)),
        )

    row = min(rows, key=unlikeness)
    other = operations(row.task, row.way, row.kept)
    rest = row.seconds - other.attention / table.attention_rate
    computing = mine.attention / table.attention_rate + rest * mine.products / other.products
    if table.copy_rate is None:
        return computing
    weights = count_weights(task.config, task.lora)
    copied = 2 * (weights.blocks if way.stream else 0) + 2 * (
        weights.layers * task.shape.input_bytes if way.offload else 0
    )
    return max(computing, copied / table.copy_rate)


# ----------------------------------------------------------------------------------------------------------- prediction


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a way takes on a GPU."""

    name: str
    way: Way
    kept: tuple[Kept, ...]
    memory: StepMemory
    peak: float
    """GiB."""
    peak_measured: bool
    seconds: float | None
    seconds_measured: bool
    need: float
    """GiB that the GPU must have; where it has more, more is kept."""

    @property
    def flags(self) -> str:
        """Those of the launcher."""
        parts = []
        if self.way.blocks == "host":
            parts.append("--use_gradient_checkpointing")
        if self.way.blocks == "compiled":
            parts.append("--compile")
        if self.way.blocks != "host":
            parts.append("--activation_memory auto")
        if self.way.stream:
            parts.append("--stream_weights")
        if self.way.offload:
            parts.append("--use_gradient_checkpointing_offload")
        return " ".join(parts)


def predict(name: str, task: Task, gpu: float, table: Table) -> Prediction:
    """What a way of `WAYS` takes on a GPU of so many GiB, with `--activation_memory auto` where it applies."""
    way, shape = WAYS[name], task.shape
    weights = count_weights(task.config, task.lora)
    plan: tuple[Kept, ...] = (frozenset(),) * weights.layers
    least = memory = step_memory(weights, shape, way)
    if way.blocks != "host":
        free = int((gpu - CONTEXT) * GIB) - least.weights
        budget = auto_budget(shape, weights.layers, weights.optimizer, free=free, offload=way.offload)
        plan = plan_kept(shape, weights.layers, budget)
        memory = step_memory(weights, shape, way, plan)
    row = _same(task, way, gpu, table)
    seconds = seconds_of(task, way, count_kept(plan), table) if row is None else row.seconds
    measured_peak = None if row is None else row.peak
    peak = memory.peak / GIB if measured_peak is None else measured_peak
    return Prediction(
        name=name,
        way=way,
        kept=plan,
        memory=memory,
        peak=peak,
        peak_measured=measured_peak is not None,
        seconds=seconds,
        seconds_measured=row is not None,
        need=(peak if way.blocks == "host" else least.peak / GIB) / (1 - SPARE) + CONTEXT,
    )


def _same(task: Task, way: Way, gpu: float, table: Table) -> Measurement | None:
    """The measurement of this very step, if there is one; where memory decides what is kept, on so much of it."""
    plain = replace(task, mode="i2v")  # a step of V2V is as long and large
    for row in table.steps:
        if row.task == plain and row.way == way and (way.blocks == "host" or row.limit == gpu):
            return row
    return None


def fastest(predictions: Sequence[Prediction], gpu: float) -> Prediction | None:
    """The fastest that fits a GPU of so many GiB; of equally fast ones a measured one, else the first; None if none."""
    fitting = [one for one in predictions if one.need <= gpu]
    best = min((one.seconds for one in fitting if one.seconds is not None), default=math.inf)
    good = [one for one in fitting if one.seconds is not None and one.seconds <= ALIKE * best]
    return min(good or fitting, key=lambda one: not one.seconds_measured, default=None)


def predict_all(task: Task, gpu: float, table: Table) -> list[Prediction]:
    """All `WAYS`."""
    return [predict(name, task, gpu, table) for name in WAYS]


def help_for(task: Task, gpu: float, table: Table) -> list[str]:
    """What to change where nothing fits: fewer frames, smaller pictures, a lower rank."""

    def fits(**changes: Any) -> bool:
        return fastest(predict_all(replace(task, **changes), gpu, table), gpu) is not None

    height, width, frames = task.size
    advice = []
    shorter = (Size(height, width, count) for count in range(frames - FRAME_STEP, FRAME_STEP, -FRAME_STEP))
    if (size := next((size for size in shorter if fits(size=size)), None)) is not None:
        advice.append(f"fewer frames: {size.frames} of {height}x{width} fit")
    smaller = (_scaled(task.size, side) for side in range(min(height, width) - SIDE_STEP, 0, -SIDE_STEP))
    if (size := next((size for size in smaller if fits(size=size)), None)) is not None:
        advice.append(f"smaller pictures: {frames} frames of {size.height}x{size.width} fit")
    ranks = (task.lora_rank >> halvings for halvings in range(1, task.lora_rank.bit_length()))
    if (rank := next((rank for rank in ranks if fits(lora_rank=rank)), None)) is not None:
        advice.append(f"--lora_rank {rank} fits")
    if task.batch > 1:
        advice.append("--batch_size 1 with --gradient_accumulation_steps")
    return advice or ["a GPU with more memory: no length, size or rank fits this one"]


def _scaled(size: Size, side: int) -> Size:
    """A size of about the same shape whose shorter side has so many pixels."""
    factor = side / min(size.height, size.width)
    height, width = (max(SIDE_STEP, int(n * factor) // SIDE_STEP * SIDE_STEP) for n in (size.height, size.width))
    return Size(height, width, size.frames)


# ---------------------------------------------------------------------------------------------------------- the command


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
        if best.way.blocks != "host":
            lines.append(f"It keeps {describe(best.kept)} beside their inputs.")
        if best.way.stream:
            blocks = count_weights(task.config, task.lora).blocks / GIB
            lines.append(f"{blocks:.1f} GiB of weights wait in main memory.")
    lines.append(
        f"Seconds are of an {table.gpu}, torch {table.torch}, {table.date}. A GPU needs {SPARE:.0%} more than the peak "
        f"and {CONTEXT} GiB for CUDA."
    )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar plan`."""
    parser.add_argument("--model", choices=list(PRESETS), default="14B", help="published size (default: 14B)")
    parser.add_argument("--gpu", required=True, help="memory of the GPU in GiB, like 24GiB")
    parser.add_argument("--size", default="512x512x81", help="of a clip: height x width x frames (default: 512x512x81)")
    parser.add_argument("--omniavatar_mode", choices=list(IN_DIM), default="i2v", help="(default: i2v)")
    parser.add_argument("--lora_rank", type=int, default=128, help="(default: 128)")
    parser.add_argument("--batch_size", type=int, default=1, help="clips in a step (default: 1)")


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
