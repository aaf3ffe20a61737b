"""Whether a picture or a video is turned: its faces lie on their side or are upside down."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from .face import SURE_SCORE, Face
from .find import FaceFinder

TURNED = 0.1
"""How much better a face is seen in the turned picture, from which on it is told. One that is tilted by 45 degrees
gains up to as much, and one on its side at least 0.12."""

UPRIGHT = 0.7
"""Score of the best face, 0 where none is sure, as the mean over a video: from here on it is not turned. Real people
who talk have 0.85 to 0.93, turned ones up to 0.6."""

_SAMPLES = 5
"""Pictures of a video that are turned to see."""

_SAMPLE_SIDE = 640
"""Pixels of their longer side, or up to twice as many."""

_TURNS = {
    1: ("lies on its side: turn the picture to the left", "transpose=cclock"),
    2: ("is upside down: turn the picture", "hflip,vflip"),
    3: ("lies on its side: turn the picture to the right", "transpose=clock"),
}


def turned_face(turn: int) -> str:
    """What is said of a picture that has to be turned to the left by 90 degrees `turn` times, 1 to 3."""
    return f"the face {_TURNS[turn][0]}"


def turned_video(turn: int) -> str:
    """The same of a video."""
    return f"{turned_face(turn)}, as `ffmpeg -i in.mp4 -vf {_TURNS[turn][1]} out.mp4` does"


def turn_of(finder: FaceFinder, picture: Tensor) -> int | None:
    """How often a picture has to be turned to the left, by 90 degrees each time, for its face to be upright.

    Args:
        finder: what finds the face.
        picture: uint8 [H, W, 3].

    Returns:
        0 to 3, or None where no face is found however it is turned.
    """
    for turn in range(4):
        turned = torch.rot90(picture, turn)
        face = next((face for face in finder.faces(turned) if face.is_sure), None)
        if face is not None:
            scores = finder.standing(turned, face)
            best, unturned = max(range(4), key=lambda index: scores[index]), scores[-turn % 4]
            return (turn + best) % 4 if scores[best] >= max(SURE_SCORE, unturned + TURNED) else 0
    return None


class TurnWatch:
    """Keeps some pictures of a video in which faces are looked for, and says at its end whether it is turned."""

    def __init__(self) -> None:
        self._count, self._step = 0, 1
        self._scores = 0.0
        self._kept: list[Tensor] = []

    def add(self, picture: Tensor, faces: Sequence[Face]) -> None:
        """The next picture, uint8 [H, W, 3], and what is found in it."""
        if self._count % self._step == 0:
            shrink = max(1, max(picture.shape) // _SAMPLE_SIDE)
            self._kept.append(picture[::shrink, ::shrink].clone())
            if len(self._kept) == 2 * _SAMPLES:
                self._kept, self._step = self._kept[::2], 2 * self._step
        self._count += 1
        self._scores += max((face.score for face in faces if face.is_sure), default=0.0)

    def turn(self, finder: FaceFinder) -> int:
        """How often the video has to be turned to the left by 90 degrees; 0 where it is upright, or nobody can tell.

        It costs nothing where faces are seen well, and else about a second.
        """
        if self._scores >= UPRIGHT * self._count:
            return 0
        samples = self._kept[:: math.ceil(len(self._kept) / _SAMPLES)]
        turns, needed = Counter[int | None](), len(samples) // 2 + 1
        for left, sample in zip(reversed(range(len(samples))), samples, strict=True):
            turns[turn_of(finder, sample)] += 1
            most = max(_TURNS, key=lambda turn: turns[turn])
            if turns[most] >= needed:
                return most
            if turns[most] + left < needed:
                break
        return 0
