"""What PNG and AVIF files say of their colours beside ICC profiles, which Pillow leaves to its callers.

PNG has chunks of its own for that (gAMA, cHRM, sRGB, cICP); AVIF, as cICP does, the code points of ITU-T H.273.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_SRGB_GAMMA = 0.45455
"""What files in sRGB have as gAMA: level = light ** gamma, roughly."""

_SAME_GAMMA = 0.02
_SAME_PLACE = 0.01
"""Most differences from sRGB's numbers that are rounding."""

_SRGB_PLACES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""x and y of white, red, green and blue."""

_LIKE_SRGB = ((1, 2, 5, 6, 7), (1, 2, 4, 5, 6, 13, 14, 15))
"""Primaries and transfer functions (H.273) that are shown as sRGB."""


def colour_fault(image: Image.Image, path: str | Path) -> str | None:
    """Why the colours that an opened file without an ICC profile names cannot be read; None if they can."""
    readers = {"PNG": _png_points, "AVIF": _avif_points}
    points = readers[image.format](path) if image.format in readers else None
    given = image.info.get("chromaticity", _SRGB_PLACES)
    places = _SRGB_PLACES if points is not None or "srgb" in image.info else given
    if max(abs(place - wanted) for place, wanted in zip(places, _SRGB_PLACES, strict=True)) > _SAME_PLACE:
        return f"has other primaries than sRGB (cHRM {', '.join(f'{place:g}' for place in places)})"
    if points is not None and not all(point in known for point, known in zip(points, _LIKE_SRGB, strict=True)):
        return f"has other colours than sRGB (primaries {points[0]}, transfer {points[1]} of ITU-T H.273)"
    return None


def to_srgb_gamma(rgb: Image.Image, info: Mapping[str, Any]) -> Image.Image:
    """An RGB image in sRGB, by the gamma that `info` of the opened file names, if any."""
    gamma = info.get("gamma")
    if not gamma or "srgb" in info or abs(gamma - _SRGB_GAMMA) < _SAME_GAMMA:
        return rgb
    light = (np.arange(256) / 255) ** (1 / gamma)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    converted = rgb.point((255 * srgb).round().astype(int).tolist() * 3)
    converted.info.pop("gamma", None)
    return converted


def _png_points(path: str | Path) -> tuple[int, int] | None:
    """Primaries and transfer function of the chunk cICP."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", head)
            if name == b"cICP":
                points = file.read(2)
                return (points[0], points[1]) if len(points) == 2 else None
            if name == b"IDAT":
                return None
            file.seek(size + 4, 1)
    return None


def _avif_points(path: str | Path) -> tuple[int, int] | None:
    """Primaries and transfer function of the box colr."""
    with open(path, "rb") as file:
        head = file.read(2**16)
    place = head.find(b"colrnclx") + 8
    return struct.unpack(">HH", head[place : place + 4]) if place >= 8 and len(head) >= place + 4 else None
