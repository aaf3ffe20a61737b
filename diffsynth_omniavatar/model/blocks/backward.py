"""The backward pass of a block where only adapters (LoRA) and the input need gradients: its steps and pieces.

A piece gets what the forward pass kept, and computes again what it did not. The last projection is not computed again:
no gradient needs its result.

Shapes: those of `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from .forward import gelu, project, rotate, standardize
from .memory_plan import chunk_count
from .quantized import input_gradient
from .weights import BlockWeights, Modulation, Projection

Gradients = tuple[Tensor, ...]
"""Those of A and B of a projection, or () where it has none."""

Backward = tuple[tuple[Tensor, ...], Gradients]
"""Gradients by tokens, [B, S, D] each, and by adapters."""


def project_backward(grad: Tensor, x: Tensor, p: Projection) -> tuple[Tensor, Gradients]:
    """Gradients of `project` by x [B, S, in], and by A and B."""
    dx = input_gradient(grad, p.weight)
    if p.down is None or p.up is None:
        return dx, ()
    down, up = p.down.to(x.dtype), p.up.to(x.dtype)
    inner = (grad @ up) * p.scale
    d_down = inner.flatten(0, 1).T @ x.flatten(0, 1)
    d_up = grad.flatten(0, 1).T @ ((x @ down.T) * p.scale).flatten(0, 1)
    return dx + inner @ down, (d_down.to(p.down.dtype), d_up.to(p.up.dtype))


def standardize_backward(grad: Tensor, standard: Tensor, inverse: Tensor) -> Tensor:
    """Gradient of `standardize` by its input, from that by its first result; all float32."""
    along = (grad * standard).mean(-1, keepdim=True)
    return inverse * (grad - grad.mean(-1, keepdim=True) - standard * along)


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gradient of `rms_norm` by x, in the format of x; grad float32."""
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    standard, grad = x.float() * inverse, grad * weight.float()
    return (inverse * (grad - standard * (grad * standard).mean(-1, keepdim=True))).to(x.dtype)


def post_attention_backward(
    grad: Tensor,
    between: Tensor,
    attended: Tensor,
    crossed: Tensor | None,
    hidden: Tensor | None,
    m: Modulation,
    w: BlockWeights,
) -> Backward:
    """Gradients by `between`, by `attended` and by the adapters of cross.o, ffn_in, ffn_out.

    `crossed` and `hidden` are computed again where they were not kept.
    """
    if crossed is None:
        crossed = between + project(attended, w.cross.o)
    standard, inverse = standardize(crossed, w.eps)
    scale = 1 + m.ffn_scale.float()
    tokens = (standard * scale + m.ffn_shift.float()).to(crossed.dtype)
    if hidden is None:
        hidden = project(tokens, w.ffn_in)
    d_out = (grad.float() * m.ffn_gate.float()).to(grad.dtype)
    d_active, of_out = project_backward(d_out, gelu(hidden), w.ffn_out)
    d_hidden = torch.ops.aten.gelu_backward(d_active, hidden, approximate="tanh")
    d_tokens, of_in = project_backward(d_hidden, tokens, w.ffn_in)
    through_norm = standardize_backward(d_tokens.float() * scale, standard, inverse)
    d_crossed = (grad.float() + through_norm).to(grad.dtype)
    d_attended, of_cross = project_backward(d_crossed, attended, w.cross.o)
    return (d_crossed, d_attended), (*of_cross, *of_in, *of_out)


