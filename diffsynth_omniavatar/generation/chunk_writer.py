"""The frames of a chunk go to the video while the GPU still decodes those behind them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..media.clip import ClipWriter
from ..media.writer import VideoWriter
from .masks import paste_outside_mouth


@dataclass(frozen=True)
class _Copy:
    """Frames on their way from a GPU: `ready` tells when they are there."""

    frames: Tensor
    ready: torch.cuda.Event | None

    @classmethod
    def start(cls, frames: Tensor) -> _Copy:
        if not frames.is_cuda:
            return cls(frames, None)
        copy = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
        copy.copy_(frames, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return cls(copy, ready)

    def wait(self) -> Tensor:
        if self.ready is not None:
            self.ready.synchronize()
        return self.frames.float()


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
        self._copy: tuple[range, _Copy] | None = None
        self._seen = 0

    def __call__(self, frames: Tensor) -> None:
        """Take the next frames, [3, n, H, W] in [-1, 1]."""
        coming = range(self._seen, self._seen + frames.shape[1])
        self._seen = coming.stop
        copy = _Copy.start(frames)
        self.finish()
        self._copy = coming, copy

    def finish(self) -> None:
        """Write what is left."""
        if self._copy is None:
            return
        places, copy = self._copy
        self._copy = None
        shown = range(max(places.start, self._kept.start), min(places.stop, self._kept.stop))
        if not shown:
            return
        frames = copy.wait()[:, shown.start - places.start : shown.stop - places.start]
        if self._pasted is not None:
            mask = self._pasted if len(self._pasted) == 1 else self._pasted[shown.start : shown.stop]
            frames = paste_outside_mouth(frames, self._source[:, shown.start : shown.stop], mask)
        self._writer.write(frames.permute(1, 2, 3, 0))
