"""The node that lets somebody in a video say something else."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

import diffsynth_omniavatar as omni
from diffsynth_omniavatar.generation.dub_request import EXTENSIONS, PROMPT

from . import kinds
from .convert import to_audio, to_clip, to_images, to_sound
from .memory import HeldModel
from .progress import Progress

FPS = io.Float.Input("fps", default=25.0, min=1.0, max=240.0, step=0.001, tooltip="frames per second of the video")
FACE = io.String.Input(
    "face",
    default="largest",
    tooltip="whose: largest, left, right, speaking, or a number, as the log gives them",
)


class Dub(io.ComfyNode):
    """The same video with a new mouth."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniAvatarDub",
            display_name="OmniAvatar Dub",
            category=kinds.CATEGORY,
            description="Finds a face in a video, gives it a mouth that says the speech, and puts it back; all pixels "
            "around it, and frames without the face, stay as they are.",
            inputs=[
                kinds.Model.Input("model", tooltip="one that dubs: nano-v2v, or with a V2V checkpoint"),
                io.Image.Input("video", tooltip="its frames"),
                io.MultiType.Input("audio", types=[io.Audio, kinds.Speech], tooltip="the new speech"),
                FPS,
                io.String.Input("prompt", default=PROMPT, multiline=True),
                io.Int.Input("seed", default=42, min=0, max=2**53 - 1, control_after_generate=True),
                FACE,
                io.Combo.Input(
                    "extend",
                    options=list(EXTENSIONS),
                    tooltip="where the speech is longer: play backward and forward, hold the last frame, or stop",
                ),
                io.String.Input(
                    "keep_audio",
                    default="no",
                    tooltip="of original_audio: no; -20dB mixes it under; gaps keeps sound and pictures where the "
                    "speech has no voice",
                ),
                io.Audio.Input("original_audio", optional=True, tooltip="the video's own sound"),
                kinds.Sampling.Input("sampling", optional=True),
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Audio.Output("sound", display_name="audio"),
                io.Float.Output("rate", display_name="fps"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: HeldModel,
        video: Tensor,
        audio: dict[str, Any] | omni.Sound,
        fps: float,
        prompt: str,
        seed: int,
        face: str,
        extend: str,
        keep_audio: str,
        original_audio: dict[str, Any] | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        if not model.dubs:
            raise ValueError(
                "model: this one animates portraits: connect OmniAvatar Talk, or load nano-v2v or a V2V checkpoint"
            )
        own = None if original_audio is None else to_sound(original_audio, "original_audio", allow_silent=True)
        request = omni.DubRequest(
            video=to_clip(video, fps, "video", own),
            audio=to_sound(audio, "audio"),
            prompt=prompt,
            seed=seed,
            face=face,
            extend=extend,
            keep_audio=keep_audio,
            **(sampling or {}),
        )
        shown = Progress()
        clip = omni.dub(
            model.ready(), request, show_progress=False, on_preview=shown.on_preview, on_picture=shown.on_picture
        ).clip
        return io.NodeOutput(to_images(clip.frames), to_audio(clip.sound), float(clip.frame_rate))
