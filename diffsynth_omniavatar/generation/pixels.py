"""The pictures and videos that callers give, as tensors of the video's size, and their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .. import host
from ..media.images import ImageSource, fit_image, image_to_tensor, load_image, to_unit_range
from ..model.frame_decoder import decode_video

VideoSource = Sequence[Image.Image] | Tensor
"""Pictures, or a tensor as `video_tensor` takes it."""


def image_tensor(image: ImageSource, height: int, width: int) -> Tensor:
    """An image scaled and cropped to size as upstream does, [1, 3, H, W] in [-1, 1]."""
    return fit_image(image_to_tensor(load_image(image)), (height, width)).unsqueeze(0)


def video_tensor(video: VideoSource, height: int, width: int) -> Tensor:
    """A video scaled and cropped to size, [B, 3, F, H, W] in [-1, 1].

    Args:
        video: PIL images; or a uint8 tensor [F, H, W, 3]; or a float tensor [3, F, H, W] or [B, 3, F, H, W] in [-1, 1],
            which must have the size already.

    Raises:
        ValueError: no frames, or a tensor of another layout or size.
    """
    if isinstance(video, Tensor) and video.is_floating_point():
        if video.dim() not in (4, 5) or video.shape[-4] != 3 or tuple(video.shape[-2:]) != (height, width):
            raise ValueError(f"A float video is [3, frames, {height}, {width}], got {list(video.shape)}.")
        return video.reshape(-1, *video.shape[-4:])
    if len(video) == 0:
        raise ValueError("The video has no frames.")
    if isinstance(video, Tensor):
        if video.dtype != torch.uint8 or video.dim() != 4 or video.shape[3] != 3:
            raise ValueError(f"A uint8 video is [frames, H, W, 3], got {video.dtype} {list(video.shape)}.")
        frames = [fit_image(to_unit_range(frame).permute(2, 0, 1), (height, width)) for frame in video]
    else:
        frames = [image_tensor(frame, height, width)[0] for frame in video]
    return torch.stack(frames, dim=1).unsqueeze(0)


def encode_video(pipe: host.WanVideoPipeline, video: Tensor, tiled: bool, **tiles: Any) -> Tensor:
    """VAE latents of videos [B, 3, F, H, W] in [-1, 1]: [B, 16, T, h, w] in the pipeline's number format.

    One video at a time: the host's tiled encoding enlarges its tiles with each video of a batch.
    """
    pipe.load_models_to_device(["vae"])
    latents = [
        pipe.vae.encode(one.to(dtype=pipe.torch_dtype), device=pipe.device, tiled=tiled, **tiles)
        for one in video.split(1)
    ]
    return torch.cat(latents).to(dtype=pipe.torch_dtype, device=pipe.device)


@contextmanager
def decoding_in_place(vae: Any, on_frames: Callable[[Tensor], None] | None = None) -> Iterator[None]:
    """Inside the block the host's VAE decodes without tiles as `decode_video` does: the same bits in less memory.

    Weights that the host keeps in CPU memory are wrapped, and decoded by the host.

    Args:
        on_frames: as `decode_video` takes it.
    """
    if getattr(vae, "vram_management_enabled", False):
        yield
        return
    vae.single_decode = lambda latents, device: decode_video(vae, latents.to(device), on_frames)
    try:
        yield
    finally:
        del vae.single_decode
