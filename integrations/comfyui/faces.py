"""The nodes that cut a face out of a video and put it back."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

import diffsynth_omniavatar as omni
from diffsynth_omniavatar.media.faces.template import HEAD, LATENTSYNC

from . import kinds
from .convert import to_clip, to_frames, to_images, to_mask, to_pixels
from .dub import FACE, FPS
from .progress import Progress

FRAMINGS = {"face, as V2V models take it": LATENTSYNC, "head": HEAD}


class AlignFace(io.ComfyNode):
    """A face, upright and at a fixed place in every frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniAvatarAlignFace",
            display_name="OmniAvatar Align Face",
            category=kinds.CATEGORY,
            description="Finds a face in a video, follows it and cuts it out, upright and at a fixed place.",
            inputs=[
                io.Image.Input("video", tooltip="its frames"),
                FPS,
                FACE,
                io.Combo.Input("framing", options=list(FRAMINGS)),
                io.Int.Input("size", default=512, min=16, max=2048, step=16, tooltip="sides of the crops in pixels"),
            ],
            outputs=[
                io.Image.Output("crops", display_name="crops"),
                kinds.FacePlaces.Output("places", display_name="places"),
            ],
        )

    @classmethod
    def execute(cls, video: Tensor, fps: float, face: str, framing: str, size: int) -> io.NodeOutput:
        clip = to_clip(video, fps, "video")
        crops, places = omni.cut_face(
            clip, face.strip(), (size, size), template=FRAMINGS[framing], on_picture=Progress().on_picture
        )
        return io.NodeOutput(to_images(crops), places)


class PasteFace(io.ComfyNode):
    """Crops back in their frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniAvatarPasteFace",
            display_name="OmniAvatar Paste Face",
            category=kinds.CATEGORY,
            description="Puts crops of Align Face back where they came from, inside a mask with soft edges. Frames in "
            "which the face is not seen well stay as they are.",
            inputs=[
                io.Image.Input("video", tooltip="the frames that the crops came from"),
                io.Image.Input("crops", tooltip="of any size"),
                kinds.FacePlaces.Input("places"),
                io.Mask.Input("mask", optional=True, tooltip="white where the crop is shown; none: the mouth"),
            ],
            outputs=[io.Image.Output("images", display_name="images")],
        )

    @classmethod
    def execute(
        cls, video: Tensor, crops: Tensor, places: omni.FacePlaces, mask: Tensor | None = None
    ) -> io.NodeOutput:
        shown = None if mask is None else to_mask(mask, "mask")
        frames = omni.paste_face(to_frames(video, "video"), to_pixels(crops, "crops"), places, shown)
        return io.NodeOutput(to_images(frames))
