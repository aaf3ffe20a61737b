"""What the first pass of `prepare` would see in made-up videos, for the tests of data/prepare/."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from diffsynth_omniavatar.data.prepare.look import SAMPLE_EVERY, Look
from diffsynth_omniavatar.media.faces.face import Face, Track

GOOD_PIXELS = (80.0, 120.0, 0.0)
"""Sharpness, brightness and clipped part of a face that is fine."""


def face(x: float, y: float, size: float, openness: float = 0.0, **changes: Any) -> Face:
    """A face whose box has its middle at x, y."""
    half = size / 2
    return Face(
        **{
            "box": (x - half, y - half, x + half, y + half),
            "score": 0.9,
            "flag": 1.0,
            "anchors": ((x - 0.2 * size, y - 0.2 * size), (x + 0.2 * size, y - 0.2 * size), (x, y)),
            "openness": openness,
            "width": 0.8,
            "yaw": 0.0,
            "pitch": 0.0,
            "roll": 0.0,
            "nose_offset": 0.0,
            **changes,
        }
    )


def track(
    frames: range,
    x: float = 48,
    y: float = 48,
    size: float = 40,
    spoken: Iterable[range] = (),
    motion: float = 0.2,
    **changes: Any,
) -> Track:
    """A face that stands still; its lips move in the spoken frames."""
    moves = {frame for part in spoken for frame in part}
    opened = [motion * (frame % 2) if frame in moves else 0.0 for frame in frames]
    return Track(start=frames.start, faces=tuple(face(x, y, size, height, **changes) for height in opened))


def look(
    frames: int,
    tracks: Sequence[Track],
    spoken: Sequence[range],
    *,
    cuts: Sequence[int] = (),
    size: tuple[int, int] = (96, 96),
    pixels: tuple[float, float, float] = GOOD_PIXELS,
    **changes: Any,
) -> Look:
    """A look at a video in which somebody speaks in the given frames, over faint noise."""
    power = torch.full((frames,), 1e-7)
    for part in spoken:
        power[part.start : part.stop] = 1e-3
    samples = [
        (float(number), float(frame), *pixels)
        for number, one in enumerate(tracks)
        for frame in one.frames
        if frame % SAMPLE_EVERY == 0
    ]
    return Look(
        **{
            "height": size[0],
            "width": size[1],
            "frame_rate": 25.0,
            "frames": frames,
            "cuts": tuple(cuts),
            "duplicates": frozenset(),
            "light": torch.full((frames,), 100.0),
            "thumbnails": torch.randint(
                0, 255, (frames // 25 + 1, 8, 9), generator=torch.Generator().manual_seed(frames), dtype=torch.uint8
            ),
            "power": power,
            "speech": tuple((part.start / 25, part.stop / 25) for part in spoken),
            "tracks": tuple(tracks),
            "samples": torch.tensor(samples).view(-1, 5),
            **changes,
        }
    )
