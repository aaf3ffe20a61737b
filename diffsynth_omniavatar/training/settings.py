"""How a training run goes and how a step computes: plain values, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..model.blocks.quantized import Method
from ..model.blocks.step_memory import Way


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How the loop runs.

    Raises:
        ValueError: a value is out of its range.
    """

    max_steps: int
    """Optimizer steps of the whole run, those before a resumption included. See `steps_in_epochs`."""
    seed: int = 0
    """Fixes the order of samples, their random draws, the random stream of every process, and a fresh LoRA."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows the warm-up; cosine and linear reach zero at max_steps."""
    warmup_steps: int = 0
    """Over these first steps the learning rate rises linearly, the last of them is at full rate."""
    max_grad_norm: float = math.inf
    """Gradients with a larger L2 norm are scaled down to it."""
    gradient_accumulation_steps: int = 1
    """Samples of each process in an optimizer step."""
    fp32_master_weights: bool = False
    """AdamW keeps the trained weights and its state in float32; the model computes with them rounded to its format."""
    optimizer: str = "adamw"
    """One of `optimizers.OPTIMIZERS`, in the place of the host's."""
    ema_decay: float = 0.0
    """Decay, per optimizer step, of the average of the trained weights that is exported and validated; 0 for none."""
    resume: Path | None = None
    """Checkpoint folder to go on from. Rates and schedules are then those given now, not those of the checkpoint."""

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.gradient_accumulation_steps < 1:
            raise ValueError(
                f"max_steps {self.max_steps} and gradient_accumulation_steps {self.gradient_accumulation_steps} "
                "must be at least 1"
            )
        if not 0 <= self.warmup_steps <= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must lie in 0..max_steps = 0..{self.max_steps}")
        if self.lr_schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"lr_schedule {self.lr_schedule!r} must be constant, cosine or linear")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} must be 0 up to, but not, 1")
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm {self.max_grad_norm} must be positive; leave it out for no clipping")

    def lr_factor(self, step: int) -> float:
        """The learning rate of step number `step` (from 0) over the base learning rate."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / (self.max_steps - self.warmup_steps)
        return 1.0 - progress if self.lr_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def steps_in_epochs(epochs: int, samples: int, processes: int, gradient_accumulation_steps: int) -> int:
    """The optimizer steps in `epochs` passes over `samples` samples: the max_steps of a run that is given in epochs."""
    return max(1, epochs * samples // (processes * gradient_accumulation_steps))


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """How a training step computes."""

    lr_audio: float | None = None
    """Learning rate of the audio modules; None for that of all others."""
    mouth_weight: float | None = None
    """V2V: weight of the squared error inside the mouth mask, 1 outside; the mean stays a weighted mean."""
    use_gradient_checkpointing: bool = True
    use_gradient_checkpointing_offload: bool = False
    """Let the blocks' inputs wait for the backward pass in CPU memory."""
    activation_memory: float | Literal["auto"] | None = None
    """GiB for results of the blocks that are kept for the backward pass beside the blocks' inputs, or "auto"; see
    `blocks.BlockRunner`. Needs LoRA. None recomputes all or nothing, as gradient checkpointing says."""
    compile: bool = False
    """Compile the pieces of a block."""
    stream_weights: bool = False
    """Offload the blocks' frozen weights to CPU memory, and load each block just before it is used. Needs LoRA."""
    quantize: Method | None = None
    """Hold the blocks' frozen layers in 8 bits, see `model.quantize`. Needs LoRA."""
    keep_bf16: str = ""
    """With `quantize`: layers that stay as they are, with commas between."""
    quantize_attention: bool = False
    """The self-attention in float8, its backward pass not; see `model.blocks.attention_fp8`. Needs LoRA."""
    fp32_master_weights: bool = False
    """AdamW steps float32 copies, so that its moments take float32 too."""
    reference: bool = False
    """Use the host's own blocks, whatever the three settings above say."""
    offload_frozen: bool = False
    """Keep text encoder, VAE and wav2vec2 in CPU memory and bring each to the device for its work only."""
    timestep_sampling: str = "host"
    """Which noise levels train, one of `noise_levels.SAMPLINGS`."""
    loss_weighting: str = "host"
    """What the loss at a noise level counts, one of `noise_levels.WEIGHTINGS`."""
    prefix_errors: str = "none"
    """What is added to known frames, one of `prefix_errors.FORMS`."""
    max_timestep_boundary: float = 1.0
    min_timestep_boundary: float = 0.0
    tiled: bool = False
    """Encode videos in VAE tiles: less memory, shifted colours."""
    vram_report: bool = False
    """Print the memory of each stage of the third step, and what flags would change of it (CUDA)."""

    @property
    def way(self) -> Way:
        """How the blocks are computed."""
        eight_bits = self.quantize or self.quantize_attention
        own = self.compile or self.stream_weights or eight_bits or self.activation_memory is not None
        if self.reference or not own:
            return Way(offload=self.use_gradient_checkpointing_offload)
        return Way(
            blocks="compiled" if self.compile else "eager",
            offload=self.use_gradient_checkpointing_offload,
            stream=self.stream_weights,
        )
