"""Do lips and sound of a clip fit, and by how much is the sound late: StableSyncNet on a few windows of the source."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...losses.mel import WINDOW, mel_spectrogram, mel_start, mel_window
from ...losses.sync import PICTURE_SIZE
from ...losses.syncnet import StableSyncNet, load_syncnet
from ...losses.windows import lower_half
from ...media.faces.align import LATENTSYNC, align, crop_transforms
from ...media.faces.face import Track
from ...media.images import to_video
from ...media.video import iter_frames

WINDOWS = 4
"""Windows of 16 frames of a clip that are looked at."""

OFFSETS = range(-12, 13)
"""Frames by which the sound may be late (early below zero)."""


@dataclass(frozen=True)
class Sync:
    """Weights of StableSyncNet, by their path, so that each process loads them for itself."""

    path: Path
    device: str = "cpu"

    def identity(self) -> list[Any]:
        """By what other weights are known."""
        facts = self.path.stat()
        return [self.path.name, facts.st_size, facts.st_mtime_ns]

    @property
    def network(self) -> StableSyncNet:
        """The network, loaded once in a process."""
        return _loaded(self.path, self.device)


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, device: str) -> StableSyncNet:
    return load_syncnet(path, device)


def measure_sync(
    path: Path,
    waveform: Tensor,
    places: Mapping[str, tuple[Track, range]],
    duplicates: Collection[int],
    sync: Sync,
) -> dict[str, tuple[float, int]]:
    """Confidence and offset of clips of one source, in one run through its pictures.

    The confidence is the mean cosine at the best offset less the median over all offsets; the offset is the number of
    frames by which the sound is late in the source.

    Args:
        path: the source.
        waveform: [n] its sound at 16 kHz.
        places: by the clip's name, whose face it shows, and its frames.
        duplicates: frames that show the picture before them again.
        sync: the network.

    Returns:
        By the clip's name; clips whose windows have no sound at some offset are absent.
    """
    mel = mel_spectrogram(waveform)
    windows = {name: _windows(frames, mel) for name, (_, frames) in places.items()}
    transforms = {track: crop_transforms(track, LATENTSYNC, duplicates=duplicates) for track, _ in places.values()}
    wanted = defaultdict[int, list[tuple[str, int]]](list)
    for name, starts in windows.items():
        for start in starts:
            for frame in range(start, start + WINDOW):
                wanted[frame].append((name, start))
    crops = defaultdict[tuple[str, int], list[Tensor]](list)
    if wanted:
        for index, picture in enumerate(iter_frames(path, 0, max(wanted) + 1)):
            for name, start in wanted.get(index, ()):
                track, _ = places[name]
                transform = transforms[track][index - track.start][None]
                crops[name, start].append(align(picture[None], transform, (PICTURE_SIZE, PICTURE_SIZE))[0])
    found = {}
    for name, starts in windows.items():
        if starts:
            pictures = [torch.stack(crops.pop((name, start))) for start in starts]
            found[name] = _judged(pictures, starts, mel, sync)
    return found


def _windows(frames: range, mel: Tensor) -> list[int]:
    """First frames of windows, spread over a clip, that have sound at all offsets."""
    first = max(frames.start, -OFFSETS.start)
    last = frames.stop - WINDOW
    while last >= first and mel_start(last + OFFSETS[-1] + WINDOW + 1) > mel.shape[1]:
        last -= 1
    count = min(WINDOWS, (last - first) // WINDOW + 1)
    if count < 1:
        return []
    return [first + round(place * (last - first) / max(count - 1, 1)) for place in range(count)]


@torch.inference_mode()
def _judged(pictures: list[Tensor], starts: list[int], mel: Tensor, sync: Sync) -> tuple[float, int]:
    cosines = []
    for window, start in zip(pictures, starts, strict=True):
        frames = lower_half(to_video(window.round().clamp(0, 255).to(torch.uint8)[None]))
        mels = torch.stack([mel_window(mel, start + offset) for offset in OFFSETS])[:, None]
        vision, sound = sync.network(frames.transpose(1, 2).flatten(1, 2).to(sync.device), mels.to(sync.device))
        cosines.append((vision * sound).sum(dim=1).cpu())
    mean = torch.stack(cosines).mean(dim=0)
    return float(mean.max() - mean.median()), OFFSETS[int(mean.argmax())]
