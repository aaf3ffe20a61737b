"""Small clips for tests, whose pictures tell which frame they are."""

import csv
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.nano.speaker.clips import draw_clip

LEVEL_STEP = 6
"""Grey levels between frames; lossless coding of a flat picture changes less than half of that."""


def noise(seconds: float, seed: int = 0, rate: int = 16000) -> Sound:
    samples = 0.2 * np.random.default_rng(seed).standard_normal((1, round(seconds * rate)))
    return Sound(samples.astype(np.float32), rate)


def write_levels(path: Path, frames: int, size: int = 32, sound: Sound | None = None) -> Path:
    """A clip with sound whose frame i has the grey level 6 i."""
    with VideoWriter(path, size, size, crf=0, sound=sound or noise(frames / 25)) as writer:
        levels = (LEVEL_STEP * torch.arange(frames)).to(torch.uint8)
        writer.write(levels.view(-1, 1, 1, 1).expand(-1, size, size, 3))
    return path


def shown(frames: torch.Tensor) -> list[int]:
    """Which frames pictures [..., H, W, 3] of `write_levels` are."""
    return (frames.float().mean((-3, -2, -1)) / LEVEL_STEP).round().int().flatten().tolist()


def write_texture(path: Path, frames: int, seed: int = 0, height: int = 32, width: int = 32) -> Path:
    """A clip with sound whose pictures are all different blocks of colour."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(40, 216, (frames, height // 8, width // 8, 3), generator=generator, dtype=torch.uint8)
    with VideoWriter(path, height, width, crf=0, sound=noise(frames / 25, seed)) as writer:
        writer.write(blocks.repeat_interleave(8, 1).repeat_interleave(8, 2))
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="") as content:
        table = csv.DictWriter(content, ["video", "prompt", "audio", "reference", "mask"])
        table.writeheader()
        table.writerows(rows)
    return path


def write_prepared(folder: Path, frames: int = 21, size: int = 32) -> Path:
    """A prepared directory without tensors."""
    folder.mkdir(parents=True)
    write_levels(folder / "sub_clip.mp4", frames, size)
    soundfile.write(folder / "audio.wav", noise(frames / 25).samples[0], 16000)
    (folder / "prompt.txt").write_text("A person talks.\n")
    return folder


def frame_count(video, sample) -> dict[str, float]:
    """A metric of validation videos."""
    return {"frames": video.frames}


def sound_name(video, sample) -> dict[str, float]:
    """Another one: how many letters the sound's name has."""
    return {"letters": len(sample.sound.stem)}


def portrait(size: int) -> Image.Image:
    """A drawn face of size x size pixels."""
    return Image.fromarray(draw_clip(0, 1, split="train").frames[0]).resize((size, size))


def speech(seconds: float) -> np.ndarray:
    """Made-up speech, float32 [n] at 16 kHz; it begins without a pause."""
    return _speech()[16000 : 16000 + round(16000 * seconds)].copy()


@functools.cache
def _speech() -> np.ndarray:
    return draw_clip(0, 75, split="train").waveform
