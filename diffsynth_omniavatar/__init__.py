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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generation.dub import dub
    from .generation.dub_request import DubRequest
    from .generation.face_crops import FacePlaces, cut_face, paste_face
    from .generation.generate import generate
    from .generation.loading import load_pipeline, nano_pipeline
    from .generation.loras import add_lora, remove_loras
    from .generation.pipeline import OmniAvatarPipeline, register, unregister
    from .generation.placement import is_movable, move
    from .generation.request import RequestError, TalkRequest
    from .generation.result import DubbedVideo, GeneratedVideo
    from .generation.speech import EncodedSpeech
    from .host.versions import UnsupportedHostError
    from .media.clip import Clip
    from .media.sound import Sound
    from .model.checkpoint import CheckpointError, load_checkpoint
    from .model.config import PRESETS, Conventions, LoRAConfig, OmniAvatarConfig
    from .model.convert import convert
    from .model.dit import OmniAvatarDiT
    from .model.files import model_files
    from .model.speech_encoder import AudioEncoder

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AudioEncoder",
    "CheckpointError",
    "Clip",
    "Conventions",
    "DubRequest",
    "DubbedVideo",
    "EncodedSpeech",
    "FacePlaces",
    "GeneratedVideo",
    "LoRAConfig",
    "OmniAvatarConfig",
    "OmniAvatarDiT",
    "OmniAvatarPipeline",
    "RequestError",
    "Sound",
    "TalkRequest",
    "UnsupportedHostError",
    "add_lora",
    "convert",
    "cut_face",
    "dub",
    "generate",
    "is_movable",
    "load_checkpoint",
    "load_pipeline",
    "model_files",
    "move",
    "nano_pipeline",
    "paste_face",
    "register",
    "remove_loras",
    "unregister",
]

_MODULES = {
    "PRESETS": "model.config",
    "AudioEncoder": "model.speech_encoder",
    "CheckpointError": "model.checkpoint",
    "Clip": "media.clip",
    "Conventions": "model.config",
    "DubRequest": "generation.dub_request",
    "DubbedVideo": "generation.result",
    "EncodedSpeech": "generation.speech",
    "FacePlaces": "generation.face_crops",
    "GeneratedVideo": "generation.result",
    "LoRAConfig": "model.config",
    "OmniAvatarConfig": "model.config",
    "OmniAvatarDiT": "model.dit",
    "OmniAvatarPipeline": "generation.pipeline",
    "RequestError": "generation.request",
    "Sound": "media.sound",
    "TalkRequest": "generation.request",
    "UnsupportedHostError": "host.versions",
    "add_lora": "generation.loras",
    "convert": "model.convert",
    "cut_face": "generation.face_crops",
    "dub": "generation.dub",
    "generate": "generation.generate",
    "is_movable": "generation.placement",
    "load_checkpoint": "model.checkpoint",
    "load_pipeline": "generation.loading",
    "model_files": "model.files",
    "move": "generation.placement",
    "nano_pipeline": "generation.loading",
    "paste_face": "generation.face_crops",
    "register": "generation.pipeline",
    "remove_loras": "generation.loras",
    "unregister": "generation.pipeline",
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
