"""What `generate` and `dub` hand back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..media.clip import Clip


@dataclass(frozen=True)
class GeneratedVideo:
    """What `generate` made."""

    path: Path | None
    """The file; None where the video is in memory."""
    frames: int
    height: int
    width: int
    chunks: int
    steps: int
    seconds: float
    """Time it took."""
    clip: Clip | None = None
    """The video in memory, if there is no file."""

    @property
    def sides(self) -> str:
        """In words, height first, as sizes of the model are named."""
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class DubbedVideo(GeneratedVideo):
    """What `dub` made. Frames are the source's pictures, height and width their size."""

    dubbed: int = 0
    """Frames that show a new mouth."""

    untouched: Mapping[str, int] = field(default_factory=dict)
    """How many of the other frames there are, by the reason."""

    @property
    def sides(self) -> str:
        """In words, width first, as sizes of footage are named."""
        return f"{self.width}x{self.height}"
