"""A video in memory: what `generate` and `dub` take and give back in place of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from .images import to_bytes
from .sound import Sound, add_silence

_RATES = (1, 1000)
"""Frames per second that a clip can have."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames at even distances, and their sound.

    Raises:
        ValueError: the frames have another shape or type, there is none of them, or the rate is out of range.
    """

    frames: Tensor
    """uint8 [F, H, W, 3], RGB, on the CPU."""
    frame_rate: Fraction
    """Frames per second."""
    sound: Sound | None = None

    def __post_init__(self) -> None:
        shape = list(self.frames.shape)
        if self.frames.dtype != torch.uint8 or len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"a clip's frames are {self.frames.dtype} {shape}, wanted uint8 [F, H, W, 3]")
        if not shape[0] or min(shape[1:3]) < 2:
            raise ValueError(f"a clip of {shape[0]} frames of {shape[1]}x{shape[2]}, wanted at least one of 2x2 pixels")
        if not _RATES[0] <= self.frame_rate <= _RATES[1]:
            raise ValueError(f"a clip of {float(self.frame_rate):g} frames a second, wanted {_RATES[0]} to {_RATES[1]}")

    def __str__(self) -> str:
        return "the given clip"

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(len(self.frames) / self.frame_rate)


class ClipWriter:
    """Takes frames as `writer.VideoWriter` does, and keeps them.

    Args:
        frames: how many the clip will have.
        height, width: pixels.
        frame_rate: frames per second.
        sound: sound to put beside the picture, cut to its length.
        sound_delay: seconds by which the sound starts after the picture.
    """

    path = "the clip in memory"
    """What messages call it."""

    def __init__(
        self, frames: int, height: int, width: int, frame_rate: Fraction, sound: Sound, sound_delay: float = 0.0
    ) -> None:
        self._frames = torch.empty(frames, height, width, 3, dtype=torch.uint8)
        self._rate = frame_rate
        self._sound = add_silence(sound, sound_delay)
        self.frames_written = 0

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def write(self, frames: Tensor, times: Sequence[tuple[int, int]] | None = None) -> None:
        """Append frames.

        Args:
            frames: [n, H, W, 3], RGB: uint8, or floats in [-1, 1].
            times: as of `VideoWriter`, a tick being a frame of the clip: one that stays for several is repeated.
        """
        pixels = to_bytes(frames) if frames.is_floating_point() else frames
        if times is not None:
            pixels = pixels.repeat_interleave(torch.tensor([stop - start for start, stop in times]), dim=0)
        self._frames[self.frames_written : self.frames_written + len(pixels)] = pixels
        self.frames_written += len(pixels)

    def clip(self) -> Clip:
        """What was written."""
        samples, rate = self._sound.samples, self._sound.rate
        count = round(self.frames_written / self._rate * rate)
        sound = Sound(np.ascontiguousarray(samples[:, :count]), rate)
        return Clip(self._frames[: self.frames_written], self._rate, sound)
