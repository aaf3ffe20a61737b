"""Pictures with and without faces, for tests: drawn people, and whatever else is no face."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from diffsynth_omniavatar.media.video import read_frames
from diffsynth_omniavatar.nano.speaker.clips import draw_clip

GREY = (96, 112, 120)


def drawn_person(seed: int, side: int = 192) -> Image.Image:
    """A person of nano/speaker, who fills a square."""
    return Image.fromarray(draw_clip(seed, 4, split="train").frames[0]).resize((side, side), Image.Resampling.BICUBIC)


_HEADS = {"demo1_video": (400, 520), "demo3_video": (380, 450)}
"""Left and top of a square of 400 pixels in a clip's first frame."""


def real_person(shared_data: Path, name: str, side: int = 192) -> Image.Image:
    """The head of somebody in a real clip."""
    return head_of(read_frames(shared_data / "talking_heads" / f"{name}.mp4", count=1)[0], name, side)


def head_of(frame: torch.Tensor, name: str, side: int = 192) -> Image.Image:
    """The head in the first frame of a real clip, in a square of half its width."""
    left, top = _HEADS[name]
    return Image.fromarray(frame[top : top + 400, left : left + 400].numpy()).resize((side, side))


def placed(
    people: list[tuple[Image.Image, float, float]], height: int = 360, width: int = 640, oval: bool = False
) -> torch.Tensor:
    """People in a picture, each at the place of its middle, the first in front: uint8 [height, width, 3]."""
    canvas = Image.new("RGB", (width, height), GREY)
    for person, x, y in reversed(people):
        mask = Image.new("L", person.size, 0)
        draw = ImageDraw.Draw(mask)
        (draw.ellipse if oval else draw.rectangle)((0, 0, person.width, person.height), fill=255)
        canvas.paste(person, (round(x - person.width / 2), round(y - person.height / 2)), mask)
    return torch.from_numpy(np.array(canvas))


def moved(picture: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    """A picture in which what was at p lies at matrix [2, 3] applied to p."""
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    image = Image.fromarray(picture.numpy())
    turned = image.transform(
        image.size, Image.Transform.AFFINE, inverse.ravel().tolist(), Image.Resampling.BICUBIC, fillcolor=GREY
    )
    return torch.from_numpy(np.array(turned))


def pictures_without_faces(rng: np.random.Generator, height: int, width: int) -> dict[str, torch.Tensor]:
    """Noise of some grain, a gradient, waves, squares, and shapes."""
    y, x = np.mgrid[:height, :width]
    grain = int(2 ** rng.integers(0, 6))
    noise = rng.integers(0, 256, (max(1, height // grain), max(1, width // grain), 3), dtype=np.uint8)
    slopes = rng.normal(size=(2, 3))
    waves = sum(np.sin(a * x + b * y + c) for a, b, c in rng.normal(size=(4, 3)) * (0.3, 0.3, 3))
    side = rng.integers(4, 80)
    return {
        "noise": torch.from_numpy(np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))),
        "gradient": _bytes(x[..., None] / width * slopes[0] + y[..., None] / height * slopes[1]),
        "waves": _bytes(waves[..., None] * rng.normal(size=3)),
        "squares": _bytes(((x // side + y // side) % 2)[..., None] * rng.normal(size=3)),
        "shapes": _shapes(rng, height, width),
    }


def _bytes(values: np.ndarray) -> torch.Tensor:
    low, high = values.min(), values.max()
    return torch.from_numpy(((values - low) / (high - low) * 255).astype(np.uint8))


def _shapes(rng: np.random.Generator, height: int, width: int) -> torch.Tensor:
    canvas = Image.new("RGB", (width, height), GREY)
    draw = ImageDraw.Draw(canvas)
    for number in range(12):
        x, y, across, down = (
            int(value) for value in rng.integers((0, 0, 5, 5), (width, height, width // 3, height // 3))
        )
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        (draw.ellipse if number % 2 else draw.rectangle)((x - across, y - down, x + across, y + down), fill=colour)
    return torch.from_numpy(np.array(canvas))
