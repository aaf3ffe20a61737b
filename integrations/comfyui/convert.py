"""ComfyUI's pictures and sounds as the package has them, and back.

IMAGE is float32 [n, H, W, 3] in 0..1, AUDIO a dictionary of "waveform", float32 [1, channel, n], and "sample_rate".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import diffsynth_omniavatar as omni
from diffsynth_omniavatar.media.sound import load_sound


def to_frames(images: Tensor, name: str) -> Tensor:
    """IMAGE as uint8 [n, H, W, 3]; `name` is the input's, for messages."""
    check_images(images, name)
    frames = torch.empty(*images.shape[:3], 3, dtype=torch.uint8)
    for frame, image in zip(frames, images, strict=True):  # one at a time, as a copy of a long video is large
        _check_finite(image, name)
        frame.copy_(image[..., :3].mul(255).round_().clamp_(0, 255))
    return frames


def check_images(images: Tensor, name: str) -> None:
    """ValueError where it is no IMAGE; the values are not looked at."""
    if images.ndim != 4 or images.shape[-1] < 3 or 0 in images.shape:
        raise ValueError(f"{name}: pictures of shape {list(images.shape)}, wanted [n, height, width, 3] with n from 1")
    if not images.is_floating_point():
        raise ValueError(f"{name}: pictures of {images.dtype}, wanted floats in 0 to 1")


def _check_finite(image: Tensor, name: str) -> None:
    if not image.isfinite().all():
        raise ValueError(f"{name}: pictures with values that are not finite (NaN or infinity)")


def to_pixels(images: Tensor, name: str) -> Tensor:
    """IMAGE as floats [n, H, W, 3] in 0..255."""
    check_images(images, name)
    for image in images:
        _check_finite(image, name)
    return images[..., :3].cpu().float() * 255


def to_mask(masks: Tensor, name: str) -> Tensor:
    """MASK of one mask as [H, W] in 0..1."""
    if masks.ndim != 3 or len(masks) != 1 or 0 in masks.shape:
        raise ValueError(f"{name}: masks of shape {list(masks.shape)}, wanted one, [1, height, width]")
    mask = masks[0].cpu().float()
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"{name}: a mask with values outside 0 to 1")
    if not mask.min() <= 0.5 < mask.max():
        raise ValueError(f"{name}: all of it is {'white' if mask.max() > 0.5 else 'black'}, wanted white on black")
    return mask


def to_picture(image: Tensor, name: str) -> Image.Image:
    """An IMAGE of one picture."""
    check_images(image, name)
    if len(image) > 1:
        raise ValueError(f"{name}: {len(image)} pictures, wanted one")
    return Image.fromarray(to_frames(image, name)[0].numpy())


def to_clip(images: Tensor, fps: float, name: str, sound: omni.Sound | None = None) -> omni.Clip:
    """IMAGE as a clip of so many frames a second."""
    if not math.isfinite(fps):
        raise ValueError(f"{name}: {fps} frames a second, wanted a number")
    return omni.Clip(to_frames(images, name), Fraction(fps).limit_denominator(1001), sound)


def to_sound(audio: Mapping[str, Any] | omni.Sound | None, name: str, allow_silent: bool = False) -> omni.Sound:
    """AUDIO, or a speech as it is; ComfyUI gives None for a video without sound."""
    if isinstance(audio, omni.Sound):
        return audio
    if audio is None:
        raise ValueError(f"{name}: no sound: the video that it comes from has none")
    waveform = audio["waveform"]
    if waveform.ndim != 3 or len(waveform) != 1:
        raise ValueError(f"{name}: sound of shape {list(waveform.shape)}, wanted [1, channels, samples]")
    try:
        return load_sound(waveform[0], audio["sample_rate"], allow_silent=allow_silent)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def to_images(frames: Tensor) -> Tensor:
    """Frames, uint8 or floats in 0..255, as IMAGE."""
    return frames.float().div_(255)


def to_audio(sound: omni.Sound) -> dict[str, Any]:
    """A sound as AUDIO."""
    return {"waveform": torch.from_numpy(sound.samples)[None], "sample_rate": sound.rate}
