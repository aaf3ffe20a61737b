"""The forward pass of a block: its steps, and the pieces that they are put together to.

The pieces stand around the block's two attentions,

    pre_attention   norm, modulation, q k v, RMS norms, rotary embedding
    attention       self-attention, by the host's own choice of kernel
    middle          output projection, gate, norm, the cross-attention's q k v
    attention       cross-attention to the text
    post_attention  output projection, norm, modulation, feed-forward, gate

each a function of tensors alone, so that one compiled function serves all blocks. `turned` and `cross_inputs` are parts
of them that the backward pass computes again.

Elementwise work is done in float32 and rounded once, where the host rounds each step to the number format of the
weights. The rotary embedding uses float32 tables; the host multiplies complex128. In float32 the two differ by at most
3e-7 of the largest number.

Shapes: tokens [B, S, D], heads h of width d = D / h, text [B, L, D], hidden layer [B, S, F].
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_fp8 import AttentionInputs, attention_inputs
from .quantized import QuantizedTokens, QuantizedWeight, linear
from .weights import BlockWeights, Modulation, Projection, Rotary

GELU_DIP = 0.1701
"""GELU is nowhere below minus this."""


def project(x: Tensor | QuantizedTokens, p: Projection, limit: Tensor | None = None) -> Tensor:
    """[B, S, in] -> [B, S, out]; no number of a token exceeds `limit` [B, S, 1], which spares products in 8 bits a look
    at all of them.
    """
    y = linear(x, p.weight, p.bias, limit)
    if p.down is None or p.up is None:
        return y
    if isinstance(x, QuantizedTokens):
        x = x.widened()
    return y + F.linear(F.linear(x, p.down.to(x.dtype)), p.up.to(x.dtype)) * p.scale


def standardize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean) / deviation over the last axis, and 1 / deviation; both float32."""
    x = x.float()
    centred = x - x.mean(-1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * inverse, inverse


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights, then x (1 + scale) + shift, in the format of x."""
    return (standardize(x, eps)[0] * (1 + scale.float()) + shift.float()).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm with weights, in the format of x."""
    return (standardize(x, eps)[0] * weight.float() + bias.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of numbers of each head by its token's angles: [B, S, D] -> [B, S, D], float32."""
    pairs = x.float().unflatten(-1, (-1, cos.shape[-1] // 2, 2))
    cos, sin = (table.unflatten(-1, (1, -1, 2)) for table in (cos, sin))
    return (pairs * cos + pairs.flip(-1) * sin).flatten(2)


def gelu(u: Tensor) -> Tensor:
    """The feed-forward part's activation."""
    return F.gelu(u, approximate="tanh")


def gelu_limit(u: Tensor) -> Tensor:
    """What no number of gelu(u) exceeds in a token, [B, S, 1]: that of the largest, or the depth of its dip."""
    return gelu(u.amax(-1, keepdim=True)).clamp(min=GELU_DIP)


def add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate y, in float32, in the format of x."""
    return (x.float() + gate.float() * y.float()).to(x.dtype)


def add_per_frame(tokens: Tensor, values: Tensor, frames: Tensor | None) -> Tensor:
    """Add values [B, T, D] to the tokens of their latent frame: to all [B, T*h*w, D], or to those of `frames` [s]."""
    if frames is not None:
        return tokens + values[:, frames]
    return (tokens.unflatten(1, (values.shape[1], -1)) + values.unsqueeze(2)).flatten(1, 2)


def pre_attention(x: Tensor, m: Modulation, rotary: Rotary, w: BlockWeights) -> tuple[Tensor, ...]:
    """[B, S, D] -> the projections q, k, v and the attention's q, k, [B, S, D] each."""
    q, k, v = projections(x, m, w)
    return (q, k, v, *turned(q, k, rotary, w))


def projections(x: Tensor, m: Modulation, w: BlockWeights) -> tuple[Tensor, ...]:
    """[B, S, D] -> the self-attention's projections q, k, v, [B, S, D] each."""
    hidden = modulate(x, m.shift, m.scale, w.eps)
    return tuple(project(hidden, p) for p in w.own[:3])


def pre_attention_fp8(x: Tensor, m: Modulation, rotary: Rotary, w: BlockWeights) -> AttentionInputs:
    """[B, S, D] -> what the self-attention in float8 takes."""
    _, _, v, queries, keys = pre_attention(x, m, rotary, w)
    return to_fp8(v, queries, keys, w)


def widened(x: QuantizedTokens | AttentionInputs) -> Any:
    """What is in 8 bits in the format that counts as its own."""
    return x.widened()


def to_fp8(v: Tensor, queries: Tensor, keys: Tensor, w: BlockWeights) -> AttentionInputs:
    """What the self-attention in float8 takes, from what it takes otherwise, [B, S, D] each."""
    q_limit, k_limit = (math.sqrt(v.shape[-1]) * norm.float().abs().amax() for norm in (w.own.norm_q, w.own.norm_k))
    return attention_inputs(queries, keys, v, q_limit, k_limit)


def turned(q: Tensor, k: Tensor, rotary: Rotary, w: BlockWeights) -> tuple[Tensor, Tensor]:
    """The attention's q and k from their projections."""
    return turn(q, w.own.norm_q, rotary, w.eps), turn(k, w.own.norm_k, rotary, w.eps)


def turn(x: Tensor, norm: Tensor, rotary: Rotary, eps: float) -> Tensor:
    """The attention's q or k from its projection [B, S, D]."""
    return rotate(rms_norm(x, norm, eps), *rotary).to(x.dtype)


def middle(
    x: Tensor, attended: Tensor | QuantizedTokens, text: Tensor, m: Modulation, w: BlockWeights
) -> tuple[Tensor, ...]:
    """Tokens behind the self-attention [B, S, D], the cross-attention's projection of q, and its q, k, v, and the
    projection of k.
    """
    between, q = behind_attention(x, attended, m, w)
    return (between, q, *cross_inputs(q, text, w))


def behind_attention(
    x: Tensor, attended: Tensor | QuantizedTokens, m: Modulation, w: BlockWeights
) -> tuple[Tensor, Tensor]:
    """Tokens behind the self-attention [B, S, D], and the cross-attention's projection of q."""
    between = add_gated(x, project(attended, w.own.o), m.gate)
    return between, project(layer_norm(between, w.norm3_weight, w.norm3_bias, w.eps), w.cross.q)


def cross_inputs(q: Tensor, text: Tensor, w: BlockWeights) -> tuple[Tensor, ...]:
    """The cross-attention's q [B, S, D], k and v [B, L, D], and the projection of k."""
    return cross_queries(q, w), *text_inputs(text, w)


def cross_queries(q: Tensor, w: BlockWeights) -> Tensor:
    """The cross-attention's q [B, S, D] from its projection."""
    return rms_norm(q, w.cross.norm_q, w.eps).to(q.dtype)


def text_inputs(text: Tensor, w: BlockWeights) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-attention's k and v [B, L, D], and the projection of k; the same in all passes of a text."""
    k, v = project(text, w.cross.k), project(text, w.cross.v)
    return rms_norm(k, w.cross.norm_k, w.eps).to(k.dtype), v, k


def post_attention(between: Tensor, attended: Tensor, m: Modulation, w: BlockWeights) -> tuple[Tensor, ...]:
    """Tokens behind the cross-attention [B, S, D], the hidden layer before its activation [B, S, F], the block's
    result [B, S, D].
    """
    crossed = between + project(attended, w.cross.o)
    hidden = project(modulate(crossed, m.ffn_shift, m.ffn_scale, w.eps), w.ffn_in)
    limit = gelu_limit(hidden) if isinstance(w.ffn_out.weight, QuantizedWeight) else None
    return crossed, hidden, add_gated(crossed, project(gelu(hidden), w.ffn_out, limit), m.ffn_gate)
