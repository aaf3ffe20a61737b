"""Whether the face of a portrait is fit to talk, and the part of a picture that makes a portrait."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..media.faces.face import Face
from ..media.faces.find import FaceFinder
from ..media.faces.turned import turn_of, turned_face
from ..media.images import Size, fit_layout

MIN_FACE = 64.0
"""Pixels of the longer side of a face, four tokens; the lips of a smaller one are hardly seen to move."""

MIN_INSIDE = 0.97
"""Part of the face's box that has to lie in the picture."""

SHOULDERS = 3.2
"""Shorter side of the picture of head and shoulders, in sizes of the face, which ends at the hairline."""

CLOSEST = 1.6
"""The same in a video that is so small that the face would have fewer than `MIN_FACE` pixels; no closer."""

HEADROOM = 0.7
"""Room above the hairline, in sizes of the face."""

_TOO_SMALL = "The lips are too small to follow the sound: the face has"


def portrait_faults(image: Image.Image, size: Size, *, is_cropped: bool = False) -> list[str]:
    """What is wrong with a portrait once `fit_image` has brought it to the video's size, in one sentence each.

    Args:
        image: the portrait.
        size: height and width of the video.
        is_cropped: it comes from `crop_portrait`, so that this is no remedy.
    """
    finder, pixels = FaceFinder(), _pixels(image)
    if turn := turn_of(finder, pixels):
        return [f"{turned_face(turn).capitalize()}."]
    face = _largest(finder, pixels)
    if face is None:
        return [
            "No face is found. Drawn characters and animals may work all the same; a person's face should be larger, "
            "and seen from the front."
        ]
    faults = []
    (height, width), (left, _, top, _) = fit_layout(image.height, image.width, size)
    scale = max(height / image.height, width / image.width)
    shown = face.size * min(scale, 1.0)
    part = _head_and_shoulders(face, image, size)
    crop = "" if is_cropped else "; @crop_portrait frames head and shoulders"
    if face.size < MIN_FACE:
        faults.append(f"{_TOO_SMALL} {face.size:.0f} pixels in the picture: give a larger one.")
    elif shown < MIN_FACE:
        remedy = crop if face.size * size[0] / (part[3] - part[1]) >= MIN_FACE else ""
        faults.append(f"{_TOO_SMALL} {shown:.0f} pixels in the video, wanted {MIN_FACE:.0f} or more{remedy}.")
    inside = _inside([scale * side for side in face.box], (-left, -top, size[1] - left, size[0] - top))
    if inside < MIN_INSIDE:
        remedy = crop if _inside(face.box, part) >= MIN_INSIDE else ""
        faults.append(f"{1 - inside:.0%} of the face is outside the video of {size[0]}x{size[1]} pixels{remedy}.")
    return faults


def crop_portrait(image: Image.Image, size: Size) -> Image.Image:
    """The part of a picture with the head and the shoulders of its largest face, in the shape of a video's size.

    It is closer where the video is small. A picture that ends before gives the largest part of that shape that it has.

    Raises:
        ValueError: no face is found.
    """
    finder, pixels = FaceFinder(), _pixels(image)
    face = _largest(finder, pixels)
    if face is None:
        if turn := turn_of(finder, pixels):
            raise ValueError(f"no face is found for @crop_portrait: {turned_face(turn)}")
        raise ValueError("no face is found for @crop_portrait; give another picture, or crop it yourself")
    left, top, right, bottom = (round(side) for side in _head_and_shoulders(face, image, size))
    return image.crop((left, top, right, bottom))


def _head_and_shoulders(face: Face, image: Image.Image, size: Size) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the part that `crop_portrait` takes."""
    left, top, right, _ = face.box
    shorter = min(SHOULDERS, max(CLOSEST, 0.97 * min(size) / MIN_FACE)) * face.size
    scale = min(shorter / min(size), image.height / size[0], image.width / size[1])
    height, width = scale * size[0], scale * size[1]
    x = min(max((left + right - width) / 2, 0), image.width - width)
    y = min(max(top - min(HEADROOM * face.size, (height - face.size) / 2), 0), image.height - height)
    return x, y, x + width, y + height


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB")))


def _largest(finder: FaceFinder, picture: Tensor) -> Face | None:
    """The largest face that is sure."""
    return next((face for face in finder.faces(picture) if face.is_sure), None)


def _inside(box: Sequence[float], part: Sequence[float]) -> float:
    """Part of a box in another one; left, top, right and bottom each."""
    across = min(box[2], part[2]) - max(box[0], part[0])
    down = min(box[3], part[3]) - max(box[1], part[1])
    return max(across, 0) * max(down, 0) / ((box[2] - box[0]) * (box[3] - box[1]))
