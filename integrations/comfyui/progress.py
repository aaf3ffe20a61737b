"""ComfyUI's progress bar, preview and interruption, as the package takes them."""

from __future__ import annotations

import comfy.model_management
import comfy.utils

from diffsynth_omniavatar.generation.preview import Preview, sheet

PREVIEW_SIDE = 512
"""Most pixels of a preview's longer side."""


class Progress:
    """Shows how far a video is, and stops it where ComfyUI is told to."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)

    def on_picture(self, seconds: int, duration: int) -> None:
        """While faces are looked for."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(seconds, duration, None)

    def on_preview(self, preview: Preview) -> None:
        """After each step: also what the chunk will be."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        done = (preview.chunk - 1) * preview.steps + preview.step
        picture = ("JPEG", sheet(preview.pictures), PREVIEW_SIDE)
        self._bar.update_absolute(done, preview.chunks * preview.steps, picture)
