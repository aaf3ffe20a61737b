"""The causal denoiser: a few latent frames at a time, which see those before through a rolling cache.

The weights, names and blocks are those of `OmniAvatarDiT`; what differs is whom a token sees. A video is made in chunks
of latent frames. The tokens of a chunk see one another, the first frames of the video (the sink) and the last frames
before the chunk, a window of constant length in all. Of frames that are finished each block keeps the projections of k
and v, before norm and rotation: a frame's place is counted within the window, from 0, so that it never leaves the
lengths that were trained, and moves as the window does.

Source: Lip Forcing, https://github.com/T-64/LipForcing; the cache as in Huang et al. 2025, Self Forcing,
arXiv:2506.08009, the sink as in Xiao et al. 2023, arXiv:2309.17453.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..host import flash_attention
from .blocks.forward import behind_attention, cross_queries, post_attention, projections, text_inputs, turn
from .blocks.runner import BlockRunner
from .blocks.weights import BlockWeights, Modulation, Rotary, block_weights
from .config import AUDIO_WINDOW
from .dit import AudioPack, OmniAvatarDiT


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a chunk sees, in latent frames. The default is Lip Forcing's.

    Raises:
        ValueError: the sizes do not fit together.
    """

    chunk: int = 3
    """Frames that are made together."""
    seen: int = 7
    """Frames that one of them sees at most, those of its chunk too."""
    sink: int = 1
    """The first frames of the video, which are always seen."""

    def __post_init__(self) -> None:
        if not (self.chunk >= 1 and 0 <= self.sink <= self.kept):
            raise ValueError(
                f"a window of {self.seen} latent frames with a chunk of {self.chunk} and a sink of {self.sink}: wanted "
                "a chunk of 1 or more, and room for it and the sink."
            )

    @property
    def kept(self) -> int:
        """Frames before a chunk that it sees at most."""
        return self.seen - self.chunk

    def roll(self, tokens: Tensor, per_frame: int) -> Tensor:
        """What is kept of tokens [B, T * per_frame, D]: the sink, and the last frames."""
        most, sink = self.kept * per_frame, self.sink * per_frame
        if tokens.shape[1] <= most:
            return tokens
        return torch.cat([tokens[:, :sink], tokens[:, tokens.shape[1] - (most - sink) :]], dim=1)


@dataclass
class CausalRunner(BlockRunner):
    """Computes the blocks of a chunk, with the keys and values of the frames before it; for one video.

    Attributes:
        window: whom a chunk sees.
        keeps: whether the keys and values of the next pass are kept.
        kept: for each block, the projections of k and v of the frames before, [B, S, D] each.
        text: for each block, the cross-attention's k and v.
    """

    window: Window = Window()
    keeps: bool = False
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    text: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

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
        """As `BlockRunner.prepare`, for the tokens of a chunk and the text of the video; without gradients."""
        per_frame = math.prod(grid[1:])
        before = self.kept[0][0].shape[1] // per_frame if self.kept else 0
        rotary = self.rotary(dit, (before + grid[0], *grid[1:]), tokens.device)

        def run(index: int, x: Tensor) -> Tensor:
            block = dit.blocks[index]
            w = self._weights(index, block_weights(block))
            m = Modulation(*(block.modulation.to(t_mod) + t_mod).chunk(6, dim=1))
            if index not in self.text:
                self.text[index] = text_inputs(text, w)[:2]
            between, q = behind_attention(x, self._attention(index, x, m, rotary, w, per_frame), m, w)
            attended = flash_attention(cross_queries(q, w), *self.text[index], num_heads=w.heads)
            return post_attention(between, attended, m, w)[-1]

        return run

    def _attention(
        self, index: int, x: Tensor, m: Modulation, rotary: Rotary, w: BlockWeights, per_frame: int
    ) -> Tensor:
        """The self-attention of a chunk's tokens [B, S, D]; `rotary` is that of the window, whose last they are."""
        q, k, v = projections(x, m, w)
        if index in self.kept:
            k, v = (torch.cat([past, own], dim=1) for past, own in zip(self.kept[index], (k, v), strict=True))
        if self.keeps:
            self.kept[index] = (self.window.roll(k, per_frame), self.window.roll(v, per_frame))
        own = Rotary(*(table[:, -q.shape[1] :] for table in rotary))
        queries, keys = turn(q, w.own.norm_q, own, w.eps), turn(k, w.own.norm_k, rotary, w.eps)
        return flash_attention(queries, keys, v, num_heads=w.heads)


class CausalDenoiser:
    """Predicts the flow of one chunk of a video after the other.

    Args:
        dit: a denoiser that was trained causally.
        context: text embeddings [B, token, text_dim].
        window: whom a chunk sees.
    """

    def __init__(self, dit: OmniAvatarDiT, context: Tensor, window: Window = Window()) -> None:
        self.window = window
        self._dit, self._context = dit, context
        self._runner = CausalRunner(window=window)

    @torch.no_grad()
    def __call__(self, x: Tensor, timestep: Tensor, y: Tensor, audio_emb: Tensor, keep: bool = False) -> Tensor:
        """The flow `noise - clean` of the noisy latents [B, 16, F, h, w] of the chunk behind the kept ones.

        Args:
            x: the latents; F is the chunk's length.
            timestep: [1] or [B], 0..1000.
            y: the conditioning of the chunk [B, in_dim - 16, F, h, w].
            audio_emb: its audio features: [B, 4F-3, audio_dim] in the first chunk, [B, 4F, audio_dim] in the others.
            keep: the chunk is finished, and those behind it see what it is here. x should be its clean latents.

        Raises:
            ValueError: the latents are not those of a chunk, or the audio features have another length.
        """
        is_first = not self._runner.kept
        got, frames = (x.shape[2], audio_emb.shape[1]), self.window.chunk
        if got != (frames, rows := AUDIO_WINDOW * frames - (AUDIO_WINDOW - 1 if is_first else 0)):
            raise ValueError(
                f"a chunk of {got[0]} latent frames with {got[1]} rows of audio features, wanted {frames} with {rows}."
            )
        packed = pack_chunk(self._dit.audio_proj, audio_emb, is_first)
        self._runner.keeps = keep
        return self._dit.predict(x, timestep, self._context, y, packed, self._runner)

    @property
    def kept_numbers(self) -> int:
        """How many numbers are kept of the frames before; constant once the window is full."""
        return sum(tensor.numel() for pair in self._runner.kept.values() for tensor in pair)


def pack_chunk(audio_proj: AudioPack, rows: Tensor, is_first: bool) -> Tensor:
    """What packing the whole audio gives for a chunk: [B, 4F-3, C] if it is the first, else [B, 4F, C] -> [B, F, H]."""
    if is_first:
        return audio_proj(rows)
    # The pack makes a latent frame of the first row alone; here that one is of no use.
    return audio_proj(torch.cat([rows[:, :1], rows], dim=1))[:, 1:]
