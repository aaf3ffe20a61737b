"""The transformer's blocks, computed faster: the host's weights and numbers, with fewer and larger steps.

`BlockRunner` says how: compiled or not, what is kept for the backward pass, where the weights wait, on how many GPUs.
A block is computed by `block`, from the pieces of `forward` and `backward`.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...host import flash_attention
from .block import BlockCall, only_adapters_train, run_block
from .gpu_memory import free_memory
from .memory_plan import GIB, KEEPABLE, BlockShape, Kept, describe, kept_bytes, plan_kept
from .pieces import EAGER, compiled
from .process_grid import PassParallel, ProcessGrid
from .sequence_parallel import SequenceParallel
from .step_memory import auto_budget
from .streaming import MainMemory, ShardedWeights, StreamedWeights
from .weights import BlockWeights, Modulation, Rotary, UnsupportedLayerError, block_weights, with_values

logger = logging.getLogger(__name__)


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
        streamed: the blocks' frozen weights, if they are offloaded to CPU memory or spread over GPUs; see
            `stream_weights` and `shard_weights`.
        parallel: the processes that make a video together; None for this one alone.
        grid: these processes, where they may share out the passes of guidance.
        attention_fp8: the self-attention in float8, where no gradients are wanted but LoRA's; not with `parallel`.

    Raises:
        ValueError: both `attention_fp8` and `parallel`.
    """

    compile: bool = False
    activation_memory: float | Literal["auto"] | None = None
    reserve: int = 0
    moment_bytes: int | None = None
    streamed: StreamedWeights | None = None
    parallel: SequenceParallel | None = None
    grid: ProcessGrid | None = None
    attention_fp8: bool = False
    inputs: MainMemory | None = None
    """Where the blocks' inputs wait, once a pass has asked for it."""
    rotaries: dict[Any, Rotary] = field(default_factory=dict, repr=False)
    plans: dict[BlockShape, tuple[Kept, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.attention_fp8 and self.parallel is not None:
            raise ValueError("--quantize_attention does not go with --use_usp: leave one out.")

    @contextmanager
    def sharing_passes(self, passes: int) -> Iterator[PassParallel | None]:
        """Within the block, `parallel` are those that share this process's pass; gives those that make the others."""
        if self.grid is None:
            yield None
            return
        everybody = self.parallel
        self.parallel, others = self.grid.arrange(passes)
        try:
            yield others
        finally:
            self.parallel = everybody

    def stream_weights(self, blocks: Sequence[Any], device: torch.device, cyclic: bool = False) -> None:
        """Offload the blocks' frozen weights to CPU memory; the parameters become empty.

        Args:
            cyclic: passes have no gradients.
        """
        self.streamed = StreamedWeights([block_weights(block).frozen for block in blocks], device, cyclic)

    def shard_weights(self, blocks: Sequence[Any], device: torch.device) -> None:
        """Leave each of the processes that make a video together a part of the blocks' weights; the parameters become
        empty.
        """
        self.streamed = ShardedWeights([block_weights(block).frozen for block in blocks], device, cyclic=True)

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
            offload: offload the blocks' inputs to CPU memory.

        Raises:
            ValueError: gradients are wanted of several processes that share a sequence.
        """
        rotary, attend = self.rotary(dit, grid, tokens.device), flash_attention
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
            call = BlockCall(source, text, modulation, rotary, frozenset(), pieces, None, attend, self.attention_fp8)
            if not torch.is_grad_enabled():
                return call.plain(x)
            if not only_adapters_train(weights, text, *modulation):
                call = replace(call, attention_fp8=False)
                if self.compile:
                    call = replace(call, pieces=compiled(by_autograd=True))
                return checkpoint(call.plain, x, use_reentrant=False) if recompute else call.plain(x)
            plan = plan or self.plan(dit, x, recompute, offload)
            call = replace(call, keep=plan[index], inputs=self.inputs if offload else None)
            return run_block(call, x, weights.adapters)

        return run

    def rotary(self, dit: Any, grid: tuple[int, ...], device: torch.device) -> Rotary:
        """`rotary_tables`, computed once for each grid and device."""
        if (grid, device) not in self.rotaries:
            self.rotaries[grid, device] = rotary_tables(dit.freqs, grid, device)
        return self.rotaries[grid, device]

    @property
    def add_per_frame(self) -> Callable[..., Tensor]:
        """`forward.add_per_frame`, compiled where autograd does not look."""
        return (compiled() if self.compile and not torch.is_grad_enabled() else EAGER).add_per_frame

    def _weights(self, index: int, weights: BlockWeights) -> BlockWeights:
        if self.streamed is not None:
            return with_values(weights, self.streamed.fetch(index))
        if not next(weights.frozen).numel():
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
            attention_fp8=self.attention_fp8,
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
