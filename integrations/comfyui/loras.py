"""The node that adds a LoRA to a stack."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from . import kinds

OTHER = "(other)"


class LoRA(io.ComfyNode):
    """One more LoRA for the model that is to be loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OmniAvatarLoRA",
            display_name="OmniAvatar LoRA",
            category=kinds.CATEGORY,
            description="Adds a LoRA for Wan 2.1 text-to-video to those that Load Model puts into the weights. Several "
            "of these nodes in a row make a stack.",
            inputs=[
                io.Combo.Input("file", options=[OTHER, *folder_paths.get_filename_list("loras")]),
                io.String.Input(
                    "other", default="", tooltip=f"where the file is {OTHER}: a path, or OWNER/NAME:FILE of a hub"
                ),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05),
                kinds.LoRAs.Input("before", optional=True, tooltip="the stack that it is added to"),
            ],
            outputs=[kinds.LoRAs.Output("loras", display_name="loras")],
        )

    @classmethod
    def execute(
        cls, file: str, other: str, strength: float, before: list[tuple[str, float]] | None = None
    ) -> io.NodeOutput:
        path = other.strip() if file == OTHER else folder_paths.get_full_path_or_raise("loras", file)
        if not path:
            raise ValueError(f"other is empty: choose a file, or give a path where it is {OTHER}")
        return io.NodeOutput([*(before or []), (path, strength)])
