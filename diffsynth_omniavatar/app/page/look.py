"""Dub, first part: the faces of a video, as numbered boxes in a few of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...generation.footage import Footage, find_footage
from ...media.pictures import PictureReader
from .faults import field_faults
from .work_queue import Work

SHOWN_SIDE = 720
"""Pixels of the longer side of a picture with boxes."""
MOST_PICTURES = 12
COLOURS = ("#2e9e5b", "#d9480f", "#1c7ed6", "#ae3ec9", "#e0a100", "#0ca678", "#e64980", "#5c7cfa")


@dataclass(frozen=True, eq=False)
class Box:
    """A face in a picture."""

    face: int
    """Its number, from 1."""
    corners: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of the picture."""


@dataclass(frozen=True, eq=False)
class BoxedPicture:
    """A picture of the video with its faces."""

    pixels: np.ndarray
    """uint8 [H, W, 3], the boxes drawn in."""
    boxes: tuple[Box, ...]
    seconds: float
    """When the video shows it."""


class Look(Work):
    """A video that is looked through for faces.

    Args:
        owner: see `Work`.
        video: the page's copy of it.
    """

    def __init__(self, owner: str, video: Path) -> None:
        super().__init__(owner)
        self.video = video
        self.footage: Footage | None = None
        self.pictures: list[BoxedPicture] = []

    def run(self) -> None:
        """Find the faces and draw their boxes."""
        with field_faults({self.video: "the video"}):
            footage = find_footage(self.video)
        self.go_on()
        self.pictures = boxed_pictures(self.video, footage)
        self.footage = footage

    def choices(self) -> list[tuple[str, str]]:
        """The faces in words, and as `DubRequest.face` names them."""
        footage = self.footage
        if footage is None:
            return []
        numbered = [
            (f"{number}: {footage.place(track)}", str(number)) for number, track in enumerate(footage.tracks, 1)
        ]
        return [("the largest of each scene", "largest"), ("who speaks", "speaking"), *numbered]


def boxed_pictures(video: Path, footage: Footage) -> list[BoxedPicture]:
    """As few pictures as show every face, in the order of the video."""
    left = dict(enumerate(footage.tracks, start=1))
    chosen: list[int] = []
    while left and len(chosen) < MOST_PICTURES:
        middles = {track.frames[len(track.frames) // 2] for track in left.values()}
        picture = max(middles, key=lambda one: (sum(track.at(one) is not None for track in left.values()), -one))
        shown = [number for number, track in left.items() if track.at(picture) is not None]
        if not shown:  # lost for a moment in the middle
            number, track = next(iter(left.items()))
            picture, shown = track.start, [number]
        chosen.append(picture)
        left = {number: track for number, track in left.items() if track.at(picture) is None}
    reader = PictureReader(video, footage.times)
    return [_boxed(footage, picture, reader.read(picture).numpy()) for picture in sorted(chosen)]


def _boxed(footage: Footage, picture: int, pixels: np.ndarray) -> BoxedPicture:
    image = Image.fromarray(pixels)
    scale = min(SHOWN_SIDE / max(image.size), 1.0)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    boxes = []
    for number, track in enumerate(footage.tracks, start=1):
        face = track.at(picture)
        if face is not None:
            left, top, right, bottom = (side * scale for side in face.box)
            boxes.append(Box(number, (left, top, right, bottom)))
    draw = ImageDraw.Draw(image)
    for box in boxes:
        _draw(draw, box, image.width)
    seconds = float(footage.times.starts[picture] * footage.times.tick)
    return BoxedPicture(np.asarray(image), tuple(boxes), seconds)


def _draw(draw: ImageDraw.ImageDraw, box: Box, width: int) -> None:
    """A box with its number in a filled corner, above it where there is room."""
    colour = COLOURS[(box.face - 1) % len(COLOURS)]
    line, letters = max(2, width // 240), max(14, width // 26)
    font = ImageFont.load_default(letters)
    left, top = box.corners[:2]
    draw.rectangle(box.corners, outline=colour, width=line)
    text = str(box.face)
    wide, high = draw.textlength(text, font) + letters * 0.7, letters * 1.3
    above = top - high if top >= high else top
    draw.rectangle((left, above, left + wide, above + high), fill=colour)
    draw.text((left + wide / 2, above + high / 2), text, fill="white", font=font, anchor="mm")
