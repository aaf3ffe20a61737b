"""A loaded model among those that ComfyUI manages: it takes the GPU when it is to run, and leaves it for others.

ComfyUI moves models layer by layer, which it can do with its own layers alone. A pipeline moves as a whole.
"""

from __future__ import annotations

import comfy.model_management as manager
import torch
from comfy.model_patcher import ModelPatcher

import diffsynth_omniavatar as omni
from diffsynth_omniavatar.generation.placement import WORKING_MEMORY


class _WholePipeline(ModelPatcher):
    """What ComfyUI's management sees of a pipeline: on its device or off it."""

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        if self.model.model_loaded_weight_memory:
            return 0
        omni.move(self.model, device_to)
        self.model.model_loaded_weight_memory = self.size
        return self.size

    def partially_unload(self, device_to: torch.device, memory_to_free: float = 0) -> int:
        return 0  # so that ComfyUI detaches it

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights and device_to is not None:
            omni.move(self.model, device_to)
            self.model.model_loaded_weight_memory = 0

    def current_loaded_device(self) -> torch.device:
        return self.load_device if self.model.model_loaded_weight_memory else self.offload_device


class HeldModel:
    """A pipeline that was loaded to ComfyUI's device.

    One whose weights are streamed or offloaded holds little of the GPU and stays there; any other moves to the CPU's
    memory when ComfyUI needs the room, and back when it is to run.
    """

    def __init__(self, pipe: omni.OmniAvatarPipeline) -> None:
        self._pipe, self._patcher = pipe, None
        if omni.is_movable(pipe):
            size = sum(tensor.numel() * tensor.element_size() for tensor in [*pipe.parameters(), *pipe.buffers()])
            pipe.model_loaded_weight_memory = size
            self._patcher = _WholePipeline(pipe, manager.get_torch_device(), manager.unet_offload_device(), size)

    @property
    def dubs(self) -> bool:
        """Whether it changes mouths in videos; else it animates portraits."""
        return self._pipe.dit.config.has_masked_video

    def ready(self) -> omni.OmniAvatarPipeline:
        """The pipeline on its device, with memory free to work in."""
        if self._patcher is not None:
            manager.load_models_gpu([self._patcher], memory_required=WORKING_MEMORY)
        else:
            manager.free_memory(WORKING_MEMORY, manager.get_torch_device())
        return self._pipe


def load(*args: str, **arguments: object) -> HeldModel:
    """`load_pipeline` on ComfyUI's device, which is emptied for it."""
    manager.unload_all_models()
    manager.soft_empty_cache()
    return HeldModel(omni.load_pipeline(*args, device=str(manager.get_torch_device()), **arguments))
