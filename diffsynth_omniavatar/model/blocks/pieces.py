"""The pieces of a block's passes, as they are or compiled."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .backward import middle_backward, post_attention_backward, pre_attention_backward, text_backward
from .forward import (
    add_per_frame,
    cross_inputs,
    middle,
    post_attention,
    pre_attention,
    pre_attention_fp8,
    to_fp8,
    turned,
    widened,
)

logger = logging.getLogger(__name__)

COMPILATIONS = 64
"""Of one piece, at most."""
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
COMPARED_GRADIENTS = (2, 11)
"""The first torch whose compiled gradients of all weights were compared with DiffSynth's on a GPU."""
RELIABLE_GRADIENTS = (2, 14)
"""The first torch whose compiled kernels wait for numbers that other threads write before they read them back
(https://github.com/pytorch/pytorch/issues/190517). Before it, gradients of narrow models were garbage on a GPU."""
COMPUTE_AGAIN = {f"realize_{what}_threshold": 1000 for what in ("reads", "acc_reads", "opcount")}


class Pieces(NamedTuple):
    """The functions of `forward` and `backward`, compiled or as they are."""

    add_per_frame: Callable[..., Any]
    pre_attention: Callable[..., Any]
    pre_attention_fp8: Callable[..., Any]
    to_fp8: Callable[..., Any]
    widened: Callable[..., Any]
    turned: Callable[..., Any]
    middle: Callable[..., Any]
    cross_inputs: Callable[..., Any]
    post_attention: Callable[..., Any]
    post_attention_backward: Callable[..., Any]
    middle_backward: Callable[..., Any]
    text_backward: Callable[..., Any]
    pre_attention_backward: Callable[..., Any]


EAGER = Pieces(
    add_per_frame=add_per_frame,
    pre_attention=pre_attention,
    pre_attention_fp8=pre_attention_fp8,
    to_fp8=to_fp8,
    widened=widened,
    turned=turned,
    middle=middle,
    cross_inputs=cross_inputs,
    post_attention=post_attention,
    post_attention_backward=post_attention_backward,
    middle_backward=middle_backward,
    text_backward=text_backward,
    pre_attention_backward=pre_attention_backward,
)


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
