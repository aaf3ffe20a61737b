"""The node that loads a model."""

from __future__ import annotations

import os

import folder_paths
from comfy_api.latest import io

from diffsynth_omniavatar.model.blocks.quantized import METHODS
from diffsynth_omniavatar.model.files import MODELS

from . import kinds, memory

AUTO, NONE = "auto", "none"
DTYPES = (AUTO, "bfloat16", "float16", "float32")


class LoadModel(io.ComfyNode):
    """From a model's name or a folder to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniAvatarLoadModel",
            display_name="OmniAvatar Load Model",
            category=kinds.CATEGORY,
            description="Loads an OmniAvatar model. nano and nano-v2v come with the package and run on a CPU; 14B and "
            "1.3B are downloaded to models/ (70 and 20 GB) unless a folder has them.",
            inputs=[
                io.Combo.Input("model", options=list(MODELS), default="nano"),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="folder with the model's files, from ComfyUI's models folder on; empty: the package's own "
                    "for nano, else the hub",
                ),
                io.String.Input(
                    "checkpoint",
                    default="",
                    tooltip="another OmniAvatar checkpoint than the model's, as a file or folder: a trained one, or a "
                    "V2V one to dub with",
                ),
                io.Combo.Input("dtype", options=list(DTYPES), tooltip="auto: bfloat16 on a GPU, else float32"),
                io.Combo.Input(
                    "quantize",
                    options=[NONE, *METHODS],
                    tooltip="hold the transformer in 8 bits: fp8 needs an Ada or Hopper GPU",
                ),
                io.Boolean.Input("compile", default=False, tooltip="faster, after a slower first step"),
                io.Boolean.Input(
                    "stream_weights", default=False, tooltip="weights wait in CPU memory: 8 GiB of GPU for the 14B"
                ),
                kinds.LoRAs.Input("loras", optional=True),
            ],
            outputs=[kinds.Model.Output("loaded", display_name="model")],
        )

    @classmethod
    def execute(
        cls,
        model: str,
        folder: str,
        checkpoint: str,
        dtype: str,
        quantize: str,
        compile: bool,
        stream_weights: bool,
        loras: list[tuple[str, float]] | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            memory.load(
                model,
                _path(folder),
                omniavatar=_path(checkpoint),
                dtype=None if dtype == AUTO else dtype,
                quantize=None if quantize == NONE else quantize,
                compile=compile,
                stream_weights=stream_weights,
                loras=loras or (),
            )
        )


def _path(given: str) -> str | None:
    """A path from ComfyUI's models folder on; None if there is none."""
    return os.path.join(folder_paths.models_dir, given.strip()) if given.strip() else None
