"""The node that keeps what is encoded of a speech."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

import diffsynth_omniavatar as omni

from . import kinds
from .convert import to_sound


class Speech(io.ComfyNode):
    """A sound that is encoded once for several videos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniAvatarSpeech",
            display_name="OmniAvatar Encode Speech",
            category=kinds.CATEGORY,
            description="Checks a sound and keeps what the speech encoder makes of it, so that further videos of it, "
            "with another seed, prompt or portrait, need not encode it again. They are the same without this node.",
            inputs=[io.Audio.Input("audio")],
            outputs=[kinds.Speech.Output("speech", display_name="speech")],
        )

    @classmethod
    def execute(cls, audio: dict[str, Any]) -> io.NodeOutput:
        sound = to_sound(audio, "audio")
        return io.NodeOutput(omni.EncodedSpeech(sound.samples, sound.rate))
