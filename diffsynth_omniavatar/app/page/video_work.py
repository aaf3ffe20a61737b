"""A video that the page makes: a job of `generate` or `dub`, in the queue."""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..jobs import Job
from .faults import named
from .shelf import LoRAs, Shelf
from .work_queue import Work

if TYPE_CHECKING:
    from ...generation.preview import Preview
    from ...generation.result import GeneratedVideo

LATENT_MILLISECONDS = 160
"""A latent frame stands for four video frames."""
LARGEST_PREVIEW = 320
"""Pixels of its longer side."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Order:
    """What somebody has filled in and the page has checked."""

    tab: str
    """Where: "talk", "dub", "compare-talk" or "compare-dub"."""
    title: str
    """In a line."""
    model: str
    loras: LoRAs
    seed: int
    command: str
    """The equal command line."""
    files: dict[Path, str]
    """The page's files that belong to it, and how people call them."""
    notes: tuple[str, ...]
    form: dict[str, Any]
    """Values of the form's fields, by their names; files as the page keeps them."""


class VideoWork(Work):
    """A video that is to be made.

    Args:
        owner: see `Work`.
        job: the checked request.
        order: what was asked for.
        shelf: where its model comes from.
    """

    def __init__(self, owner: str, job: Job, order: Order, shelf: Shelf) -> None:
        super().__init__(owner)
        self.job, self.order, self._shelf = job, order, shelf
        self.stage = "Waiting"
        self.made: GeneratedVideo | None = None
        self.preview: Preview | None = None
        self.steps_done = 0
        self._began = self._stepped_at = 0.0
        """When the work on the video began, and when its last step was done, seconds of `time.monotonic`."""

    def run(self) -> None:
        """Load the model and make the video."""
        if self._shelf.loaded() != self.order.model:
            self.stage = f"Loading {self.order.model}"
        try:
            with self._shelf.pipeline(self.order.model, self.order.loras) as pipe:
                self.go_on()
                self.stage = "Reading the speech"
                self._began = time.monotonic()
                self.made = self.job.make(pipe, show_progress=False, on_preview=self._stepped)
        except (ValueError, OSError) as error:
            raise ValueError(named(str(error), self.order.files)) from error

    def _stepped(self, preview: Preview) -> None:
        self.steps_done += 1
        self._stepped_at = time.monotonic()
        self.preview = preview
        is_last = preview.step == preview.steps
        step = "turning latents into pictures" if is_last else f"step {preview.step + 1} of {preview.steps}"
        self.stage = f"Chunk {preview.chunk} of {preview.chunks}, {step}"
        self.go_on()

    @property
    def video(self) -> Path | None:
        """The finished video, or what is done of a stopped one; None where there is none."""
        return self.job.out if self.is_over and self.job.out.is_file() else None

    @property
    def part_done(self) -> float:
        """0 to 1."""
        return self.steps_done / (self.preview.chunks * self.preview.steps) if self.preview else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Until it is done, as the steps until now took; None before the second one, and when it takes longer."""
        if self.steps_done < 2 or self.is_over:
            return None
        left = (self._stepped_at - self._began) * (1 / self.part_done - 1)
        return max(left - (time.monotonic() - self._stepped_at), 0.0) or None


@lru_cache(maxsize=8)
def moving_picture(preview: Preview) -> str:
    """A preview as an address that holds the picture itself: the predicted video, small, again and again."""
    from PIL import Image

    height, width = preview.pictures.shape[1:3]
    scale = LARGEST_PREVIEW / max(height, width)
    size = (round(width * scale), round(height * scale))
    pictures = [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one in preview.pictures]
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=LATENT_MILLISECONDS, loop=0, quality=70
    )
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
