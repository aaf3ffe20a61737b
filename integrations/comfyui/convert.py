"""ComfyUI's pictures and sounds as the package has them, and back.

IMAGE is float32 [n, H, W, 3] in 0..1, AUDIO a dictionary of "waveform", float32 [1, channel, n], and "sample_rate".
"""

from __future__ import annotations

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
    if images.ndim != 4 or images.shape[-1] < 3 or not len(images):
        raise ValueError(f"{name}: pictures of shape {list(images.shape)}, wanted [n, height, width, 3] with n from 1")
    frames = torch.empty(*images.shape[:3], 3, dtype=torch.uint8)
    for frame, image in zip(frames, images, strict=True):  # one at a time, as a copy of a long video is large
        if not image.isfinite().all():
            raise ValueError(f"{name}: pictures with values that are not finite (NaN or infinity)")
        frame.copy_(image[..., :3].mul(255).round_().clamp_(0, 255))
    return frames


def to_picture(image: Tensor, name: str) -> Image.Image:
    """An IMAGE of one picture."""
    if len(image) > 1:
        raise ValueError(f"{name}: {len(image)} pictures, wanted one")
    return Image.fromarray(to_frames(image, name)[0].numpy())


def to_clip(images: Tensor, fps: float, name: str, sound: omni.Sound | None = None) -> omni.Clip:
    """IMAGE as a clip of so many frames a second."""
    return omni.Clip(to_frames(images, name), Fraction(fps).limit_denominator(1001), sound)


def to_sound(audio: Mapping[str, Any] | omni.Sound, name: str, allow_silent: bool = False) -> omni.Sound:
    """AUDIO, or a speech as it is."""
    if isinstance(audio, omni.Sound):
        return audio
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
