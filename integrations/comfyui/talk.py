"""The node that lets a portrait talk."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

import diffsynth_omniavatar as omni

from . import kinds
from .convert import to_audio, to_images, to_picture, to_sound
from .memory import HeldModel
from .progress import Progress


class Talk(io.ComfyNode):
    """A talking video as long as the speech."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size = "pixels, a multiple of 16; 0: the trained size nearest in shape to the portrait"
        return io.Schema(
            node_id="OmniAvatarTalk",
            display_name="OmniAvatar Talk",
            category=kinds.CATEGORY,
            description="Makes a portrait talk, chunk by chunk, for as long as the speech, at 25 frames a second.",
            inputs=[
                kinds.Model.Input("model", tooltip="one that animates portraits: nano, 14B, 1.3B"),
                io.Image.Input("image", tooltip="the portrait"),
                io.MultiType.Input("audio", types=[io.Audio, kinds.Speech], tooltip="the speech"),
                io.String.Input("prompt", default="A person talks and keeps the head still.", multiline=True),
                io.Int.Input("seed", default=42, min=0, max=2**53 - 1, control_after_generate=True),
                io.Int.Input("height", default=0, min=0, max=4096, step=16, tooltip=size),
                io.Int.Input("width", default=0, min=0, max=4096, step=16, tooltip=size),
                io.Float.Input(
                    "silence", default=0.3, min=0.0, max=60.0, step=0.1, tooltip="seconds before the speech"
                ),
                io.Boolean.Input(
                    "crop_portrait", default=False, tooltip="take head and shoulders of the largest face of the picture"
                ),
                kinds.Sampling.Input("sampling", optional=True),
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Audio.Output("sound", display_name="audio"),
                io.Float.Output("fps", display_name="fps"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HeldModel,
        image: Tensor,
        audio: dict[str, Any] | omni.Sound,
        prompt: str,
        seed: int,
        height: int,
        width: int,
        silence: float,
        crop_portrait: bool,
        sampling: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        if model.dubs:
            raise ValueError("model: this one dubs videos: connect OmniAvatar Dub, or load one for portraits")
        request = omni.TalkRequest(
            image=to_picture(image, "image"),
            audio=to_sound(audio, "audio"),
            prompt=prompt,
            seed=seed,
            height=height or None,
            width=width or None,
            silence=silence,
            crop_portrait=crop_portrait,
            **(sampling or {}),
        )
        clip = omni.generate(model.ready(), request, show_progress=False, on_preview=Progress().on_preview).clip
        return io.NodeOutput(to_images(clip.frames), to_audio(clip.sound), float(clip.frame_rate))
