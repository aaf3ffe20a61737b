"""Sound in: files, sound tracks and arrays to samples, and to what the speech encoder takes.

Bad files raise `ValueError` with the path and what is wrong with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
import torch

from .files import MediaError, decoded, named_faults, open_media, picture_stream, sound_stream
from .sound_file import is_all, sound_blocks
from .timeline import FRAME_RATE, SAMPLE_RATE
from .video import first_picture

SILENCE = 1e-4
"""A sound whose samples all lie below this part of full scale counts as silent."""

MAX_CHANNELS = 8
"""Most channels of a sound given as an array; the longer side of an array is time."""

LONGEST_SOUND = 4 * 3600
"""Most seconds of a sound."""

MAX_SAMPLES = 2**30
"""Most samples of all channels of a sound, 4 GiB; a small file can claim, or unpack to, any number."""

_RATES = (1000, 1_000_000)
"""Samples per second that a recording can have; a damaged header claims others."""

_DRIFT = 0.02
"""Most seconds, half a video frame, between a block's place and its timestamp; smaller ones are rounding."""

_LONGEST_HOLE = 60
"""Seconds that may be missing from a sound track beyond as much as it has; more is a damaged timestamp."""

_LONGEST_OVERLAP = 1
"""Seconds by which a block may begin before the end of the block before; more is a damaged timestamp."""

LOUDEST = 100
"""Peak of a sound, full scale being 1, from which on its samples are taken to have another unit."""

