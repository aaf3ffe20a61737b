"""Several GPUs make one video: each computes the denoiser for a part of the tokens (Ulysses).

All steps but self-attention take each token by itself. For self-attention the processes exchange tokens for heads, so
that each has all tokens of its part of the heads, and exchange back: nothing is approximated. Source:
DeepSpeed-Ulysses, arXiv:2309.14509.

Shapes: P processes, tokens [B, S, D], of which each process holds [B, s, D], s = ceil(S / P); behind the last token
there are zeros.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SequenceParallel:
    """The place of this process among those that share the tokens of a pass: all of torchrun's, or those of `group`."""

    rank: int
    ranks: int
    group: Any = None

    @classmethod
    def start(cls, device: str | torch.device) -> SequenceParallel:
        """Meet the other processes, each with a GPU of its own, or all on the CPU.

        Args:
            device: "cuda" or "cpu".

        Raises:
            ValueError: torchrun has not started this process, or there are too few GPUs.
        """
        device = torch.device(device)
        if "RANK" not in os.environ:
            raise ValueError("--use_usp: start with `torchrun --nproc_per_node GPUS -m diffsynth_omniavatar generate`.")
        if device.index is not None:
            raise ValueError(f"--use_usp gives each process a GPU of its own: leave --device {device} out.")
        if device.type == "cuda":
            place = int(os.environ["LOCAL_RANK"])
            if place >= torch.cuda.device_count():
                raise ValueError(f"--use_usp: there are {torch.cuda.device_count()} GPUs; lower --nproc_per_node.")
            torch.cuda.set_device(place)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    def check(self, heads: int) -> None:
        """Refuse heads that the processes cannot share equally.

        Raises:
            ValueError: as said.
        """
        if heads % self.ranks:
            raise ValueError(
                f"--use_usp: {self.ranks} processes cannot share the model's {heads} heads equally; "
                "change --nproc_per_node."
            )

    def share(self, whole: Tensor, dim: int = 1) -> Tensor:
        """This process's part of a tensor whose axis `dim` goes over all tokens."""
        tokens = whole.shape[dim]
        size = -(-tokens // self.ranks)
        start = min(self.rank * size, tokens)
        part = whole.narrow(dim, start, min(size, tokens - start))
        missing = list(part.shape)
        missing[dim] = size - part.shape[dim]
        return torch.cat([part, part.new_zeros(missing)], dim).contiguous()

    def join(self, part: Tensor, tokens: int) -> Tensor:
        """All processes' parts [B, s, C] -> [B, tokens, C]."""
        parts = part.new_empty(self.ranks * len(part), *part.shape[1:])
        dist.all_gather_into_tensor(parts, part.contiguous(), group=self.group)
        return parts.unflatten(0, (self.ranks, -1)).transpose(0, 1).flatten(1, 2)[:, :tokens]

    def attention(
        self, attend: Callable[..., Tensor], tokens: int, q: Tensor, k: Tensor, v: Tensor, num_heads: int
    ) -> Tensor:
        """Self-attention of all tokens; q, k, v and the result are this process's part [B, s, D].

        Args:
            attend: attention on whole sequences, called with q, k, v and `num_heads`.
            tokens: how many there are in all.
        """
        size = q.shape[1]
        whole = [self._exchange(x.unflatten(2, (self.ranks, -1)).permute(2, 0, 1, 3)) for x in (q, k, v)]
        q, k, v = (x.transpose(0, 1).flatten(1, 2)[:, :tokens] for x in whole)
        attended = attend(q, k, v, num_heads=num_heads // self.ranks)
        padded = F.pad(attended, (0, 0, 0, self.ranks * size - tokens))
        parts = self._exchange(padded.unflatten(1, (self.ranks, size)).transpose(0, 1))
        return parts.permute(1, 2, 0, 3).flatten(2)

    def _exchange(self, parts: Tensor) -> Tensor:
        """Send parts[i] to process i; gives what process i sent, at place i."""
        received: Any = torch.empty(parts.shape, dtype=parts.dtype, device=parts.device)
        dist.all_to_all_single(received, parts.contiguous(), group=self.group)
        return received
