"""Memory and seconds of a training step, and which way of computing it is the fastest on a GPU.

Memory follows from sizes (`step_memory`). Seconds follow from measured steps: attention takes its operations at the
measured rate, quadratic in the tokens; the rest of a step grows with the matrix products, linear in the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..model.blocks.memory_plan import KEEPABLE, Kept, plan_kept
from ..model.blocks.step_memory import SPARE, StepMemory, Way, adapted, auto_budget, count_weights, step_memory
from .measured import FRAME_STEP, GIB, SIDE_STEP, Measurement, Size, Table, Task

CONTEXT = 0.75
"""GiB of the GPU that CUDA and its libraries take."""
ATTENTION_BACKWARD = 2.5
"""Operations of attention's backward pass for each of its forward pass: five matrix products for two."""
ALIKE = 1.1
"""Times that differ by less are taken for equal: computed ones are not better."""

WAYS: Mapping[str, Way] = {
    "DiffSynth's blocks": Way(),
    "DiffSynth's blocks, inputs in CPU memory": Way(offload=True),
    "compiled": Way(blocks="compiled"),
    "compiled, inputs in CPU memory": Way(blocks="compiled", offload=True),
    "compiled, weights in CPU memory": Way(blocks="compiled", stream=True),
    "compiled, weights and inputs in CPU memory": Way(blocks="compiled", stream=True, offload=True),
}
"""What is compared, by name; what moves least through CPU memory first."""


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
    """Memory and time of a way of `WAYS` on a GPU of `gpu` GiB, with `--activation_memory auto` where it applies."""
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
    """The fastest that fits a GPU of `gpu` GiB; of equally fast ones a measured one, else the first; None if none."""
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
