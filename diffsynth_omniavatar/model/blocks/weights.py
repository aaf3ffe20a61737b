"""A block's tensors under this package's names: its weights, and what they meet beside the tokens.

Shapes: those of `forward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from .quantized import QuantizedLinear, QuantizedWeight


class Projection(NamedTuple):
    """A linear layer with or without LoRA: x W' + b + scale (x A') B'."""

    weight: Tensor | QuantizedWeight
    bias: Tensor | None
    down: Tensor | None
    """A [rank, in], or None."""
    up: Tensor | None
    """B [out, rank], or None."""
    scale: float


class AttentionWeights(NamedTuple):
    """Those of a self- or cross-attention."""

    q: Projection
    k: Projection
    v: Projection
    o: Projection
    norm_q: Tensor
    norm_k: Tensor


class BlockWeights(NamedTuple):
    """Those of a block, without its modulation."""

    own: AttentionWeights
    cross: AttentionWeights
    ffn_in: Projection
    ffn_out: Projection
    norm3_weight: Tensor
    norm3_bias: Tensor
    eps: float
    heads: int

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All of them, in the order of their gradients."""
        return (*self.own[:4], *self.cross[:4], self.ffn_in, self.ffn_out)

    @property
    def adapters(self) -> list[Tensor]:
        """A and B of each projection that has them."""
        return [tensor for p in self.projections if p.down is not None for tensor in (p.down, cast(Tensor, p.up))]

    @property
    def frozen(self) -> Iterator[Any]:
        """The other weights: the host's parameters, and layers in 8 bits."""
        for projection in self.projections:
            if isinstance(projection.weight, QuantizedWeight):
                yield from projection.weight[:2]
            else:
                yield projection.weight
            if projection.bias is not None:
                yield projection.bias
        yield from (*self.own[4:], *self.cross[4:], self.norm3_weight, self.norm3_bias)


def with_values(weights: Any, values: Mapping[int, Tensor]) -> Any:
    """Weights whose tensors are exchanged for those of their `id`."""
    if isinstance(weights, Tensor):
        return values.get(id(weights), weights)
    return type(weights)(*(with_values(part, values) for part in weights)) if isinstance(weights, tuple) else weights


class UnsupportedLayerError(ValueError):
    """A layer that the fast blocks cannot compute; the message says which, and what to do."""


def projection(layer: Any) -> Projection:
    """The tensors of a plain linear layer, or of one with plain peft adapters of which one acts, or none.

    Raises:
        UnsupportedLayerError: the layer is another one: quantised by the host, offloaded, sharded, merged, with
            dropout...
    """
    if isinstance(layer, QuantizedLinear):
        return Projection(layer.quantized, layer.bias, None, None, 0.0)
    if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter:
        return Projection(layer.weight, layer.bias, None, None, 0.0)
    if hasattr(layer, "lora_A") and type(layer.base_layer) in (nn.Linear, QuantizedLinear):
        if layer.disable_adapters and not layer.merged:
            return projection(layer.base_layer)
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        plain = (
            len(names) == 1
            and not layer.merged
            and names[0] not in getattr(layer, "lora_variant", {})
            and type(layer.lora_dropout[names[0]]) is nn.Identity
            and layer.lora_B[names[0]].bias is None
        )
        if plain:
            weight, bias, *_ = projection(layer.base_layer)
            down, up = (part[names[0]].weight for part in (layer.lora_A, layer.lora_B))
            return Projection(weight, bias, down, up, float(layer.scaling[names[0]]))
    raise UnsupportedLayerError(
        f"compiling the blocks and choosing what they keep work with plain and LoRA layers, not with a "
        f"{type(layer).__name__} of {type(getattr(layer, 'weight', None)).__name__}; use DiffSynth's own blocks: "
        "without --compile, --use_usp, --activation_memory, --stream_weights, or with --reference."
    )


def block_weights(block: Any) -> BlockWeights:
    """The tensors of the host's `DiTBlock`.

    Raises:
        UnsupportedLayerError: see `projection`.
    """

    def attention(part: Any) -> AttentionWeights:
        q, k, v, o = (projection(getattr(part, name)) for name in "qkvo")
        return AttentionWeights(q, k, v, o, part.norm_q.weight, part.norm_k.weight)

    return BlockWeights(
        own=attention(block.self_attn),
        cross=attention(block.cross_attn),
        ffn_in=projection(block.ffn[0]),
        ffn_out=projection(block.ffn[2]),
        norm3_weight=block.norm3.weight,
        norm3_bias=block.norm3.bias,
        eps=block.norm1.eps,
        heads=block.num_heads,
    )


class Modulation(NamedTuple):
    """Shift, scale and gate of the two parts of a block, [B, 1, D] each."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    ffn_shift: Tensor
    ffn_scale: Tensor
    ffn_gate: Tensor


class Rotary(NamedTuple):
    """Of every token, [1, S, d] float32: the cosine of each number's angle, and its sine, negative for the first of a
    pair.
    """

    cos: Tensor
    sin: Tensor
