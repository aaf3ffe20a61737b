"""The memory of a whole training step, from its sizes. Plain integers: nothing here knows of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..config import AUDIO_WINDOW, LoRAConfig, OmniAvatarConfig
from .memory_plan import KEEPABLE, BlockShape, Kept, kept_bytes

SPARE = 0.03
"""Part of the free memory that "auto" leaves alone: the allocator cannot use every byte."""
IN_FLIGHT = 3
"""Blocks' inputs on the device while the others are offloaded to CPU memory: one in use, the rest being copied."""
STREAMED_LAYERS = 2
"""Layers whose weights are on the device while the others are offloaded to CPU memory."""


def block_layers(config: OmniAvatarConfig) -> dict[str, tuple[int, int]]:
    """The linear layers of a block: name -> width of input and output."""
    width, hidden = config.dim, config.ffn_dim
    attentions = {f"{part}.{name}": (width, width) for part in ("self_attn", "cross_attn") for name in "qkvo"}
    return {**attentions, "ffn.0": (width, hidden), "ffn.2": (hidden, width)}


def adapted(config: OmniAvatarConfig, lora: LoRAConfig) -> dict[str, tuple[int, int]]:
    """Those of `block_layers` that have LoRA."""
    return {
        n: size
        for n, size in block_layers(config).items()
        if f".{n}".endswith(tuple(f".{t}" for t in lora.target_modules))
    }


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes of a denoiser in training."""

    layers: int
    blocks: int
    """Frozen weights of all blocks."""
    others: int
    """Frozen weights outside the blocks."""
    trained: int
    optimizer: int
    """AdamW's moments, with float32 copies of the trained weights if there are any."""
    stepping: int
    """What the optimizer's step takes besides for a moment: gradients and roots of the second moments."""


def count_weights(
    config: OmniAvatarConfig, lora: LoRAConfig | None, *, element_size: int = 2, fp32_master_weights: bool = False
) -> Weights:
    """Sizes of a denoiser whose LoRA, patch embedding and audio modules train, or all its weights if `lora` is None."""
    dim, layers = config.dim, config.num_layers
    linear = sum(inputs * outputs + outputs for inputs, outputs in block_layers(config).values())
    block = linear + (4 + 2 + 6) * dim  # RMS norms, the affine norm, the modulation
    time = (config.freq_dim + 1 + dim + 1) * dim + (dim + 1) * 6 * dim
    text = (config.text_dim + 1 + dim + 1) * dim
    patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    head = (dim + 1) * config.out_dim * patch + 2 * dim
    audio = (AUDIO_WINDOW * config.audio_dim + 3) * config.audio_hidden_size
    trained = (
        (config.in_dim * patch + 1) * dim + audio + len(config.audio_layers) * (config.audio_hidden_size + 1) * dim
    )
    blocks, others = layers * block, time + text + head
    if lora is None:
        trained, blocks, others = trained + blocks + others, 0, 0
    else:
        trained += layers * lora.rank * sum(map(sum, adapted(config, lora).values()))
    return Weights(
        layers=layers,
        blocks=blocks * element_size,
        others=others * element_size,
        trained=trained * element_size,
        optimizer=trained * (12 if fp32_master_weights else 2 * element_size),
        stepping=trained * (8 if fp32_master_weights else 2 * element_size),
    )


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a training step computes the blocks."""

    blocks: Literal["host", "eager", "compiled"] = "host"
    """DiffSynth's, or this package's as they are or compiled."""
    offload: bool = False
    """The blocks' inputs are offloaded to CPU memory: `--use_gradient_checkpointing_offload`."""
    stream: bool = False
    """The blocks' frozen weights are offloaded to CPU memory: `--stream_weights`."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on the device in a training step."""

    weights: int
    optimizer: int
    inputs: int
    """The blocks' inputs."""
    kept: int
    """What the blocks keep for the backward pass beside them."""
    backward: int
    """The backward pass of a block that keeps only its input."""
    spared: int
    """What the last block, whose backward pass is the first, keeps of that."""
    gradients: int
    stepping: int
    """The optimizer's step, gradients included."""

    @property
    def peak(self) -> int:
        """The most that is there at once: as the backward pass begins, as it ends, or in the optimizer's step."""
        passing = self.backward + max(self.inputs + self.kept - self.spared, self.gradients)
        return self.weights + self.optimizer + max(passing, self.stepping)


def step_memory(weights: Weights, shape: BlockShape, way: Way, plan: tuple[Kept, ...] = ()) -> StepMemory:
    """Memory of a step with cached inputs: the blocks keep their inputs and those "
    "of `plan`; all else is computed again."""
    streamed = STREAMED_LAYERS * weights.blocks // weights.layers
    return StepMemory(
        weights=(streamed if way.stream else weights.blocks) + weights.others + weights.trained,
        optimizer=weights.optimizer,
        inputs=(min(IN_FLIGHT, weights.layers) if way.offload else weights.layers) * shape.input_bytes,
        kept=kept_bytes(shape, plan),
        spared=kept_bytes(shape, plan[-1:]),
        backward=shape.backward_bytes_of("host" if way.blocks == "host" else "own"),
        gradients=weights.trained,
        stepping=weights.stepping,
    )


def auto_budget(
    shape: BlockShape, layers: int, moments: int, *, free: int, offload: bool, reserve: int = 0, first: bool = True
) -> int:
    """Bytes that `--activation_memory auto` lets the blocks keep beside their inputs.

    Gradients are not counted: they come as what was kept goes.

    Args:
        shape: of a block.
        layers: how many blocks there are.
        moments: bytes of AdamW's two moments.
        free: bytes that the device has free before the step.
        offload: whether the blocks' inputs are offloaded to CPU memory.
        reserve: bytes for work outside the denoiser.
        first: whether the optimizer has no moments yet.
    """
    inputs = (min(IN_FLIGHT, layers) if offload else layers) * shape.input_bytes
    taken = inputs + shape.backward_bytes + (moments if first else 0) + reserve
    return max(0, int((1 - SPARE) * free) - taken)


def option_changes(
    config: OmniAvatarConfig, lora: LoRAConfig | None, shape: BlockShape, way: Way, plan: tuple[Kept, ...] = ()
) -> dict[str, int]:
    """What each flag of training, given or left out, would add to the peak of a step, in bytes."""
    weights = count_weights(config, lora, element_size=shape.element_size)
    own = replace(way, blocks="eager") if way.blocks == "host" else way
    changed = {
        _flip("--use_gradient_checkpointing_offload", way.offload): (replace(way, offload=not way.offload), plan)
    }
    if way.blocks != "host":
        changed["with --reference"] = (Way(offload=way.offload), ())
    if lora is not None:
        changed[_flip("--stream_weights", way.stream)] = (replace(own, stream=not way.stream), plan)
        every = (frozenset(KEEPABLE),) * weights.layers
        attention = (frozenset({"attention"}),) * weights.layers
        for what, other in (("0", ()), ("to keep attention", attention), ("to keep all", every)):
            changed[f"with --activation_memory {what}"] = (own, other)
    now = step_memory(weights, shape, way, plan).peak
    return {flag: step_memory(weights, shape, *change).peak - now for flag, change in changed.items()}


def _flip(flag: str, given: bool) -> str:
    return f"without {flag}" if given else f"with {flag}"
