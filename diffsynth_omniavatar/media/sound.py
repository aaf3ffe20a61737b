"""Sound in: files, sound tracks and arrays to samples, and to what the speech encoder takes.

Bad files raise `ValueError` with the path and what is wrong with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
import torch

from .files import open_media, picture_stream
from .timeline import FRAME_RATE, SAMPLE_RATE
from .video import first_picture

SILENCE = 1e-4
"""A sound whose samples all lie below this part of full scale counts as silent."""

MAX_CHANNELS = 8
"""Most channels of a sound given as an array; the longer side of an array is time."""

_SOUND_GAP = 0.05
"""Holes in a sound track's timestamps above this many seconds become silence; smaller ones are rounding."""


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples of a sound, full scale being 1."""

    samples: np.ndarray
    """float32 array [channels, n]."""

    rate: int
    """Samples per second."""

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.dtype != np.float32:
            raise ValueError(
                f"Sound takes float32 samples [channels, n], got {self.samples.dtype} {list(self.samples.shape)}: "
                "use load_sound()"
            )
        if self.rate < 1:
            raise ValueError(f"a sound with {self.rate} samples per second; the rate must be positive")

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples.shape[1] / self.rate


SoundSource = str | Path | Sound | np.ndarray | torch.Tensor
"""A file, a sound, or samples, whose rate has to be given beside them."""


def load_sound(
    source: str | Path | np.ndarray | torch.Tensor, rate: int | None = None, *, allow_silent: bool = False
) -> Sound:
    """Read a sound.

    Args:
        source: a sound file (wav, flac, mp3, m4a, ...), a video file, whose sound track is taken from its first picture
            on, or an array [n], [channels, n] or [n, channels]: floats of full scale 1, int16 or int32.
        rate: samples per second of an array; a file has its own.
        allow_silent: take also a sound that is all silence.

    Raises:
        ValueError: the source has no sound, cannot be read, is shorter than one video frame (40 ms), silent, or has
            values that are not finite.
    """
    if isinstance(source, (str, Path)):
        if rate is not None:
            raise ValueError(f"{source}: rate={rate} given for a file, which has its own; leave it out")
        name, sound = str(source), _read_sound(source)
    else:
        if rate is None:
            raise ValueError("an array of samples needs its rate: load_sound(array, rate=...)")
        name, sound = "the given sound", Sound(_array_samples(source), rate)
    _check_sound(sound, name, allow_silent)
    return sound


def _array_samples(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """float32 samples [channels, n] of an array; the shorter side of two is the channels."""
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    if source.dtype in (np.int16, np.int32):
        samples = (source / -float(np.iinfo(source.dtype).min)).astype(np.float32)
    elif np.issubdtype(source.dtype, np.floating):
        samples = source.astype(np.float32)
    else:
        raise ValueError(f"samples of {source.dtype}; give floats of full scale 1, int16 or int32")
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or min(samples.shape) > MAX_CHANNELS:
        raise ValueError(f"samples of shape {list(source.shape)}; give [n], [channels, n] or [n, channels]")
    return samples.T if samples.shape[0] > samples.shape[1] else samples


def _read_sound(path: str | Path) -> Sound:
    if not Path(path).is_file():
        raise ValueError(f"{path}: is not a file")
    try:
        # OmniAvatar reads sound through this library too; it knows wav, flac, ogg and mp3 but no video.
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return _decode_sound(path)
    return Sound(np.ascontiguousarray(samples.T), rate)


def _decode_sound(path: str | Path) -> Sound:
    """The sound track of a file on the file's clock: silence for what is missing, cut if it starts before."""
    with open_media(path) as container:
        if not container.streams.audio:
            raise ValueError(f"{path}: has no sound track")
        stream = container.streams.audio[0]
        rate, time_base = stream.rate, stream.time_base or Fraction(0)
        start_time = None if picture_stream(container) is None else first_picture(path)[0]
        resampler = av.AudioResampler(format="fltp")
        blocks = [np.zeros((stream.channels, 0), np.float32)]
        filled = 0
        for frame in container.decode(stream):
            block = np.concatenate([part.to_ndarray() for part in resampler.resample(frame)], axis=1)
            ahead = 0
            if frame.pts is not None:
                time = frame.pts * time_base
                start_time = time if start_time is None else start_time
                ahead = round((time - start_time) * rate) - filled
            if ahead > _SOUND_GAP * rate or (ahead > 0 and not filled):
                block = np.pad(block, ((0, 0), (ahead, 0)))
            elif ahead < 0 and not filled:
                block = block[:, -ahead:]
            blocks.append(block)
            filled += block.shape[1]
        samples = np.concatenate(blocks, axis=1)
        # An encoder fills up its last block; the header, where there is one, tells where the sound ended.
        if stream.start_time is not None and stream.duration is not None:
            end = round(((stream.start_time + stream.duration) * time_base - (start_time or 0)) * rate)
            if 0 < filled - end < blocks[-1].shape[1]:
                samples = samples[:, :end]
    return Sound(samples, rate)


def _check_sound(sound: Sound, name: str, allow_silent: bool) -> None:
    if sound.samples.size == 0:
        raise ValueError(f"{name}: the sound is empty")
    if not np.isfinite(sound.samples).all():
        raise ValueError(f"{name}: the sound has values that are not finite (NaN or infinity)")
    if sound.duration * FRAME_RATE < 1:
        raise ValueError(f"{name}: the sound lasts {1000 * sound.duration:.1f} ms; one video frame takes 40 ms")
    peak = float(np.abs(sound.samples).max())
    if peak < SILENCE and not allow_silent:
        raise ValueError(
            f"{name}: the sound is silent (peak {peak:.1e} of full scale); pass allow_silent=True if that is meant"
        )


def speech_waveform(sound: Sound) -> torch.Tensor:
    """float32 tensor [n], mono at 16 kHz, which the speech encoder takes.

    Mean of the channels, then soxr "HQ", cut or padded to ceil(n * ratio) samples: the very samples that
    `librosa.load(path, sr=16000)` gives, which OmniAvatar uses.
    """
    mono = sound.samples.mean(axis=0)
    if sound.rate == SAMPLE_RATE:
        return torch.from_numpy(mono)
    resampled = soxr.resample(mono, sound.rate, SAMPLE_RATE, quality="HQ")
    wanted = math.ceil(len(mono) * (SAMPLE_RATE / sound.rate))
    return torch.from_numpy(np.pad(resampled[:wanted], (0, max(0, wanted - len(resampled)))))


def add_silence(sound: Sound, seconds: float) -> Sound:
    """`sound` with `seconds` of silence in front, rounded to whole samples; ValueError if negative."""
    if seconds < 0:
        raise ValueError(f"{seconds} s of silence; give 0 or more")
    return Sound(np.pad(sound.samples, ((0, 0), (round(seconds * sound.rate), 0))), sound.rate)
