"""Long videos of the small model, measured while they are made: a chunk is looked at and forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from ..media.timeline import FRAME_RATE
from ..media.writer import VideoWriter
from ..metrics.stability import sharpness
from ..metrics.sync import correlation
from .batch import SEED_STEP, generate_chunks
from .measure import measure_mouth
from .regions import background, static_region
from .speaker.clips import SpeakerClip
from .stage import Stage, open_video, take_of

WINDOW = 30
"""Seconds at the start and at the end that are compared; of shorter videos a quarter."""
FILES = 2
"""Videos that are kept as files."""


@dataclass(frozen=True)
class Track:
    """What each frame of a video of F frames shows."""

    openness: np.ndarray
    """[F], as `measure_mouth`."""
    width: np.ndarray
    wall: np.ndarray
    """Mean colour where the person never is, of 255: [F, 3]."""
    error: np.ndarray
    """Mean squared difference from the portrait where a person that keeps still never changes, [F]."""
    sharpness: np.ndarray
    """Deviation of the Laplacian of the grey picture, [F]."""

    def part(self, place: slice) -> Track:
        """Some of the frames."""
        return Track(*(getattr(self, field.name)[place] for field in fields(self)))

    @property
    def psnr(self) -> float:
        """Of the static places to the portrait, in dB."""
        return float(10 * np.log10(255**2 / max(self.error.mean(), 1e-9)))

    def mouth_r(self, clip: SpeakerClip, place: slice, leading: int) -> tuple[float, float]:
        """r of openness and width with the true ones, of the frames that hear the rows of a place."""
        heard = self.part(slice(leading, None)).part(place)
        return correlation(heard.openness, clip.openness[place]), correlation(heard.width, clip.width[place])


def look(frames: np.ndarray, portrait: np.ndarray, static: np.ndarray) -> Track:
    """What frames uint8 [F, H, W, 3] show, against the portrait [H, W, 3]; static places are bool [H, W]."""
    wall = frames[:, background()].mean(axis=1, dtype=np.float64)
    difference = frames[:, static].astype(np.float32) - portrait[static].astype(np.float32)
    grey = np.pad(frames.mean(axis=3, dtype=np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    sharp = sharpness(torch.from_numpy(grey)).numpy()
    return Track(*measure_mouth(frames), wall, (difference**2).mean(axis=(1, 2)), sharp)


def follow(stage: Stage, clips: Sequence[SpeakerClip], name: str) -> list[Track]:
    """Make videos of clips that keep still, of which only the first frame need be drawn; the first few become files."""
    tracks: list[Track] = []
    for start in range(0, len(clips), stage.batch):
        part = clips[start : start + stage.batch]
        sampling = replace(stage.sampling, seed=stage.sampling.seed + SEED_STEP * start)
        chunks = generate_chunks(stage.pipe, [take_of(clip) for clip in part], sampling)
        with ExitStack() as files:
            writers = [
                files.enter_context(
                    open_video(
                        stage.out / f"{name}_{start + index}.mp4",
                        clip.frames.shape[1:3],
                        clip.waveform,
                        stage.leading / FRAME_RATE,
                    )
                )
                for index, clip in enumerate(part[: max(0, FILES - start)])
            ]
            tracks += _tracks(chunks, part, writers)
    return tracks


def _tracks(chunks: Iterator[np.ndarray], clips: Sequence[SpeakerClip], writers: Sequence[VideoWriter]) -> list[Track]:
    regions = [static_region(clip.identity) for clip in clips]
    seen: list[list[Track]] = [[] for _ in clips]
    for chunk in chunks:
        for writer, video in zip(writers, chunk, strict=False):
            writer.write(torch.from_numpy(video))
        for found, video, clip, region in zip(seen, chunk, clips, regions, strict=True):
            found.append(look(video, clip.frames[0], region))
    return [
        Track(*(np.concatenate([getattr(one, field.name) for one in found]) for field in fields(Track)))
        for found in seen
    ]


def windows(frames: int) -> list[slice]:
    """Rows of so many that are compared: of `WINDOW` seconds each, or quarters of a shorter video; the last ends with
    the last row.
    """
    length = min(WINDOW * FRAME_RATE, frames // 4)
    return [slice(frames - at, frames - at + length) for at in range(frames // length * length, 0, -length)]
