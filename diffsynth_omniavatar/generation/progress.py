"""How far a video is: a bar on a terminal, else a line a chunk."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.progress import Progress

from ..system.progress import progress_bar

logger = logging.getLogger(__name__)


class ChunkProgress:
    """What is told of a video that is made chunk by chunk.

    Args:
        bar: where it is drawn; nothing is where it is disabled.
        chunks: of the whole video.
        steps: denoising steps of a chunk.
        log: write a line for each chunk.
    """

    def __init__(self, bar: Progress, chunks: int, steps: int, log: bool) -> None:
        self._bar, self._chunks, self._log = bar, chunks, log
        self._task = bar.add_task("chunk 1", total=chunks * steps)
        self._started = time.monotonic()
        self._frames = 0
        self._done = 0

    def wrote(self, frames: int) -> None:
        """Count frames that were written."""
        self._frames += frames

    def chunk(self) -> Callable[[Iterable[Any]], Iterator[Any]]:
        """What the host takes as `progress_bar_cmd` for the next chunk."""
        number = self._done + 1

        def steps_of(timesteps: Iterable[Any]) -> Iterator[Any]:
            speed = f", {self._speed():.2g} frames/s" if self._frames else ""
            self._bar.update(self._task, description=f"chunk {number}/{self._chunks}{speed}")
            if self._log:
                logger.info("Chunk %d of %d%s%s.", number, self._chunks, speed, self._left())
            for timestep in timesteps:
                yield timestep
                self._bar.advance(self._task)
            self._done = number

        return steps_of

    def _speed(self) -> float:
        """Written frames per second."""
        return self._frames / max(time.monotonic() - self._started, 1e-3)

    def _left(self) -> str:
        if not self._done:
            return ""
        left = (time.monotonic() - self._started) / self._done * (self._chunks - self._done)
        return f", {left // 60:.0f}:{left % 60:02.0f} left"


@contextlib.contextmanager
def progress(chunks: int, steps: int, show: bool) -> Iterator[ChunkProgress]:
    """What tells of a video of so many chunks, with so many denoising steps each; `show` is whether it does."""
    with progress_bar("steps", show) as bar:
        yield ChunkProgress(bar, chunks, steps, log=show and bar.disable)
