"""The memory of a CUDA device: how torch takes it, and how much is free."""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)

ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def expandable_segments() -> None:
    """Have torch take memory of a CUDA device in pieces that it can join, unless the environment says how it takes it.

    What the blocks keep leaves gaps that other sizes do not fit in, a tenth of the memory otherwise. Torch reads the
    environment when it first uses a CUDA device, which imported packages may have done: so it is told as well. Torch
    before 2.9 knows the older of the two names alone.
    """
    if any(name in os.environ for name in ALLOCATOR_SETTINGS):
        return
    os.environ[ALLOCATOR_SETTINGS[0]] = setting = "expandable_segments:True"  # for the processes that this one starts
    if torch.cuda.is_available():
        tell = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
        tell(setting)
        logger.info("%s=%s", ALLOCATOR_SETTINGS[0], setting)


def free_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that this process can still have, with what torch holds in reserve, within the limit of
    `torch.cuda.set_per_process_memory_fraction`, which early torch 2 does not tell.
    """
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - allocated
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    return min(free + cached, int(total * fraction) - allocated)
