"""The strip of pictures in README, from what `omniavatar demo` made.

omniavatar demo && python docs/pictures.py demo
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffsynth_omniavatar.media.video import read_frames

OUT = Path(__file__).resolve().parent / "pictures" / "strip.webp"
SIDE, GAP, LABEL = 128, 4, 22
COLUMNS = 7
ROWS = {
    "before.mp4": "the portrait talks: before fine-tuning",
    "after.mp4": "after fine-tuning on 12 clips of this person",
    "drawn.mp4": "the true frames",
}
FILM = {"film.mp4": "a film", "film_dubbed.mp4": "dubbed: its mouth says something else"}
FILM_COLUMNS = 3


def frames_at(video: Path, count: int) -> list[Image.Image]:
    """So many frames of a video, evenly spread."""
    frames = read_frames(video)
    return [Image.fromarray(np.asarray(frames[round(i)])) for i in np.linspace(0.12, 0.9, count) * (len(frames) - 1)]


def row(canvas: Image.Image, top: int, left: int, label: str, pictures: Sequence[Image.Image], width: int) -> None:
    """A label with pictures below it, each of one width."""
    ImageDraw.Draw(canvas).text((left, top), label, fill="black", font=ImageFont.load_default(15))
    for picture in pictures:
        height = round(width * picture.height / picture.width)
        canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, top + LABEL))
        left += width + GAP


def main(demo: Path) -> None:
    """Write the strip."""
    left = SIDE + 6 * GAP
    width = left + COLUMNS * (SIDE + GAP) - GAP
    pairs = {label: frames_at(demo / name, FILM_COLUMNS) for name, label in FILM.items()}
    half = (width - 6 * GAP) // 2
    small = (half - (FILM_COLUMNS - 1) * GAP) // FILM_COLUMNS
    film_height = round(small * pairs["a film"][0].height / pairs["a film"][0].width)
    step = LABEL + SIDE + 2 * GAP
    canvas = Image.new("RGB", (width, 3 * step + LABEL + film_height), "white")
    row(canvas, step, 0, "portrait", [Image.open(demo / "newcomer.png")], SIDE)
    for number, (name, label) in enumerate(ROWS.items()):
        row(canvas, number * step, left, label, frames_at(demo / name, COLUMNS), SIDE)
    for number, (label, pictures) in enumerate(pairs.items()):
        row(canvas, 3 * step, number * (half + 6 * GAP), label, pictures, small)
    OUT.parent.mkdir(exist_ok=True)
    canvas.save(OUT, quality=82, method=6)
    print(f"{OUT}: {canvas.width}x{canvas.height}, {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