def middle_backward(
    grad: Tensor,
    d_queries: Tensor,
    between: Tensor,
    q: Tensor,
    attended: Tensor,
    m: Modulation,
    w: BlockWeights,
) -> Backward:
    """Gradients by the block's input (as far as it goes past the self-attention), by `attended`, and by the adapters
    of own.o, cross.q.
    """
    standard, inverse = standardize(between, w.eps)
    tokens = (standard * w.norm3_weight.float() + w.norm3_bias.float()).to(between.dtype)
    d_q = rms_norm_backward(d_queries.float(), q, w.cross.norm_q, w.eps)
    d_tokens, of_q = project_backward(d_q, tokens, w.cross.q)
    through_norm = standardize_backward(d_tokens.float() * w.norm3_weight.float(), standard, inverse)
    dx = grad.float() + through_norm
    d_attended, of_o = project_backward((dx * m.gate.float()).to(grad.dtype), attended, w.own.o)
    return (dx.to(grad.dtype), d_attended), (*of_o, *of_q)


def text_backward(d_keys: Tensor, d_values: Tensor, k: Tensor, text: Tensor, w: BlockWeights) -> Gradients:
    """Gradients by the adapters of cross.k, cross.v."""
    d_k = rms_norm_backward(d_keys.float(), k, w.cross.norm_k, w.eps)
    return (*project_backward(d_k, text, w.cross.k)[1], *project_backward(d_values, text, w.cross.v)[1])


def pre_attention_backward(
    grad: Tensor,
    d_queries: Tensor,
    d_keys: Tensor,
    d_values: Tensor,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    m: Modulation,
    w: BlockWeights,
) -> Backward:
    """Gradients by the block's input, `grad` included, and by the adapters of own.q, own.k, own.v."""
    standard, inverse = standardize(x, w.eps)
    scale = 1 + m.scale.float()
    tokens = (standard * scale + m.shift.float()).to(x.dtype)
    d_q = rms_norm_backward(rotate(d_queries, cos, -sin), q, w.own.norm_q, w.eps)
    d_k = rms_norm_backward(rotate(d_keys, cos, -sin), k, w.own.norm_k, w.eps)
    by_q, of_q = project_backward(d_q, tokens, w.own.q)
    by_k, of_k = project_backward(d_k, tokens, w.own.k)
    by_v, of_v = project_backward(d_values, tokens, w.own.v)
    d_tokens = by_q.float() + by_k.float() + by_v.float()
    dx = grad.float() + standardize_backward(d_tokens * scale, standard, inverse)
    return (dx.to(grad.dtype),), (*of_q, *of_k, *of_v)


def in_chunks(piece: Callable[..., Backward], tokens: Sequence[Tensor | None], *shared: Any) -> Backward:
    """A piece of the backward on all tokens, a chunk of them at a time: what it makes in between takes less memory.

    The tokens' gradients do not depend on each other, and those of the adapters add up, in float32.

    Args:
        piece: called with a chunk of `tokens`, and `shared`.
        tokens: [B or 1, S, ...] each; the first one is there.
    """
    first = cast(Tensor, tokens[0])
    batch, length = first.shape[:2]
    count = chunk_count(batch, length)
    if count == 1:
        return piece(*tokens, *shared)
    whole: list[Tensor] = []
    totals: list[Tensor] = []
    dtypes: list[torch.dtype] = []

    def work(chunk: slice) -> None:
        parts, gradients = piece(*(t if t is None else _part(t, chunk) for t in tokens), *shared)
        if not whole:
            whole.extend(part.new_empty(batch, length, *part.shape[2:]) for part in parts)
            totals.extend(torch.zeros_like(value, dtype=torch.float32) for value in gradients)
            dtypes.extend(value.dtype for value in gradients)
        for tensor, part in zip(whole, parts, strict=True):
            tensor[:, chunk] = part
        for total, value in zip(totals, gradients, strict=True):
            total += value

    for start, end in pairwise(length * part // count for part in range(count + 1)):
        work(slice(start, end))
    return tuple(whole), tuple(total.to(dtype) for total, dtype in zip(totals, dtypes, strict=True))


def _part(tensor: Tensor, chunk: slice) -> Tensor:
    """The chunk of a tensor's second axis; to the compiler like a tensor of its own, with the strides of one."""
    part = tensor[0, chunk].unsqueeze(0) if len(tensor) == 1 else tensor[:, chunk]
    return part.detach()
