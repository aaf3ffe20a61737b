"""Whether the face of a portrait is fit to talk, and the part of a picture that makes a portrait."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..media.faces.face import Face
from ..media.faces.find import FaceFinder
from ..media.images import Size, fit_layout

MIN_FACE = 64.0
"""Pixels of the longer side of a face, four tokens; the lips of a smaller one are hardly seen to move."""

MIN_INSIDE = 0.97
"""Part of the face's box that has to lie in the picture."""

SHOULDERS = 3.2
"""Shorter side of the picture of head and shoulders, in sizes of the face, which ends at the hairline."""

HEADROOM = 0.7
"""Room above the hairline, in sizes of the face."""


def portrait_faults(image: Image.Image, size: Size, *, is_cropped: bool = False) -> list[str]:
    """What is wrong with a portrait once `fit_image` has brought it to the video's size, in one sentence each.

    Args:
        image: the portrait.
        size: height and width of the video.
        is_cropped: it comes from `crop_portrait`, so that this is no remedy.
    """
    face = _face(image)
    if face is None:
        return [
            "No face is found. Drawn characters and animals may work all the same; a person's face should be larger, "
            "and seen from the front."
        ]
    faults = []
    crop = "" if is_cropped else "; @crop_portrait frames head and shoulders"
    (height, width), (left, _, top, _) = fit_layout(image.height, image.width, size)
    scale = max(height / image.height, width / image.width)
    pixels = face.size * min(scale, 1.0)
    if pixels < MIN_FACE:
        where = (
            f"in the video, wanted {MIN_FACE:.0f} or more{crop}" if scale < 1 else "in the picture: give a larger one"
        )
        faults.append(f"The lips are too small to follow the sound: the face has {pixels:.0f} pixels {where}.")
    inside = _inside([scale * side for side in face.box], (-left, -top), size)
    if inside < MIN_INSIDE:
        faults.append(f"{1 - inside:.0%} of the face is outside the video of {size[0]}x{size[1]} pixels{crop}.")
    return faults


def crop_portrait(image: Image.Image, size: Size) -> Image.Image:
    """The part of a picture with the head and the shoulders of its largest face, in the shape of a video's size.

    A picture that ends before gives the largest part of that shape that it has.

    Raises:
        ValueError: no face is found.
    """
    face = _face(image)
    if face is None:
        raise ValueError("no face is found for @crop_portrait; give another picture, or crop it yourself")
    left, top, right, _ = face.box
    scale = min(SHOULDERS * face.size / min(size), image.height / size[0], image.width / size[1])
    height, width = scale * size[0], scale * size[1]
    x = min(max((left + right - width) / 2, 0), image.width - width)
    y = min(max(top - min(HEADROOM * face.size, (height - face.size) / 2), 0), image.height - height)
    return image.crop((round(x), round(y), round(x + width), round(y + height)))


def _face(image: Image.Image) -> Face | None:
    """The largest face that is sure."""
    faces = FaceFinder().faces(torch.from_numpy(np.array(image.convert("RGB"))))
    return next((face for face in faces if face.is_sure), None)


def _inside(box: list[float], start: tuple[int, int], size: Size) -> float:
    """Part of a box (left, top, right, bottom) in a picture that begins at `start` (x, y)."""
    (left, top, right, bottom), (x, y), (height, width) = box, start, size
    across = min(right, x + width) - max(left, x)
    down = min(bottom, y + height) - max(top, y)
    return max(across, 0) * max(down, 0) / ((right - left) * (bottom - top))
