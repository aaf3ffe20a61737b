"""ComfyUI's progress bar, preview and interruption, as the package's `on_preview` takes them."""

from __future__ import annotations

import comfy.model_management
import comfy.utils

from diffsynth_omniavatar.generation.preview import Preview, sheet

PREVIEW_SIDE = 512
"""Most pixels of a preview's longer side."""


class Progress:
    """Called after each step: shows how far the video is and what it will be, and stops where ComfyUI is told to."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)

    def __call__(self, preview: Preview) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        done = (preview.chunk - 1) * preview.steps + preview.step
        picture = ("JPEG", sheet(preview.pictures), PREVIEW_SIDE)
        self._bar.update_absolute(done, preview.chunks * preview.steps, picture)
