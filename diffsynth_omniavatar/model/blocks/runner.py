"""The transformer's blocks, computed faster: the host's weights and numbers, with fewer and larger steps.

A block is cut into three pieces around its two attentions,

    pre_attention   norm, modulation, q k v, RMS norms, rotary embedding
    attention       self-attention, by the host's own choice of kernel
    middle          output projection, gate, norm, the cross-attention's q k v
    attention       cross-attention to the text
    post_attention  output projection, norm, modulation, feed-forward, gate

each a function of tensors alone, so that one compiled function serves all blocks. Where only adapters (LoRA) and the
input need gradients, the backward pass is written out here: it computes again what was not kept (`memory_plan`) and
nothing else, not even the last projection, whose result no gradient needs. Otherwise autograd differentiates the
pieces.

Elementwise work is done in float32 and rounded once, where the host rounds each step to the number format of the
weights. The rotary embedding uses float32 tables; the host multiplies complex128. In float32 the two differ by at most
3e-7 of the largest number.

Shapes: tokens [B, S, D], heads h of width d = D / h, text [B, L, D], hidden layer [B, S, F].
"""

from __future__ import annotations

import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ...host import flash_attention
from .memory_plan import KEEPABLE, BlockShape, Kept, auto_budget, chunk_count, describe, kept_bytes, plan_kept
from .sequence_parallel import SequenceParallel
from .streaming import MainMemory, StreamedWeights

logger = logging.getLogger(__name__)

GIB = 2**30
ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
COMPILATIONS = 64
"""Of one piece, at most."""
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
COMPARED_GRADIENTS = (2, 11)
"""The first torch whose compiled gradients of all weights were compared with DiffSynth's on a GPU."""
RELIABLE_GRADIENTS = (2, 14)
"""The first torch whose compiled kernels wait for numbers that other threads write before they read them back
(https://github.com/pytorch/pytorch/issues/190517). Before it, gradients of narrow models were garbage on a GPU."""
COMPUTE_AGAIN = {f"realize_{what}_threshold": 1000 for what in ("reads", "acc_reads", "opcount")}
"""Options of the compiler with which kernels compute again instead of reading back."""

# -------------------------------------------------------------------------------------------------------------- weights


