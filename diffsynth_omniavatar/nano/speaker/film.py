"""A short film of the drawn people: somebody walks through a room; after a cut two sit in another one.

They are small, and somewhere in the picture, as in footage that was not made for the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...media.faces.align import align, warp
from ...media.timeline import FRAME_RATE
from .canvas import SIZE
from .clips import SpeakerClip, draw_clip
from .drawing import cut_out
from .identity import BACKGROUNDS, Colour

HEIGHT, WIDTH = 360, 640

DESK = 306
"""Row from which on a desk hides what is behind it."""

WALLS = "beige", "green"
"""Of the two scenes, names in `BACKGROUNDS`."""

Figure = tuple[np.ndarray, np.ndarray]
"""A person in a scene of n frames: `drawing.cut_out`'s pictures, float32 [n, 128, 128, 4], and left edge, upper edge
and side of the square that each takes in the frame, in pixels, [n, 3]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Film:
    """A film of F frames in two scenes. The same person speaks in both, and keeps the head still by itself."""

    frames: np.ndarray
    """uint8 [F, 360, 640, 3], RGB."""
    cut: int
    """First frame of the second scene."""
    speaker: SpeakerClip
    """What is said, and who speaks, in a picture of 128x128."""
    squares: np.ndarray
    """float [F, 3]: where that picture lies in each frame: left edge, upper edge and side in pixels."""

    @property
    def prompt(self) -> str:
        """A description of the speaker, in the first room."""
        return replace(self.speaker.identity, background=WALLS[0]).describe(self.speaker.sways)

    def speaker_in(self, frames: np.ndarray) -> np.ndarray:
        """The speaker's squares out of frames of this film with whatever mouths: uint8 [F, 128, 128, 3]."""
        left, top, side = torch.from_numpy(self.squares).float().T
        zero = torch.zeros_like(side)
        transforms = torch.stack([side, zero, left, zero, side, top], dim=1).view(-1, 2, 3)
        return align(torch.from_numpy(frames), transforms, (SIZE, SIZE)).round().to(torch.uint8).numpy()


def draw_film(seed: int, frames: int) -> Film:
    """The film of a seed, with people, a voice and words that no training has.

    Args:
        seed: 0 or more; equal seeds give equal films.
        frames: 2 at least.
    """
    cut = frames // 2
    rest = frames - cut
    speaker = draw_clip(2 * seed, frames, split="evaluation", sways=False)
    silent = draw_clip(2 * seed + 1, rest, split="evaluation", sways=False, speaks=False)
    speaking, listening = (cut_out(one.identity, one.openness, one.width, one.motion) for one in (speaker, silent))
    way, lean = np.arange(cut) * min(1, 32 / cut), np.sin(np.linspace(0, math.pi, rest))
    bob = 3 * np.abs(np.sin(2 * math.pi * 1.5 * np.arange(cut) / FRAME_RATE))
    walking = _squares(70 + 6.2 * way, DESK + 4 - bob, 136 + 0.7 * way)
    sitting = _squares(370 - 16 * lean, DESK + 5 - 4 * lean, 208 - 6 * lean)
    beside = _squares(90 + 3 * lean, DESK + 3 + 0 * lean, 164 + 0 * lean)
    hall = _scene(_room(WALLS[0], window=(440, 40), picture=(330, 60)), [(speaking[:cut], walking)])
    pair = [(listening, beside), (speaking[cut:], sitting)]
    study = _scene(_room(WALLS[1], window=(30, 30), picture=(270, 50)), pair)
    return Film(
        frames=np.concatenate([hall, study]), cut=cut, speaker=speaker, squares=np.concatenate([walking, sitting])
    )


def _squares(left: np.ndarray, bottom: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Left, top and side [n, 3] of squares that stand on `bottom`."""
    return np.stack([left, bottom - side, side], axis=1)


def _room(wall: str, window: tuple[int, int], picture: tuple[int, int]) -> np.ndarray:
    """A room with a desk in front: float32 [360, 640, 3]. The wall is plain, as the model knows no others.

    Args:
        wall: name in `BACKGROUNDS`.
        window, picture: their left and upper edges.
    """
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    light = 1.02 - 0.16 * rows / HEIGHT
    room = light[..., None] * np.array(BACKGROUNDS[wall], np.float32)

    def fill(left: int, top: int, width: int, height: int, colour: Colour) -> None:
        room[top : top + height, left : left + width] = colour

    left, top = window
    fill(left, top, 150, 130, (236, 234, 226))
    for column in (left + 8, left + 79):
        fill(column, top + 8, 63, 114, (176, 208, 232))
        fill(column, top + 84, 63, 38, (150, 184, 140))
    left, top = picture
    fill(left, top, 70, 54, (70, 54, 46))
    fill(left + 6, top + 6, 58, 42, (212, 196, 160))
    fill(left + 30, top + 18, 26, 30, (150, 110, 84))
    grain = 1 + 0.05 * np.sin(rows[DESK:] / 2.2 + 3 * np.sin(columns[DESK:] / 90))
    room[DESK:] = grain[..., None] * np.array((128, 94, 68), np.float32)
    fill(0, DESK, WIDTH, 6, (158, 120, 88))
    return room


def _scene(room: np.ndarray, figures: Sequence[Figure]) -> np.ndarray:
    """People in a room, behind the desk, later ones in front: uint8 [n, 360, 640, 3]."""
    frames = np.empty((len(figures[0][0]), HEIGHT, WIDTH, 3), np.uint8)
    for index, frame in enumerate(frames):
        picture = room.copy()
        for pictures, squares in figures:
            _put(picture, torch.from_numpy(pictures[index]), *squares[index].tolist())
        picture[DESK:] = room[DESK:]
        frame[:] = (np.clip(picture, 0, 255) + 0.5).astype(np.uint8)
    return frames


def _put(picture: np.ndarray, person: Tensor, left: float, top: float, side: float) -> None:
    """A person [128, 128, 4] in a square of a picture [360, 640, 3], which is changed."""
    row, column, size = math.floor(top), math.floor(left), math.ceil(side) + 1
    scale = SIZE / side
    transform = torch.tensor([[scale, 0, (column - left) * scale], [0, scale, (row - top) * scale]])
    drawn = warp(person, transform, (size, size), "bilinear", fill=0).permute(1, 2, 0).numpy()
    part = picture[row : row + size, column : column + size]
    part *= 1 - drawn[..., 3:].clip(0, 1)
    part += drawn[..., :3]
