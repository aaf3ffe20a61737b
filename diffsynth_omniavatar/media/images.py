"""Pictures: files to upright RGB, tensors in [-1, 1], the sizes that a model knows.

Bad files raise `ValueError` with the path and what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

Size = tuple[int, int]
"""Height and width in pixels."""

ImageSource = str | Path | Image.Image
"""What `load_image` takes: a file or a picture."""


def load_image(source: ImageSource) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    The EXIF rotation is applied, transparent parts are laid over white, 16-bit grey is scaled to 8 bits, and CMYK is
    converted without its colour profile. Raises ValueError, naming the file, if it cannot be read, is of a kind without
    a defined range (32-bit floats), or has a side of less than two pixels.
    """
    name = "the given image" if isinstance(source, Image.Image) else str(source)
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        upright = ImageOps.exif_transpose(image)
        upright.load()
    # Pillow's readers raise SyntaxError for broken PNG chunks.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: cannot be read as an image: {error}") from error
    if min(upright.size) < 2:
        raise ValueError(f"{name}: is {upright.height}x{upright.width} pixels; each side needs at least 2")
    return _to_rgb(upright, name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError(f"{name}: holds 32-bit floats of unknown range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"{name}: has grey levels {grey.min()} to {grey.max()}; 16 bits give 0 to 65535")
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def to_unit_range(rgb: torch.Tensor) -> torch.Tensor:
    """RGB bytes 0..255 of any shape -> float32 in [-1, 1]."""
    return rgb.float().div(255).mul(2).sub(1)


def to_video(frames: torch.Tensor) -> torch.Tensor:
    """Frames uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [-1, 1], as the VAE takes them."""
    return to_unit_range(frames).permute(0, 4, 1, 2, 3)


def to_bytes(rgb: torch.Tensor) -> torch.Tensor:
    """RGB in [-1, 1] of any shape and float type -> uint8 0..255, rounded; values outside are clipped."""
    return rgb.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image -> float32 tensor [3, height, width] in [-1, 1]."""
    return to_unit_range(torch.from_numpy(np.array(image.convert("RGB")))).permute(2, 0, 1).contiguous()


def tensor_to_image(rgb: torch.Tensor) -> Image.Image:
    """Tensor [3, height, width] in [-1, 1] -> RGB image."""
    return Image.fromarray(to_bytes(rgb.detach().cpu()).permute(1, 2, 0).contiguous().numpy())


def match_size(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The video size of `sizes` whose height/width is nearest to the image's.

    The first of equals wins, unless a later one's longest side is just as far from the image's, as OmniAvatar chooses.
    """

    def ratio_error(size: Size) -> float:
        return abs(size[0] / size[1] - height / width)

    def side_error(size: Size) -> int:
        return abs(max(size) - max(height, width))

    best = sizes[0]
    for size in sizes[1:]:
        error, least = ratio_error(size), ratio_error(best)
        if error < least or (error == least and side_error(size) == side_error(best)):
            best = size
    return best


def fit_layout(height: int, width: int, size: Size) -> tuple[Size, tuple[int, int, int, int]]:
    """How `fit_image` brings an image to `size`: the scaled size and the padding left, right, top, bottom.

    Negative padding crops. Each scaled side is cut to an integer, so a side may end one line short and be padded.
    """
    scale = max(size[0] / height, size[1] / width)
    scaled = int(height * scale), int(width * scale)
    rows, columns = size[0] - scaled[0], size[1] - scaled[1]
    left, top = columns // 2, rows // 2
    return scaled, (left, columns - left, top, rows - top)


def fit_image(rgb: torch.Tensor, size: Size) -> torch.Tensor:
    """Scale an image to cover `size` and crop the middle, as OmniAvatar does.

    Args:
        rgb: float tensor [..., 3, height, width] in [-1, 1].
        size: height and width wanted.

    Returns:
        Tensor [..., 3, *size]; bilinear with antialiasing; a missing line is black.
    """
    if not rgb.is_floating_point():
        raise ValueError(f"fit_image got {rgb.dtype}; it takes floats in [-1, 1]: use to_unit_range()")
    fitted = scale_and_crop(rgb.reshape(-1, *rgb.shape[-3:]), size, black=-1.0)
    return fitted.reshape(*rgb.shape[:-2], *size)


def scale_and_crop(rgb: torch.Tensor, size: Size, black: float) -> torch.Tensor:
    """`fit_image` for [batch, 3, height, width] in any range."""
    scaled, padding = fit_layout(rgb.shape[-2], rgb.shape[-1], size)
    rgb = torch.nn.functional.interpolate(rgb, scaled, mode="bilinear", antialias=True)
    return torch.nn.functional.pad(rgb, padding, value=black)
