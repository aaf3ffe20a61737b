"""OmniAvatar in ComfyUI: nodes that let portraits talk and dub videos, by the package diffsynth_omniavatar."""

from comfy_api.latest import ComfyExtension, io

from .dub import Dub
from .faces import AlignFace, PasteFace
from .load import LoadModel
from .loras import LoRA
from .sampling import SamplingSettings
from .speech import Speech
from .talk import Talk


class OmniAvatarExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, LoRA, SamplingSettings, Speech, Talk, Dub, AlignFace, PasteFace]


async def comfy_entrypoint() -> OmniAvatarExtension:
    return OmniAvatarExtension()
