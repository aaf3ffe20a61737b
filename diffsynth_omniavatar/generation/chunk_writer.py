"""The frames of a chunk go to the video while the GPU still decodes those behind them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..media.clip import ClipWriter
from ..media.images import to_bytes
from ..media.writer import VideoWriter, not_finite
from .masks import paste_outside_mouth


@dataclass(frozen=True)
class _Arriving:
    """Frames on their way to the CPU's memory."""

    places: range
    """Where they stand in the chunk."""
    frames: Tensor
    finite: Tensor
    """Whether all their values were numbers."""
    there: torch.cuda.Event | None

    @classmethod
    def send(cls, places: range, frames: Tensor, as_bytes: bool) -> _Arriving:
        """Frames [3, n, H, W] in [-1, 1]; as bytes a GPU makes the pixels of them, many times as fast."""
        finite = torch.isfinite(frames).all()
        sent = to_bytes(frames) if as_bytes else frames.float()
        sent = sent.permute(1, 2, 3, 0).contiguous()
        if not frames.is_cuda:
            return cls(places, sent, finite, None)
        pixels, numbers = (
            torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(one, non_blocking=True)
            for one in (sent, finite)
        )
        there = torch.cuda.Event()
        there.record()
        return cls(places, pixels, numbers, there)


class ChunkWriter:
    """Writes what is kept of a chunk; called with its frames as they come, and `finish` after the last.

    Frames that a GPU computes are copied when it has come to them. So each part is written at the next call: then the
    GPU has the next frames to work on while x264 takes these.

    Args:
        writer: the video.
        kept: which frames of the chunk it shows.
        pasted: the mouth mask [1 or L, H, W] outside which the source's pixels are taken; None for none.
        source: what the chunk shows, [3, L, H, W] in [-1, 1].
    """

    def __init__(self, writer: VideoWriter | ClipWriter, kept: range, pasted: Tensor | None, source: Tensor) -> None:
        self._writer, self._kept, self._pasted, self._source = writer, kept, pasted, source
        self._arriving: _Arriving | None = None
        self._seen = 0

    def __call__(self, frames: Tensor) -> None:
        """Take the next frames, [3, n, H, W] in [-1, 1]."""
        start = self._seen
        self._seen += frames.shape[1]
        places = range(max(start, self._kept.start), min(self._seen, self._kept.stop))
        arriving = None
        if places:
            shown = frames[:, places.start - start : places.stop - start]
            arriving = _Arriving.send(places, shown, as_bytes=self._pasted is None)
        self.finish()
        self._arriving = arriving

    def finish(self) -> None:
        """Write what is left.

        Raises:
            ValueError: frames have values that are no numbers.
        """
        if self._arriving is None:
            return
        arrived, self._arriving = self._arriving, None
        if arrived.there is not None:
            arrived.there.synchronize()
        if not arrived.finite:
            raise not_finite(self._writer.path)
        frames = arrived.frames
        if self._pasted is not None:
            places = slice(arrived.places.start, arrived.places.stop)
            mask = self._pasted if len(self._pasted) == 1 else self._pasted[places]
            frames = paste_outside_mouth(frames.permute(3, 0, 1, 2), self._source[:, places], mask).permute(1, 2, 3, 0)
        self._writer.write(frames)
