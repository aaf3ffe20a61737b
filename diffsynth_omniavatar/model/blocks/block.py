"""One block on one batch: the pieces and the attentions in their order, and what is kept for the backward pass.

Where only adapters (LoRA) and the input need gradients, the backward pass is written out (`run_block`): it computes
again what was not kept (`memory_plan`) and nothing else. Otherwise autograd differentiates the pieces
(`BlockCall.plain`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ...host import flash_attention
from .attention import Attention
from .attention_fp8 import Fp8Attention
from .attention_fp8 import attend as attend_fp8
from .backward import Gradients, in_chunks
from .memory_plan import Kept
from .pieces import Pieces
from .quantized import QuantizedTokens
from .streaming import MainMemory
from .weights import BlockWeights, Modulation, Rotary


@dataclass
class Saved:
    """What a block keeps for its backward pass; None is computed again."""

    attention: Attention | Fp8Attention | None = None
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
        keep: which of `memory_plan.KEEPABLE` are kept for the backward pass.
        pieces: `EAGER` or `compiled()`.
        inputs: where the block's input waits for the backward pass; None for the device.
        attend: the self-attention of a pass without gradients.
        attention_fp8: the self-attention in float8, instead; but `plain` has no gradients then.
    """

    weights: Callable[[], BlockWeights]
    text: Tensor
    modulation: Modulation
    rotary: Rotary
    keep: Kept
    pieces: Pieces
    inputs: MainMemory | None = None
    attend: Callable[..., Tensor] = flash_attention
    attention_fp8: bool = False

    def plain(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D], as autograd differentiates it."""
        w, pieces, m = self.weights(), self.pieces, self.modulation
        attended: Tensor | QuantizedTokens
        if self.attention_fp8:
            attended = attend_fp8(pieces.pre_attention_fp8(x, m, self.rotary, w), w.heads)
        else:
            _, _, v, queries, keys = pieces.pre_attention(x, m, self.rotary, w)
            attended = self.attend(queries, keys, v, num_heads=w.heads)
        between, _, queries, keys, values, _ = pieces.middle(x, attended, self.text, m, w)
        attended = flash_attention(queries, keys, values, num_heads=w.heads)
        return pieces.post_attention(between, attended, m, w)[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """The block's result and what is kept; without autograd.

        Attention's results are detached as those of `Attention` are: to the compiler, a view of another tensor is
        another kind of input.
        """
        w, pieces, m, keep = self.weights(), self.pieces, self.modulation, self.keep
        saved = Saved()
        q, k, v, queries, keys = pieces.pre_attention(x, m, self.rotary, w)
        if "qkv" in keep:
            saved.q, saved.k, saved.v = q, k, v
        del q, k
        attended: Tensor | QuantizedTokens
        if "attention" in keep:
            saved.attention = self._attention(queries, keys, v, w)
            attended = saved.attention.output
        elif self.attention_fp8:
            attended = attend_fp8(pieces.to_fp8(v, queries, keys, w), w.heads)
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
            saved.attention = self._attention(queries, keys, saved.v, w)
            del queries, keys  # q and k are needed longer, and give these again at little cost
        dx, d_attended, of_rest = self._behind_attention(grad, x, saved, w)
        q, k, v, queries, keys = self._attention_inputs(x, saved, w)
        if self.attention_fp8:
            queries, keys, v = self.pieces.widened(self.pieces.to_fp8(v, queries, keys, w))
        d_inputs = saved.attention.backward(d_attended, queries, keys, v)
        saved.attention = saved.v = None
        del queries, keys, v, d_attended
        tokens = (dx, *d_inputs, x, q, k, *self.rotary)
        del d_inputs
        (dx,), of_qkv = in_chunks(self.pieces.pre_attention_backward, tokens, self.modulation, w)
        return dx, (*of_qkv, *of_rest)

    def _attention(self, queries: Tensor, keys: Tensor, v: Tensor, w: BlockWeights) -> Attention | Fp8Attention:
        if self.attention_fp8:
            return Fp8Attention(self.pieces.to_fp8(v, queries, keys, w), w.heads, self.pieces.widened)
        return Attention(queries, keys, v, w.heads)

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
        attended = cast(Attention | Fp8Attention, saved.attention).output
        if isinstance(attended, QuantizedTokens):
            attended = pieces.widened(attended)
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
