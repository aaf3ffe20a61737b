"""The host's attention, with a backward pass of its own whose q, k and v need not be kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from ...host import flash_attention


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
