"""Training steps that were measured: `measured.json`, which `benchmarks/speed.py` and `benchmarks/scaling.py` write."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, NamedTuple

from ..media.timeline import latent_frames
from ..model.blocks.memory_plan import GIB, BlockShape
from ..model.blocks.step_memory import Way
from ..model.config import PRESETS, LoRAConfig, OmniAvatarConfig

IN_DIM = {"i2v": 33, "v2v": 49}
FRAME_STEP, SIDE_STEP = 4, 16


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
    """Bytes that come from CPU memory in a second; None if not measured."""
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
