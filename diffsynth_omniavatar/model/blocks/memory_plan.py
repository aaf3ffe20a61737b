"""Which results of the transformer's blocks are kept for the backward pass, which are computed again, and how much
memory a training step takes.

A block always keeps its input. What else it may keep has a size in bytes and saves work; the plan takes what saves
most per byte first, within a budget. Plain integers: nothing here knows of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..config import AUDIO_WINDOW, LoRAConfig, OmniAvatarConfig

GIB = 2**30

KEEPABLE = ("attention", "middle", "qkv", "ffn")
"""Results that a block can keep: the self-attention's output and log-sum-exp; the tokens between the block's parts and
the cross-attention's query; the projections q, k, v; the hidden layer of the feed-forward part."""

Kept = frozenset[str]
"""A subset of `KEEPABLE`."""

BACKWARD_TENSORS = (18, 4.5)
"""What the backward pass of one of the host's blocks, eager, holds at its peak: tensors [token, dim], and hidden layers
[token, ffn_dim]. From the peaks measured of 14B and 1.3B."""
STANDING, CHUNK_TENSORS = 12, (6, 4.0)
"""The same of this package's blocks, counted in compiled code: tensors of all tokens while the feed-forward part's
backward pass works, and those of the chunk that it works on."""
ATTENTION_TENSORS = 15
"""Tensors [token, dim] while the attention's backward pass works, the kernel's float32 sums among them."""
CHUNK = 8192
"""Tokens of which the backward pass works at a time, at most or nearly."""

SPARE = 0.03
"""Part of the free memory that "auto" leaves alone: the allocator cannot use every byte."""
IN_FLIGHT = 3
"""Blocks' inputs on the device while they wait in main memory: the one in use and those on their way."""
STREAMED_LAYERS = 2
"""Layers whose weights are on the device while the others wait in main memory."""


def chunk_count(batch: int, tokens: int) -> int:
    """In how many parts the backward pass takes the tokens of each sample: of equal length where that can be."""
    least = -(-batch * tokens // CHUNK)
    return next((count for count in range(least, 2 * least) if tokens % count == 0), least)


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """Sizes of one block's work."""

    batch: int
    tokens: int
    dim: int
    ffn_dim: int
    heads: int
    element_size: int
    """Bytes of a number: 2 for bfloat16."""

    @classmethod
    def of(cls, config: OmniAvatarConfig, *, batch: int, tokens: int, element_size: int) -> BlockShape:
        """Those of a model."""
        return cls(
            batch=batch,
            tokens=tokens,
            dim=config.dim,
            ffn_dim=config.ffn_dim,
            heads=config.num_heads,
            element_size=element_size,
        )

    @property
    def input_bytes(self) -> int:
        """A tensor [batch, token, dim]."""
        return self.batch * self.tokens * self.dim * self.element_size

    @property
    def backward_bytes(self) -> int:
        """What the backward pass of one of this package's blocks needs beside what is kept."""
        return self.backward_bytes_of("own")

    def backward_bytes_of(self, blocks: Literal["own", "host"]) -> int:
        """What the backward pass of a block needs beside what is kept."""
        ratio = self.ffn_dim / self.dim
        if blocks == "host":
            tokens, hidden = BACKWARD_TENSORS
            return int((tokens + hidden * ratio) * self.input_bytes)
        tokens, hidden = CHUNK_TENSORS
        feed_forward = STANDING + (tokens + hidden * ratio) / chunk_count(self.batch, self.tokens)
        return int(max(feed_forward, ATTENTION_TENSORS) * self.input_bytes)

    @property
    def bytes_of(self) -> Mapping[str, int]:
        """Size of each result that can be kept."""
        log_sum_exp = 4 * self.batch * self.tokens * self.heads
        return {
            "attention": self.input_bytes + log_sum_exp,
            "middle": 3 * self.input_bytes,
            "qkv": 3 * self.input_bytes,
            "ffn": self.input_bytes * self.ffn_dim // self.dim,
        }

    @property
    def operations_of(self) -> Mapping[str, int]:
        """Floating-point operations that keeping each of them saves."""
        rows = self.batch * self.tokens
        projection = 2 * rows * self.dim * self.dim
        return {
            "attention": 4 * rows * self.tokens * self.dim,
            "middle": 3 * projection,
            "qkv": 3 * projection,
            "ffn": 2 * rows * self.dim * self.ffn_dim,
        }

    @property
    def order(self) -> tuple[str, ...]:
        """`KEEPABLE`, what saves most per byte first."""
        sizes, operations = self.bytes_of, self.operations_of
        return tuple(sorted(KEEPABLE, key=lambda name: -(operations[name] / sizes[name])))


def plan_kept(shape: BlockShape, layers: int, budget: int) -> tuple[Kept, ...]:
    """What each block keeps beside its input.

    The whole never takes more than `budget` bytes, and a larger budget keeps all that a smaller one does. The last
    blocks come first: their backward pass, which runs first, frees their memory early.
    """
    sizes = shape.bytes_of
    kept: list[set[str]] = [set() for _ in range(layers)]
    for name in shape.order:
        for block in reversed(kept):
            if sizes[name] > budget:
                return tuple(map(frozenset, kept))
            budget -= sizes[name]
            block.add(name)
    return tuple(map(frozenset, kept))


def kept_bytes(shape: BlockShape, plan: tuple[Kept, ...]) -> int:
    """What a plan takes beside the blocks' inputs."""
    sizes = shape.bytes_of
    return sum(sizes[name] for kept in plan for name in kept)


def describe(plan: tuple[Kept, ...]) -> str:
    """How many blocks keep what: "attention 40, ffn 12 of 40 blocks"."""
    counts = {name: sum(name in kept for kept in plan) for name in KEEPABLE}
    parts = [f"{name} {count}" for name, count in counts.items() if count]
    return f"{', '.join(parts) or 'only their inputs'} of {len(plan)} blocks"


# ----------------------------------------------------------------------------------------------- memory of a whole step


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
    """The blocks' inputs wait in main memory: `--use_gradient_checkpointing_offload`."""
    stream: bool = False
    """The blocks' frozen weights wait in main memory: `--stream_weights`."""


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
    """Memory of a step with cached inputs: the blocks keep their inputs and those of `plan`; all else is made anew."""
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
        offload: whether the blocks' inputs wait in main memory.
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
