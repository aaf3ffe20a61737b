"""Pictures: files to upright sRGB, tensors in [-1, 1], the sizes that a model knows.

Bad files raise `ValueError` with the path and what is wrong with them.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .image_colour import colour_fault, to_srgb_gamma

Size = tuple[int, int]
"""Height and width in pixels."""

ImageSource = str | Path | Image.Image
"""What `load_image` takes: a file or a picture."""


FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""Pillow's names of the formats that are read. Others start programs (EPS) or are of no use as pictures."""

_INTEROPERABILITY = 0xA005
"""EXIF's directory whose entry 1 is R03 for Adobe RGB: some cameras say so there alone."""

_COLOUR_MODELS = {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY"}
"""What a colour profile calls the kind of colours it is for, by Pillow's mode."""


class ImageError(ValueError):
    """A fault of an image; the message begins with its path."""


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Read an image as upright 8-bit sRGB.

    The EXIF rotation is applied, an embedded colour profile or the gamma of a PNG file is converted to sRGB,
    transparent parts are laid over white, 16-bit grey is scaled to 8 bits, and CMYK without a profile is converted by
    the plain formula. Raises ValueError, naming the file, if it cannot be read, is none of `FORMATS`, has more pixels
    than `PIL.Image.MAX_IMAGE_PIXELS`, is of a kind without a defined range (32-bit floats), has a profile that is
    damaged or not for its kind of pixels, names other colours than sRGB's without a profile, or has a side of less than
    two pixels.
    """
    name = "the given image" if isinstance(source, Image.Image) else str(source)
    try:
        image = source if isinstance(source, Image.Image) else _open(source)
        if "icc_profile" not in image.info and _interoperability(image) == "R03":
            raise ImageError(f"{name}: is in Adobe RGB, but without its profile; save it in sRGB")
        fault = None if isinstance(source, Image.Image) or "icc_profile" in image.info else colour_fault(image, source)
        if fault is not None:
            raise ImageError(f"{name}: {fault}; save it in sRGB")
        upright = ImageOps.exif_transpose(image)
        upright.load()
        if min(upright.size) < 2:
            raise ImageError(f"{name}: is {upright.height}x{upright.width} pixels; each side needs at least 2")
        return _to_rgb(upright, name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: cannot be read as an image: it is none of {', '.join(_formats())}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"PIL.Image.MAX_IMAGE_PIXELS is {Image.MAX_IMAGE_PIXELS}"
        raise ImageError(f"{name}: has too many pixels; scale it down ({limit})") from error
    # What Pillow's readers raise for damaged files.
    except (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, EOFError, MemoryError) as error:
        raise ImageError(f"{name}: cannot be read as an image: {error or type(error).__name__}") from error
    except (struct.error, zlib.error) as error:
        raise ImageError(f"{name}: cannot be read as an image: {error}") from error


def _interoperability(image: Image.Image) -> Any:
    """The colour space that cameras name beside the EXIF data; None if there is none."""
    try:
        return image.getexif().get_ifd(_INTEROPERABILITY).get(1)
    except KeyError:  # what Pillow 12 raises for a picture without it
        return None


def _formats() -> list[str]:
    """The formats of `FORMATS` that this Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open(path: str | Path) -> Image.Image:
    if not os.path.isfile(path):
        raise OSError("it is not a file" if os.path.exists(path) else "there is no such file")
    with warnings.catch_warnings():
        # Pillow warns from MAX_IMAGE_PIXELS on and refuses twice that.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path, formats=_formats())


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name}: holds 32-bit floats of unknown range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError(f"{name}: has grey levels {grey.min()} to {grey.max()}; 16 bits give 0 to 65535")
        levels = Image.fromarray((grey / 257).round().astype(np.uint8))
        return _to_srgb(levels, image.info, name)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        rgba = _to_srgb(opaque.convert("RGB"), image.info, name).convert("RGBA")
        rgba.putalpha(opaque.getchannel("A"))
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _to_srgb(image if image.mode in ("L", "CMYK") else image.convert("RGB"), image.info, name)


def _to_srgb(image: Image.Image, info: Mapping[Any, Any], name: str) -> Image.Image:
    """An image of mode L, RGB or CMYK as sRGB, by the colour profile or the gamma that `info` of its file names."""
    profile = info.get("icc_profile")
    if not profile:
        return to_srgb_gamma(image.convert("RGB"), info)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        model = source.profile.xcolor_space
        if image.mode == "L" and model == "RGB ":
            image = image.convert("RGB")
        # Grey that was saved as RGB, by a program that kept the profile.
        elif image.mode == "RGB" and model == "GRAY" and _is_grey(image):
            image = image.convert("L")
        if model != _COLOUR_MODELS[image.mode]:
            raise ImageError(
                f"{name}: has a colour profile for {model.strip()}, but its pixels are {image.mode}; "
                "save it in sRGB, without a profile"
            )
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise ImageError(f"{name}: has a damaged colour profile; save it in sRGB, without a profile") from error
    assert converted is not None  # None is for work in place
    converted.info.pop("icc_profile", None)
    return converted


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


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