_CANCELLED = 0.25
"""Channels cancel out if their mean is less than this part of what the loudest of them alone would give."""


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
        ValueError: the source has no sound, cannot be read, is shorter than one video frame (40 ms) or longer than 4
            hours, silent or far above full scale, has values that are not finite, or channels that cancel out in their
            mean; or the file is damaged, cut off, or joined of several.
    """
    if isinstance(source, (str, Path)):
        if rate is not None:
            raise ValueError(f"{source}: rate={rate} given for a file, which has its own; leave it out")
        name, sound = str(source), _read_sound(source)
    else:
        if rate is None:
            raise ValueError("an array of samples needs its rate: load_sound(array, rate=...)")
        name, sound = "the given sound", Sound(_array_samples(source), rate)
    heard = _Heard(sound.rate, name)
    heard.add(sound.samples)
    heard.check(allow_silent)
    return sound


def load_speech(path: str | Path) -> torch.Tensor:
    """`speech_waveform(load_sound(path))` of a video, in little more memory than it takes itself, whatever the length.

    It is resampled in pieces, which changes the last bits.

    Raises:
        ValueError: as `load_sound`.
    """
    heard, stream = None, None
    parts = []
    for rate, block in _sound_track(path):
        heard = heard or _Heard(rate, str(path))
        heard.add(block)
        mono = block.mean(axis=0)
        if rate != SAMPLE_RATE:
            stream = stream or soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
            mono = stream.resample_chunk(mono)
        parts.append(mono)
    assert heard is not None  # without any block an error was raised
    heard.check(allow_silent=False)
    if stream is not None:
        parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return _of_length(np.concatenate(parts), math.ceil(heard.samples * (SAMPLE_RATE / heard.rate)))


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
        raise MediaError(f"{path}: is not a file")
    with named_faults(path), open(path, "rb") as file:
        try:
            # OmniAvatar reads sound through this library too; it knows wav, flac, ogg and mp3 but no video. It is given
            # no name because it believes endings: a video called .mp3 would be noise.
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                blocks = [np.zeros((sound.channels, 0), np.float32), *_limited(sound_blocks(sound), path)]
                samples = np.concatenate(blocks, axis=1)
                if is_all(sound, samples.shape[1], path):
                    return Sound(samples, sound.samplerate)
        except soundfile.LibsndfileError:
            pass  # FFmpeg knows more formats, and tells where a file is damaged
    return _decode_sound(path)


def _limited(blocks: Iterable[np.ndarray], path: str | Path) -> Iterator[np.ndarray]:
    """The blocks; ValueError if they are too many for one sound."""
    samples = 0
    for block in blocks:
        samples += block.size
        if samples > MAX_SAMPLES:
            raise MediaError(f"{path}: has more than {MAX_SAMPLES} samples of sound; cut it into parts")
        yield block


def _decode_sound(path: str | Path) -> Sound:
    rates, blocks = zip(*_sound_track(path), strict=True)
    return Sound(np.concatenate(list(_limited(blocks, path)), axis=1), rates[0])


def _sound_track(path: str | Path) -> Iterator[tuple[int, np.ndarray]]:
    """Rate and samples [channels, n], block by block, of the sound track of a file on the file's clock: silence for
    what is missing, cut if it starts before.
    """
    with open_media(path) as container:
        stream = sound_stream(container, path)
        start = None if picture_stream(container) is None else first_picture(path).time
        frames = decoded(container.decode(stream), path)
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{path}: the sound is empty")
        if start is None and first.pts is not None:
            start = first.pts * (first.time_base or Fraction(0))
        rate = first.sample_rate
        is_gapless = container.format.name == "flac"
        filled, held = 0, np.zeros((0, 0), np.float32)
        for block in _placed(chain([first], frames), start or Fraction(0), path, is_gapless):
            if filled:
                yield rate, held
            filled, held = filled + block.shape[1], block
        # An encoder fills up its last block; the header, where there is one, tells where the sound ended.
        if stream.start_time is not None and stream.duration is not None and stream.time_base is not None:
            end = round(((stream.start_time + stream.duration) * stream.time_base - (start or 0)) * rate)
            if 0 < filled - end < held.shape[1]:
                held = held[:, : end - filled]
        yield rate, held


def _placed(
    frames: Iterable[av.AudioFrame], start: Fraction, path: str | Path, is_gapless: bool
) -> Iterator[np.ndarray]:
    """Samples [channels, n] of decoded frames from `start` on, each at its timestamp: holes filled, overlaps cut.

    A hole in a file that is gapless by its format is damage that FFmpeg passed over.
    """
    resampler = av.AudioResampler(format="fltp")
    kind: tuple[int, int] | None = None
    filled = missing = own = 0
    for frame in frames:
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        kind = kind or (rate, channels)
        if kind != (rate, channels):
            raise MediaError(
                f"{path}: the sound changes from {kind[0]} Hz and {kind[1]} channels to {rate} Hz and {channels} "
                f"after {filled / kind[0]:.3f} s; encode it again"
            )
        block = np.concatenate([part.to_ndarray() for part in resampler.resample(frame)], axis=1)
        own += block.shape[1]
        ahead = 0
        if frame.pts is not None and frame.time_base is not None:
            ahead = round((frame.pts * frame.time_base - start) * rate) - filled
        if ahead > 0 and filled and is_gapless:
            raise MediaError(f"{path}: is damaged after {filled / rate:.3f} s; encode it again")
        if ahead > 0 and (ahead > _DRIFT * rate or not filled):
            missing += ahead
            if missing > _LONGEST_HOLE * rate + own:
                raise MediaError(_damaged_time(path, filled / rate, ahead / rate))
            block = np.pad(block, ((0, 0), (ahead, 0)))
        elif ahead < 0 and (ahead < -_DRIFT * rate or not filled):
            if filled and ahead < -_LONGEST_OVERLAP * rate:
                raise MediaError(_damaged_time(path, filled / rate, ahead / rate))
            block = block[:, -ahead:]
        filled += block.shape[1]
        yield block


def _damaged_time(path: str | Path, at: float, jump: float) -> str:
    return (
        f"{path}: the sound's timestamps jump by {jump:.3f} s after {at:.3f} s of sound, so they are taken to be "
        "damaged; encode it again"
    )


class _Heard:
    """What is found out about a sound while its samples come."""

    def __init__(self, rate: int, name: str) -> None:
        if not _RATES[0] <= rate <= _RATES[1]:
            raise ValueError(f"{name}: the sound has {rate} samples per second; encode it again, at 16000 or more")
        self.rate, self.name = rate, name
        self.samples = 0
        """Of each channel."""
        self._peak = 0.0
        self._squares: np.ndarray | float = 0.0
        self._mono_squares = 0.0

    def add(self, block: np.ndarray) -> None:
        """The next samples [channels, n]; ValueError if they are not finite or there are too many by now."""
        if block.size == 0:
            return
        self.samples += block.shape[1]
        seconds = self.samples / self.rate
        if seconds > LONGEST_SOUND:
            raise ValueError(f"{self.name}: the sound lasts {seconds / 3600:.1f} h; cut it into parts of at most 4 h")
        loudest = float(np.abs(block).max())
        if not math.isfinite(loudest):
            raise ValueError(f"{self.name}: the sound has values that are not finite (NaN or infinity)")
        self._peak = max(self._peak, loudest)
        mono = block.mean(axis=0)
        self._mono_squares += float(np.dot(mono, mono))
        self._squares = self._squares + np.array([float(np.dot(channel, channel)) for channel in block])

    def check(self, allow_silent: bool) -> None:
        """ValueError for what is wrong with the whole."""
        name, peak = self.name, self._peak
        if self.samples == 0:
            raise ValueError(f"{name}: the sound is empty")
        if self.samples * FRAME_RATE < self.rate:
            raise ValueError(
                f"{name}: the sound lasts {1000 * self.samples / self.rate:.1f} ms; one video frame takes 40 ms"
            )
        if peak > LOUDEST:
            raise ValueError(
                f"{name}: the samples reach {peak:.6g} times full scale; floats go from -1 to 1: divide samples of 16 "
                "bits by 32768"
            )
        if peak < SILENCE and not allow_silent:
            raise ValueError(
                f"{name}: the sound is silent (peak {peak:.1e} of full scale); check the microphone or the track, or, "
                "if silence is meant, read it in Python with load_sound(..., allow_silent=True)"
            )
        squares = np.atleast_1d(self._squares)
        alone = math.sqrt(float(squares.max())) / len(squares)
        if peak >= SILENCE and math.sqrt(self._mono_squares) < _CANCELLED * alone:
            raise ValueError(
                f"{name}: the channels of the sound cancel out in their mean, which is what the model hears (one is "
                "the other turned round?); give one of the channels alone"
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
    return _of_length(resampled, math.ceil(len(mono) * (SAMPLE_RATE / sound.rate)))


def _of_length(samples: np.ndarray, wanted: int) -> torch.Tensor:
    """Samples [n] cut or padded to [wanted]."""
    return torch.from_numpy(np.pad(samples[:wanted], (0, max(0, wanted - len(samples)))))


def add_silence(sound: Sound, seconds: float) -> Sound:
    """`sound` with `seconds` of silence in front, rounded to whole samples; ValueError if negative."""
    if seconds < 0:
        raise ValueError(f"{seconds} s of silence; give 0 or more")
    samples = round(seconds * sound.rate)
    return Sound(np.pad(sound.samples, ((0, 0), (samples, 0))), sound.rate) if samples else sound
