"""OmniAvatar (audio-driven avatars on Wan 2.1) as a plugin of DiffSynth-Studio.

    import diffsynth_omniavatar as omni

    omni.register()  # DiffSynth's own WanVideoPipeline.from_pretrained loads OmniAvatar now; or in one call:
    pipe = omni.load_pipeline("14B", "pretrained_models")
    omni.generate(pipe, prompt="A woman talks.", image="face.png", audio="speech.wav", out="video.mp4")

The names below are imported when they are first used, so that importing the package imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audio import AudioEncoder
    from .checkpoint import CheckpointError, convert, load_checkpoint
    from .clip import Sound
    from .config import PRESETS, Conventions, LoRAConfig, OmniAvatarConfig
    from .dit import OmniAvatarDiT
    from .files import model_files
    from .generate import GeneratedVideo, generate
    from .loading import load_pipeline, nano_pipeline
    from .pipeline import OmniAvatarPipeline, register, unregister
    from .versions import UnsupportedHostError

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AudioEncoder",
    "CheckpointError",
    "Conventions",
    "GeneratedVideo",
    "LoRAConfig",
    "OmniAvatarConfig",
    "OmniAvatarDiT",
    "OmniAvatarPipeline",
    "Sound",
    "UnsupportedHostError",
    "convert",
    "generate",
    "load_checkpoint",
    "load_pipeline",
    "model_files",
    "nano_pipeline",
    "register",
    "unregister",
]

_MODULES = {
    "PRESETS": "config",
    "AudioEncoder": "audio",
    "CheckpointError": "checkpoint",
    "Conventions": "config",
    "GeneratedVideo": "generate",
    "LoRAConfig": "config",
    "OmniAvatarConfig": "config",
    "OmniAvatarDiT": "dit",
    "OmniAvatarPipeline": "pipeline",
    "Sound": "clip",
    "UnsupportedHostError": "versions",
    "convert": "checkpoint",
    "generate": "generate",
    "load_checkpoint": "checkpoint",
    "load_pipeline": "loading",
    "model_files": "files",
    "nano_pipeline": "loading",
    "register": "pipeline",
    "unregister": "pipeline",
}
"""Public name -> the module that has it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the submodule `generate` would put it in the place of the function of that name; it may not."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
