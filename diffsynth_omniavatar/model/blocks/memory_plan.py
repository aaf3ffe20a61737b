"""Which results of the transformer's blocks are kept for the backward pass, and which are computed again.

A block always keeps its input. What else it may keep has a size in bytes and saves work; the plan takes what saves
most per byte first, within a budget. Plain integers: nothing here knows of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..config import OmniAvatarConfig

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
FP8_TENSORS = 3
"""More of them with attention in float8: its output in the tokens' format, and q, k and v twice for a moment."""
CHUNK = 8192
"""Tokens of which the backward pass works at a time, at most or nearly."""


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
    attention_fp8: bool = False
    """Whether the self-attention gives its output in float8."""

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
        ratio, widened = self.ffn_dim / self.dim, FP8_TENSORS * self.attention_fp8
        if blocks == "host":
            tokens, hidden = BACKWARD_TENSORS
            return int((tokens + hidden * ratio) * self.input_bytes)
        tokens, hidden = CHUNK_TENSORS
        feed_forward = STANDING + (tokens + hidden * ratio) / chunk_count(self.batch, self.tokens)
        return int((max(feed_forward, ATTENTION_TENSORS) + widened) * self.input_bytes)

    @property
    def bytes_of(self) -> Mapping[str, int]:
        """Size of each result that can be kept."""
        log_sum_exp = 4 * self.batch * self.tokens * self.heads
        return {
            "attention": self.input_bytes // (self.element_size if self.attention_fp8 else 1) + log_sum_exp,
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
