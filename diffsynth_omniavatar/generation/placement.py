"""Where the weights of a pipeline lie, and in how many bits.

A pipeline whose denoiser is to be smaller on the GPU than on disk is loaded to CPU memory first, and then placed;
where the GPU has room for its files, it is loaded there, which takes less main memory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from ..model.blocks.gpu_memory import free_memory
from ..model.blocks.memory_plan import GIB
from ..model.blocks.quantized import Method
from ..model.blocks.streaming import stream_modules
from ..model.quantize import check_quantize, quantize_blocks

logger = logging.getLogger(__name__)

WORKING_MEMORY = 5 * GIB
"""Of the GPU, for everything beside weights: 81 frames of 512x512 take about 3."""


@dataclass(frozen=True)
class Placement:
    """What is wanted of the weights.

    Args:
        quantize: the denoiser's layers in 8 bits, see `model.quantize`; None leaves them.
        keep_bf16: layers that stay.
        stream: the denoiser's layers wait in CPU memory, and are copied just before use.
    """

    quantize: Method | None = None
    keep_bf16: tuple[str, ...] = ()
    stream: bool = False
    shard: bool = False
    """Of several processes that make a video together, each has a part of the denoiser's layers on its GPU; the text
    encoder's wait in CPU memory."""
    is_quantized: bool = False
    """The layers are in 8 bits already."""

    def check(self, device: torch.device | str) -> None:
        """Raises ValueError: the device cannot do it, or an argument is none."""
        check_quantize(self.quantize, self.keep_bf16, device)

    def home(self, device: torch.device | str) -> torch.device | str:
        """Where the denoiser's layers are until they are streamed or shared out."""
        return "cpu" if self.stream or self.shard else device

    @property
    def is_wanted(self) -> bool:
        """Whether `place` has something to do."""
        return self.stream or self.shard or self.is_quantized or self.quantize is not None

    def loads_on_cpu(self, device: torch.device | str, size: int | None) -> bool:
        """Whether models whose files have `size` bytes (None: unknown) are to be loaded to CPU memory."""
        if self.stream or self.shard or self.is_quantized or torch.device(device).type != "cuda":
            return self.is_wanted
        return self.quantize is not None and (size is None or size + WORKING_MEMORY > free_memory(torch.device(device)))


def place(pipe: Any, placement: Placement, device: torch.device | str) -> None:
    """Bring a loaded pipeline to `device`; its denoiser has a `BlockRunner` if it is to be streamed."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    dit = pipe.dit
    if placement.quantize is not None and not placement.is_quantized:
        home = placement.home(device)
        count = quantize_blocks(dit, placement.quantize, placement.keep_bf16, worker=device, home=home)
        logger.info("%d of the denoiser's layers are in 8 bits (%s)", count, placement.quantize)
    if placement.stream:
        dit.runner.stream_weights(dit.blocks, device, cyclic=True)
    if placement.shard:
        dit.runner.shard_weights(dit.blocks, device)
    dit.to(device)
    text_encoder, pipe.text_encoder = pipe.text_encoder, None
    _bring(pipe, device)
    pipe.text_encoder = text_encoder
    if text_encoder is not None and next(text_encoder.parameters()).device != device:
        _place_text_encoder(text_encoder, device, placement.stream or placement.shard)


def _bring(pipe: Any, device: torch.device | str) -> None:
    """The pipeline's models, and what it knows of its device."""
    pipe.to(device=device)
    if hasattr(pipe, "device_type"):  # of the newer host
        pipe.device_type = torch.device(device).type


def is_movable(pipe: Any) -> bool:
    """Whether all weights lie on the pipeline's device, so that `move` can take them to another; not where some are
    streamed, or offloaded by the host's `vram_limit`."""
    device = torch.device(pipe.device)
    weights = [*pipe.parameters(), *pipe.buffers()]
    hosts = any(getattr(module, "vram_management_enabled", False) for module in pipe.modules())
    return not hosts and all(weight.device.type == device.type and weight.numel() for weight in weights)


def move(pipe: Any, device: torch.device | str) -> None:
    """Take a whole pipeline to a device, such as the CPU while something else needs the GPU.

    Raises:
        ValueError: some weights are streamed or offloaded already.
    """
    if not is_movable(pipe):
        raise ValueError("The pipeline's weights are streamed or offloaded (stream_weights, vram_limit): it stays.")
    _bring(pipe, device)


def _place_text_encoder(encoder: Any, device: torch.device, stream: bool) -> None:
    size = sum(value.numel() * value.element_size() for value in encoder.parameters())
    if device.type != "cuda" or (not stream and size + WORKING_MEMORY < free_memory(device)):
        encoder.to(device)
        return
    stream_modules(encoder.blocks, device)
    embedding = encoder.token_embedding
    encoder.token_embedding = None
    encoder.to(device)
    encoder.token_embedding = embedding  # a table, of which a prompt needs a few rows
    embedding.register_forward_pre_hook(lambda _module, inputs: (inputs[0].cpu(),))
    embedding.register_forward_hook(lambda _module, _inputs, output: output.to(device))
    logger.info("the text encoder's layers wait in CPU memory (%.1f GiB)", size / GIB)
