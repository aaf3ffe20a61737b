"""Dub, first part: the faces of a video, as numbered boxes in a few of its pictures."""

from __future__ import annotations

import filecmp
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...generation.footage import Footage, find_footage
from ...media.pictures import PictureReader
from .faults import field_faults
from .work_queue import Work

SHOWN_SIDE = 960
"""Pixels of the longer side of a single picture with boxes."""
GAP = 8
"""Pixels between two pictures."""
MOST_PICTURES = 12
COLOURS = ("#2e9e5b", "#d9480f", "#1c7ed6", "#ae3ec9", "#e0a100", "#0ca678", "#e64980", "#5c7cfa")


@dataclass(frozen=True, eq=False)
class Box:
    """A face in a picture."""

    face: int
    """Its number, from 1."""
    corners: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of the picture."""

    def moved(self, x: int, y: int) -> Box:
        """The same box in a picture that shows the old one at this place."""
        left, top, right, bottom = self.corners
        return Box(self.face, (left + x, top + y, right + x, bottom + y))


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures of the video beside and below each other, with numbered boxes around their faces."""

    image: Image.Image
    boxes: tuple[Box, ...]

    def face_at(self, x: float, y: float) -> int | None:
        """The number of the face at a place of the sheet, of several boxes the smallest one's; None beside all."""
        hit = [box for box in self.boxes if _is_inside(box, x, y)]
        return min(hit, key=_area).face if hit else None


def _is_inside(box: Box, x: float, y: float) -> bool:
    left, top, right, bottom = box.corners
    return left <= x <= right and top <= y <= bottom


def _area(box: Box) -> float:
    left, top, right, bottom = box.corners
    return (right - left) * (bottom - top)


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
        self.sheet: Sheet | None = None
        self.face = ""
        """Which one somebody has chosen; "" before."""
        self.seconds_done = 0
        self.seconds = 0
        """Of the video, once that is known."""

    def run(self) -> None:
        """Find the faces and draw their boxes; a video that cannot be used is removed."""
        try:
            with field_faults({self.video: "the video"}):
                footage = find_footage(self.video, on_picture=self._looked)
            self.sheet = boxed_pictures(self.video, footage)
        except BaseException:
            shutil.rmtree(self.video.parent, ignore_errors=True)
            raise
        self.footage = footage

    def _looked(self, done: int, seconds: int) -> None:
        self.seconds_done, self.seconds = done, seconds
        self.go_on()

    def shows(self, upload: str) -> bool:
        """Whether a file that was sent is this video."""
        return self.video.is_file() and filecmp.cmp(upload, self.video, shallow=False)

    def choices(self) -> list[tuple[str, str]]:
        """The faces in words, and as `DubRequest.face` names them."""
        footage = self.footage
        if footage is None:
            return []
        faces = [(f"{number}: {footage.place(track)}", str(number)) for number, track in enumerate(footage.tracks, 1)]
        if len(faces) == 1:
            return faces
        return [("the largest of each scene", "largest"), *faces, ("who speaks in the video", "speaking")]


def boxed_pictures(video: Path, footage: Footage) -> Sheet:
    """As few pictures as show every face, in the order of the video, with boxes."""
    reader = PictureReader(video, footage.times)
    pictures = shown_pictures(footage)
    columns = 1 if len(pictures) == 1 else 2
    height, width = footage.size
    scale = min(SHOWN_SIDE / max(height, width), 1.0) / (columns**0.5)
    size = round(width * scale), round(height * scale)
    rows = math.ceil(len(pictures) / columns)
    image = Image.new("RGB", (columns * size[0] + (columns - 1) * GAP, rows * size[1] + (rows - 1) * GAP), "white")
    boxes: list[Box] = []
    for place, picture in enumerate(pictures):
        x, y = place % columns * (size[0] + GAP), place // columns * (size[1] + GAP)
        pixels = Image.fromarray(reader.read(picture).numpy())
        image.paste(pixels.resize(size, Image.Resampling.LANCZOS), (x, y))
        boxes += [box.moved(x, y) for box in _boxes(footage, picture, scale)]
    draw = ImageDraw.Draw(image)
    for box in boxes:
        _draw(draw, box, size[0])
    return Sheet(image, tuple(boxes))


def shown_pictures(footage: Footage) -> list[int]:
    """Pictures in which all faces are seen, each at least once: at most `MOST_PICTURES`, in order."""
    left = dict(enumerate(footage.tracks, start=1))
    chosen: list[int] = []
    while left and len(chosen) < MOST_PICTURES:
        middles = {track.frames[len(track.frames) // 2] for track in left.values()}
        picture = max(middles, key=lambda one: (sum(track.at(one) is not None for track in left.values()), -one))
        if all(track.at(picture) is None for track in left.values()):  # lost for a moment in the middle
            picture = next(iter(left.values())).start
        chosen.append(picture)
        left = {number: track for number, track in left.items() if track.at(picture) is None}
    return sorted(chosen)


def _boxes(footage: Footage, picture: int, scale: float) -> Iterator[Box]:
    for number, track in enumerate(footage.tracks, start=1):
        face = track.at(picture)
        if face is not None:
            left, top, right, bottom = (side * scale for side in face.box)
            yield Box(number, (left, top, right, bottom))


def _draw(draw: ImageDraw.ImageDraw, box: Box, width: int) -> None:
    """A box with its number in a filled corner, above it where there is room."""
    colour = COLOURS[(box.face - 1) % len(COLOURS)]
    line, letters = max(2, width // 200), max(14, width // 22)
    font = ImageFont.load_default(letters)
    left, top = box.corners[:2]
    draw.rectangle(box.corners, outline=colour, width=line)
    text = str(box.face)
    wide, high = draw.textlength(text, font) + letters * 0.7, letters * 1.3
    above = top - high if top >= high else top
    draw.rectangle((left, above, left + wide, above + high), fill=colour)
    draw.text((left + wide / 2, above + high / 2), text, fill="white", font=font, anchor="mm")
