"""The GPU memory of a training step: computed for `--dry_run`, read by stage for `--vram_report`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..model.blocks.memory_plan import GIB, KEEPABLE, BlockShape, Kept, plan_kept
from ..model.blocks.runner import BlockRunner
from ..model.blocks.step_memory import count_weights, option_changes, step_memory
from ..model.config import LoRAConfig, OmniAvatarConfig
from ..model.quantize import is_quantized
from .settings import StepSettings

logger = logging.getLogger(__name__)

ENCODING, FORWARD, BACKWARD = "encoding", "forward", "backward and optimizer"


@dataclass(frozen=True)
class Reading:
    """Bytes at the end of a stage."""

    allocated: int
    peak: int
    """The most since the stage began."""


def report_lines(weights: Mapping[str, int], readings: Mapping[str, Reading], changes: Mapping[str, int]) -> list[str]:
    """The report.

    Args:
        weights: bytes of each network on the device.
        readings: of each stage of a step behind the first, in their order.
        changes: bytes that flags would add to the peak.
    """
    between = readings[BACKWARD].allocated - sum(weights.values())
    activations = readings[FORWARD].allocated - readings[ENCODING].allocated
    rows = [(f"weights of {name}", size) for name, size in weights.items()]
    rows += [("optimizer and buffers", between), ("activations after forward", activations)]
    rows += [(f"peak of {name}", reading.peak) for name, reading in readings.items()]
    lines = [f"memory: {name:<54}{size / GIB:8.2f} GiB" for name, size in rows]
    return lines + [f"memory, computed: {flag:<44}{size / GIB:+8.2f} GiB" for flag, size in changes.items()]


def kept_in_step(
    settings: StepSettings, shape: BlockShape, layers: int, runner: BlockRunner | None
) -> tuple[Kept, ...] | None:
    """What the blocks keep for the backward pass beside their inputs; None if it is not known: the host's blocks
    without checkpointing, or "auto" before the first step.
    """
    recompute = settings.use_gradient_checkpointing or settings.use_gradient_checkpointing_offload
    if runner is None:
        return () if recompute else None
    if settings.activation_memory is None:
        return () if recompute else (frozenset(KEEPABLE),) * layers
    if settings.activation_memory != "auto":
        return plan_kept(shape, layers, int(settings.activation_memory * GIB))
    return runner.plans.get(shape)


def predicted_rows(
    config: OmniAvatarConfig,
    lora: LoRAConfig | None,
    settings: StepSettings,
    shape: BlockShape,
    runner: BlockRunner | None,
    *,
    fp32_master_weights: bool,
) -> list[tuple[str, str]]:
    """What a step takes, computed from sizes: names and values."""
    weights = count_weights(config, lora, element_size=shape.element_size, fp32_master_weights=fp32_master_weights)
    kept = kept_in_step(settings, shape, weights.layers, runner)
    memory = step_memory(weights, shape, settings.way, kept or ())
    rows = {
        "denoiser": memory.weights,
        "AdamW": memory.optimizer,
        "gradients": memory.gradients,
        "blocks' inputs": memory.inputs,
        "backward of a block": memory.backward,
    }
    lines = [(name, size_text(size)) for name, size in rows.items()]
    if kept is not None:
        peak = f"{size_text(memory.peak)}, computed, with cached inputs and without losses on frames"
        return [*lines, ("kept beside inputs", size_text(memory.kept)), ("peak", peak)]
    if runner is None:
        return [*lines, ("kept beside inputs", "not known without --use_gradient_checkpointing: much more")]
    return [*lines, ("kept beside inputs", f"what is free beyond {size_text(memory.peak)}")]


@dataclass
class MemoryReport:
    """Reads the memory of the stages of a training step on the CUDA device; prints itself once, after the third step.

    Args:
        pipe: the pipeline that trains.
        lora: that of its denoiser.
        settings: how a step computes.

    Raises:
        ValueError: there is no CUDA device.
    """

    pipe: Any
    lora: LoRAConfig | None
    settings: StepSettings
    readings: dict[str, Reading] = field(default_factory=dict)
    steps: int = -1

    STEP = 3

    def __post_init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError("--vram_report needs a CUDA device; leave it out.")

    def end_of(self, stage: str, latents: torch.Tensor | None = None) -> None:
        """Read what the stage that ends took; `latents` [B, 16, T, h, w] are those of the sample."""
        self.readings[stage] = Reading(torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        if latents is not None:
            config, (batch, _, *size) = self.pipe.dit.config, latents.shape
            tokens = math.prod(n // patch for n, patch in zip(size, config.patch_size, strict=True))
            self.shape = BlockShape.of(config, batch=batch, tokens=tokens, element_size=latents.element_size())
        if stage == BACKWARD:
            self.steps += 1
            if self.steps == self.STEP:
                for line in self.lines():
                    logger.info("%s", line)

    def lines(self) -> Sequence[str]:
        """The report of the step that is over."""
        dit = self.pipe.dit
        weights = {name: on_device(part) for name, part in self.pipe.named_children()}
        kept = kept_in_step(self.settings, self.shape, len(dit.blocks), dit.runner)
        changes = {}
        if kept is not None and not is_quantized(dit):
            changes = option_changes(dit.config, self.lora, self.shape, self.settings.way, kept)
        order = {stage: self.readings[stage] for stage in (ENCODING, FORWARD, BACKWARD)}
        return report_lines({name: size for name, size in weights.items() if size}, order, changes)


def size_text(size: int) -> str:
    """Bytes in GiB, or in MiB where there is less than 0.1 GiB."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def on_device(module: torch.nn.Module) -> int:
    """Bytes of a module's weights that are on a CUDA device."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.is_cuda)