class Projection(NamedTuple):
    """A linear layer with or without LoRA: x W' + b + scale (x A') B'."""

    weight: Tensor
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
        """The other weights, the host's parameters."""
        for projection in self.projections:
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
    """The tensors of a plain linear layer, or of one with a single plain peft adapter.

    Raises:
        UnsupportedLayerError: the layer is another one: quantised, offloaded, sharded, merged, with dropout...
    """
    if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter:
        return Projection(layer.weight, layer.bias, None, None, 0.0)
    if hasattr(layer, "lora_A") and type(layer.base_layer) is nn.Linear:
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        plain = (
            len(names) == 1
            and not layer.disable_adapters
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


# ------------------------------------------------------------------------------------------------- steps of the forward


def project(x: Tensor, p: Projection) -> Tensor:
    """[B, S, in] -> [B, S, out]."""
    y = F.linear(x, p.weight, p.bias)
    if p.down is None or p.up is None:
        return y
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


def add_gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate y, in float32, in the format of x."""
    return (x.float() + gate.float() * y.float()).to(x.dtype)


# -------------------------------------------------------------------------------------- pieces of the forward, compiled


def pre_attention(x: Tensor, m: Modulation, rotary: Rotary, w: BlockWeights) -> tuple[Tensor, ...]:
    """[B, S, D] -> the projections q, k, v and the attention's q, k, [B, S, D] each."""
    hidden = modulate(x, m.shift, m.scale, w.eps)
    q, k, v = (project(hidden, p) for p in w.own[:3])
    return (q, k, v, *turned(q, k, rotary, w))


def turned(q: Tensor, k: Tensor, rotary: Rotary, w: BlockWeights) -> tuple[Tensor, Tensor]:
    """The attention's q and k from their projections."""
    queries = rotate(rms_norm(q, w.own.norm_q, w.eps), *rotary).to(q.dtype)
    keys = rotate(rms_norm(k, w.own.norm_k, w.eps), *rotary).to(k.dtype)
    return queries, keys


def middle(x: Tensor, attended: Tensor, text: Tensor, m: Modulation, w: BlockWeights) -> tuple[Tensor, ...]:
    """Tokens behind the self-attention [B, S, D], the cross-attention's projection of q, and its q, k, v, and the
    projection of k.
    """
    between = add_gated(x, project(attended, w.own.o), m.gate)
    q = project(layer_norm(between, w.norm3_weight, w.norm3_bias, w.eps), w.cross.q)
    return (between, q, *cross_inputs(q, text, w))


def cross_inputs(q: Tensor, text: Tensor, w: BlockWeights) -> tuple[Tensor, ...]:
    """The cross-attention's q [B, S, D], k and v [B, L, D], and the projection of k."""
    k, v = project(text, w.cross.k), project(text, w.cross.v)
    queries = rms_norm(q, w.cross.norm_q, w.eps).to(q.dtype)
    return queries, rms_norm(k, w.cross.norm_k, w.eps).to(k.dtype), v, k


def post_attention(between: Tensor, attended: Tensor, m: Modulation, w: BlockWeights) -> tuple[Tensor, ...]:
    """Tokens behind the cross-attention [B, S, D], the hidden layer before its activation [B, S, F], the block's
    result [B, S, D].
    """
    crossed = between + project(attended, w.cross.o)
    hidden = project(modulate(crossed, m.ffn_shift, m.ffn_scale, w.eps), w.ffn_in)
    return crossed, hidden, add_gated(crossed, project(gelu(hidden), w.ffn_out), m.ffn_gate)


# ------------------------------------------------------------------------------------------------ steps of the backward

Gradients = tuple[Tensor, ...]
"""Those of A and B of a projection, or () where it has none."""


def project_backward(grad: Tensor, x: Tensor, p: Projection) -> tuple[Tensor, Gradients]:
    """Gradients of `project` by x [B, S, in], and by A and B."""
    dx = grad @ p.weight
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


# ------------------------------------------------------------------------------------- pieces of the backward, compiled

Backward = tuple[tuple[Tensor, ...], Gradients]
"""Gradients by tokens, [B, S, D] each, and by adapters."""


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


# ------------------------------------------------------------------------------------------------------------ attention


class _Source(torch.autograd.Function):
    """Gives a tensor a place in the graph without the graph holding it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise AssertionError("gradients are taken at this node's edge")


class Attention:
    """One call of the host's attention, whose backward pass can run with q, k, v that were computed again.

    What the kernel saves for its backward pass is kept, except q, k and v themselves: `backward` puts those it is
    given in their places. So this works with whatever kernel the host chooses.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> None:
        # The graph holds the hooks, so these must not hold the graph: nobody would find that cycle.
        self._inputs = inputs = [q, k, v]
        hooks = saved_tensors_hooks(functools.partial(_pack, inputs), functools.partial(_unpack, inputs))
        with torch.enable_grad(), hooks:
            anchor = torch.empty(0, requires_grad=True)
            sources = [_Source.apply(anchor, value) for value in inputs]
            self._edges = [get_gradient_edge(source) for source in sources]
            self._output = flash_attention(*sources, num_heads=heads)
        inputs.clear()

    @property
    def output(self) -> Tensor:
        """[B, S, D]."""
        return self._output.detach()

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Gradients by q, k and v, which must be those of the call; once."""
        self._inputs[:] = q, k, v
        try:
            return torch.autograd.grad(self._output, self._edges, grad)
        finally:
            self._inputs.clear()


def _pack(inputs: Sequence[Tensor], saved: Tensor) -> Any:
    for place, value in enumerate(inputs):
        if saved.untyped_storage().data_ptr() == value.untyped_storage().data_ptr():
            return place, saved.shape, saved.stride(), saved.storage_offset()
    return saved.detach()


def _unpack(inputs: Sequence[Tensor], packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    place, *layout = packed
    return inputs[place].as_strided(*layout)


# ---------------------------------------------------------------------------------------------------------------- block


class Pieces(NamedTuple):
    """The functions above, compiled or as they are."""

    pre_attention: Callable[..., Any]
    turned: Callable[..., Any]
    middle: Callable[..., Any]
    cross_inputs: Callable[..., Any]
    post_attention: Callable[..., Any]
    post_attention_backward: Callable[..., Any]
    middle_backward: Callable[..., Any]
    text_backward: Callable[..., Any]
    pre_attention_backward: Callable[..., Any]


EAGER = Pieces(*(globals()[name] for name in Pieces._fields))


@functools.cache
def compiled(backend: str = "inductor", *, by_autograd: bool = False) -> Pieces:
    """The pieces compiled by torch.compile, when first called: once for the first length, once more for all others.

    A piece has a compilation for each choice of what is kept and for each kind of pass, besides; torch gives up at 8.

    Args:
        backend: of torch.compile.
        by_autograd: the pieces that autograd differentiates.
    """
    import torch._dynamo

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, COMPILATIONS)
    options = COMPUTE_AGAIN if by_autograd and backend == "inductor" and TORCH < RELIABLE_GRADIENTS else None
    compile_piece = functools.partial(torch.compile, fullgraph=True, backend=backend, options=options)
    return Pieces(*(_reporting(compile_piece(piece), piece.__name__) for piece in EAGER))


def _reporting(piece: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The compiled piece, which logs the time whenever a call had to compile it."""
    from torch._dynamo.utils import counters  # takes a second to import

    def graphs() -> int:
        return counters["stats"]["unique_graphs"]

    def call(*inputs: Any) -> Any:
        before, start = graphs(), time.perf_counter()
        result = piece(*inputs)
        if graphs() != before:
            logger.info("compiled %s in %.1f s", name, time.perf_counter() - start)
        return result

    return call


@dataclass
class Saved:
    """What a block keeps for its backward pass; None is computed again."""

    attention: Attention | None = None
    between: Tensor | None = None
    cross_q: Tensor | None = None
    crossed: Tensor | None = None
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class BlockCall:
    """One block's work on one batch.

    Args:
        weights: called whenever the block computes.
        text, modulation, rotary: inputs beside the tokens.
        keep: what of `memory_plan.KEEPABLE` is kept for the backward pass.
        pieces: `EAGER` or `compiled()`.
        inputs: where the block's input waits for the backward pass; None for the device.
        attend: the self-attention of a pass without gradients.
    """

    weights: Callable[[], BlockWeights]
    text: Tensor
    modulation: Modulation
    rotary: Rotary
    keep: Kept
    pieces: Pieces
    inputs: MainMemory | None = None
    attend: Callable[..., Tensor] = flash_attention

    def plain(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D], as autograd differentiates it."""
        w, pieces, m = self.weights(), self.pieces, self.modulation
        _, _, v, queries, keys = pieces.pre_attention(x, m, self.rotary, w)
        attended = self.attend(queries, keys, v, num_heads=w.heads)
        between, _, queries, keys, values, _ = pieces.middle(x, attended, self.text, m, w)
        attended = flash_attention(queries, keys, values, num_heads=w.heads)
        return pieces.post_attention(between, attended, m, w)[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """The block's result and what of it is kept; without autograd.

        Attention's results are detached as those of `Attention` are: to the compiler, a view of another tensor is
        another kind of input.
        """
        w, pieces, m, keep = self.weights(), self.pieces, self.modulation, self.keep
        saved = Saved()
        q, k, v, queries, keys = pieces.pre_attention(x, m, self.rotary, w)
        if "qkv" in keep:
            saved.q, saved.k, saved.v = q, k, v
        del q, k
        if "attention" in keep:
            saved.attention = Attention(queries, keys, v, w.heads)
            attended = saved.attention.output
        else:
            attended = flash_attention(queries, keys, v, num_heads=w.heads).detach()
        del queries, keys, v
        between, cross_q, queries, keys, values, _ = pieces.middle(x, attended, self.text, m, w)
        attended = flash_attention(queries, keys, values, num_heads=w.heads).detach()
        del queries, keys, values
        crossed, hidden, result = pieces.post_attention(between, attended, m, w)
        if "middle" in keep:
            saved.between, saved.cross_q, saved.crossed = between, cross_q, crossed
        if "ffn" in keep:
            saved.hidden = hidden
        return result, saved

    def backward(self, grad: Tensor, x: Tensor, saved: Saved) -> tuple[Tensor, Gradients]:
        """Gradients by x and by the adapters, in the order of `BlockWeights.adapters`."""
        w = self.weights()
        if saved.attention is None:
            saved.q, saved.k, saved.v, queries, keys = self._attention_inputs(x, saved, w)
            saved.attention = Attention(queries, keys, saved.v, w.heads)
            del queries, keys  # q and k are needed longer, and give these again at little cost
        dx, d_attended, of_rest = self._behind_attention(grad, x, saved, w)
        q, k, v, queries, keys = self._attention_inputs(x, saved, w)
        d_inputs = saved.attention.backward(d_attended, queries, keys, v)
        saved.attention = saved.v = None
        del queries, keys, v, d_attended
        tokens = (dx, *d_inputs, x, q, k, *self.rotary)
        del d_inputs
        (dx,), of_qkv = in_chunks(self.pieces.pre_attention_backward, tokens, self.modulation, w)
        return dx, (*of_qkv, *of_rest)

    def _attention_inputs(self, x: Tensor, saved: Saved, w: BlockWeights) -> tuple[Tensor, ...]:
        """The projections q, k, v and the self-attention's q, k."""
        if saved.q is not None and saved.k is not None and saved.v is not None:
            return saved.q, saved.k, saved.v, *self.pieces.turned(saved.q, saved.k, self.rotary, w)
        return self.pieces.pre_attention(x, self.modulation, self.rotary, w)

    def _behind_attention(
        self, grad: Tensor, x: Tensor, saved: Saved, w: BlockWeights
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Gradients by x past the self-attention, by its result, and by the adapters behind it.

        What was kept of this part of the block is dropped.
        """
        pieces, m, text = self.pieces, self.modulation, self.text
        attended = cast(Attention, saved.attention).output
        if saved.between is None or saved.cross_q is None:
            between, q, queries, keys, values, k = pieces.middle(x, attended, text, m, w)
        else:
            between, q = saved.between, saved.cross_q
            queries, keys, values, k = pieces.cross_inputs(q, text, w)
        cross = Attention(queries, keys, values, w.heads)
        tokens = (grad, between, cross.output, saved.crossed, saved.hidden)
        saved.between = saved.cross_q = saved.crossed = saved.hidden = None
        (dx, d_crossed), of_ffn = in_chunks(pieces.post_attention_backward, tokens, m, w)
        del tokens
        d_queries, *d_text = cross.backward(d_crossed, queries, keys, values)
        del cross, queries, keys, values, d_crossed
        of_text = pieces.text_backward(*d_text, k, text, w)
        tokens = (dx, d_queries, between, q, attended)
        del dx, d_queries, between, q
        (dx, d_attended), of_middle = in_chunks(pieces.middle_backward, tokens, m, w)
        return dx, d_attended, (*of_middle, *of_text, *of_ffn)


class _Block(torch.autograd.Function):
    """A `BlockCall` as a node of autograd's graph; the adapters are inputs, so that their gradients go where
    autograd, and whoever listens to it, expects them.
    """

    @staticmethod
    def forward(ctx: Any, call: BlockCall, x: Tensor, *_adapters: Tensor) -> Tensor:
        result, ctx.saved = call.forward(x.detach())  # as in a pass without gradients: one compilation for both
        ctx.call = call
        kind = x.device.type  # autograd calls `backward` outside of the caller's autocast
        ctx.autocast = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        if call.inputs is None:
            ctx.save_for_backward(x)
        else:
            ctx.waiting = call.inputs.put(x)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        call, saved, ctx.saved = ctx.call, ctx.saved, None
        x = ctx.saved_tensors[0] if call.inputs is None else call.inputs.take(ctx.waiting)
        with torch.autocast(x.device.type, **ctx.autocast):
            dx, of_adapters = call.backward(grad.contiguous(), x.detach(), saved)
        return None, dx, *of_adapters


def run_block(call: BlockCall, x: Tensor, adapters: Sequence[Tensor]) -> Tensor:
    """[B, S, D] -> [B, S, D]. Gradients go to x and the adapters of the block's weights; see `only_adapters_train`."""
    return _Block.apply(call, x, *adapters)


def only_adapters_train(w: BlockWeights, *inputs: Tensor) -> bool:
    """Whether `run_block` gives all gradients that are wanted: none of the other weights, text or modulation."""
    return bool(w.adapters) and not any(tensor.requires_grad for tensor in (*w.frozen, *inputs))


# --------------------------------------------------------------------------------------------------------------- runner


def rotary_tables(freqs: Sequence[Tensor], grid: Sequence[int], device: torch.device) -> Rotary:
    """Cosines and sines of every token of a grid [T, h, w] in float32.

    Args:
        freqs: the host's tables of complex rotations by frame, row and column, [place, numbers] each.
    """
    parts = [
        table[:size].view(*(size if axis == other else 1 for other in range(3)), -1).expand(*grid, -1)
        for axis, (table, size) in enumerate(zip(freqs, grid, strict=True))
    ]
    rotations = torch.cat(parts, dim=-1).flatten(0, 2).unsqueeze(0)
    cos, sin = (part.float() for part in (rotations.real, rotations.imag))
    return Rotary(*(torch.stack(pair, dim=-1).flatten(2).to(device) for pair in ((cos, cos), (-sin, sin))))


def expandable_segments() -> None:
    """Have torch take memory of a CUDA device in pieces that it can join, unless the environment says how it takes it.

    What the blocks keep leaves gaps that other sizes do not fit in, a tenth of the memory otherwise. Torch reads the
    environment when it first uses a CUDA device, which imported packages may have done: so it is told as well. Torch
    before 2.9 knows the older of the two names alone.
    """
    if any(name in os.environ for name in ALLOCATOR_SETTINGS):
        return
    os.environ[ALLOCATOR_SETTINGS[0]] = setting = "expandable_segments:True"  # for the processes that this one starts
    if torch.cuda.is_available():
        tell = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
        tell(setting)
        logger.info("%s=%s", ALLOCATOR_SETTINGS[0], setting)


def free_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that this process can still have, with what torch holds in reserve, within the limit of
    `torch.cuda.set_per_process_memory_fraction`, which early torch 2 does not tell.
    """
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - allocated
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    return min(free + cached, int(total * fraction) - allocated)


@dataclass
class BlockRunner:
    """How a denoiser computes its blocks; `OmniAvatarDiT.runner`.

    Args:
        compile: compile the pieces of a block.
        activation_memory: GiB for results that are kept for the backward pass beside the blocks' inputs; "auto" for
            what the GPU has free in the first step of each size; None to keep all, or with gradient checkpointing
            none.
        reserve: bytes that "auto" leaves free for work outside the denoiser.
        moment_bytes: of a number in AdamW's moments, for "auto"; None for those of the trained weights.
        streamed: the blocks' frozen weights, if they wait in main memory; see `stream_weights`.
        parallel: the processes that make a video together; None for this one alone.
    """

    compile: bool = False
    activation_memory: float | Literal["auto"] | None = None
    reserve: int = 0
    moment_bytes: int | None = None
    streamed: StreamedWeights | None = None
    parallel: SequenceParallel | None = None
    inputs: MainMemory | None = None
    """Where the blocks' inputs wait, once a pass has asked for it."""
    rotaries: dict[Any, Rotary] = field(default_factory=dict, repr=False)
    plans: dict[BlockShape, tuple[Kept, ...]] = field(default_factory=dict, repr=False)

    def stream_weights(self, blocks: Sequence[Any], device: torch.device) -> None:
        """Let the blocks' frozen weights wait in main memory; the parameters become empty."""
        self.streamed = StreamedWeights([block_weights(block).frozen for block in blocks], device)

    def prepare(
        self,
        dit: Any,
        tokens: Tensor,
        text: Tensor,
        t_mod: Tensor,
        grid: tuple[int, ...],
        recompute: bool,
        offload: bool = False,
    ) -> Callable[[int, Tensor], Tensor]:
        """What runs block i on tokens [B, S, D] in this pass.

        Args:
            dit: the denoiser.
            tokens: those of the first block, with `parallel` this process's part of them.
            text: [B, L, D].
            t_mod: the timestep's modulation [B, 6, D].
            grid: latent frames, rows and columns of tokens.
            recompute: gradient checkpointing, where `activation_memory` does not say more.
            offload: let the blocks' inputs wait in main memory.

        Raises:
            ValueError: gradients are wanted of several processes that share a sequence.
        """
        key = (grid, tokens.device)
        if key not in self.rotaries:
            self.rotaries[key] = rotary_tables(dit.freqs, grid, tokens.device)
        rotary, attend = self.rotaries[key], flash_attention
        if self.parallel is not None:
            if torch.is_grad_enabled():
                raise ValueError("--use_usp is for generating, it gives no gradients: load the model without it.")
            rotary = Rotary(*(self.parallel.share(table) for table in rotary))
            attend = functools.partial(self.parallel.attention, flash_attention, math.prod(grid))
        pieces = compiled() if self.compile else EAGER
        if offload and self.inputs is None:
            self.inputs = MainMemory(tokens.device)
        plan: tuple[Kept, ...] | None = None

        def run(index: int, x: Tensor) -> Tensor:
            nonlocal plan
            block = dit.blocks[index]
            weights = block_weights(block)
            modulation = Modulation(*(block.modulation.to(t_mod) + t_mod).chunk(6, dim=1))
            source = functools.partial(self._weights, index, weights)
            call = BlockCall(source, text, modulation, rotary, frozenset(), pieces, attend=attend)
            if not torch.is_grad_enabled():
                return call.plain(x)
            if not only_adapters_train(weights, text, *modulation):
                if self.compile:
                    call = replace(call, pieces=compiled(by_autograd=True))
                return checkpoint(call.plain, x, use_reentrant=False) if recompute else call.plain(x)
            plan = plan or self.plan(dit, x, recompute, offload)
            call = replace(call, keep=plan[index], inputs=self.inputs if offload else None)
            return run_block(call, x, weights.adapters)

        return run

    def _weights(self, index: int, weights: BlockWeights) -> BlockWeights:
        if self.streamed is not None:
            return with_values(weights, self.streamed.fetch(index))
        if not weights.own.q.weight.numel():
            raise UnsupportedLayerError(
                "a block's weights are elsewhere, for DiffSynth or DeepSpeed to bring when it calls the block; "
                "use --stream_weights instead of its offloading, or --reference."
            )
        return weights

    def plan(self, dit: Any, tokens: Tensor, recompute: bool, offload: bool) -> tuple[Kept, ...]:
        """What each block keeps; the same in all steps of one size."""
        layers = len(dit.blocks)
        if self.activation_memory is None:
            return (frozenset() if recompute else frozenset(KEEPABLE),) * layers
        block = dit.blocks[0]
        shape = BlockShape(
            batch=tokens.shape[0],
            tokens=tokens.shape[1],
            dim=block.dim,
            ffn_dim=block.ffn_dim,
            heads=block.num_heads,
            element_size=tokens.element_size(),
        )
        if shape not in self.plans:
            if self.activation_memory == "auto":
                budget = self._free_for_keeping(dit, shape, tokens.device, offload)
            else:
                budget = int(self.activation_memory * GIB)
            self.plans[shape] = plan = plan_kept(shape, layers, budget)
            logger.info(
                "%d x %d tokens: %.1f of %.1f GiB keep %s",
                *(shape.batch, shape.tokens, kept_bytes(shape, plan) / GIB, budget / GIB, describe(plan)),
            )
        return self.plans[shape]

    def _free_for_keeping(self, dit: Any, shape: BlockShape, device: torch.device, offload: bool) -> int:
        if device.type != "cuda":
            raise ValueError(f"--activation_memory auto measures a CUDA device, this is {device.type}; give GiB.")
        trained = [value for value in dit.parameters() if value.requires_grad]
        moments = sum(2 * value.numel() * (self.moment_bytes or value.element_size()) for value in trained)
        return auto_budget(
            shape,
            len(dit.blocks),
            moments,
            free=free_memory(device),
            offload=offload,
            reserve=self.reserve,
            first=not self.plans,
        )
