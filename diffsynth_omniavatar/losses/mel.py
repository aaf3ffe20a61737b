"""The mel spectrogram that StableSyncNet hears, after audio.py of Wav2Lip, and its windows beside frames."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

WINDOW = 16
"""Frames that are judged together."""
SAMPLE_RATE = 16000
FFT = 800
HOP = 200
MEL_ROWS = 80
MEL_RANGE = (55.0, 7600.0)
"""Hertz: the lowest edge of the first mel filter and the highest of the last."""
PRE_EMPHASIS = 0.97
REFERENCE_DB = 20.0
FLOOR_DB = -100.0
LARGEST_MEL = 4.0
MEL_COLUMNS = 52
"""Columns of a window of 16 frames: ceil(16 * 80 / 25)."""


def mel_spectrogram(waveform: Tensor) -> Tensor:
    """Mel spectrogram of a whole sound, as StableSyncNet hears it: 80 columns a second, column j centred on 200 j.

    y[i] = w[i] - 0.97 w[i - 1]; S = |STFT(y)| with 800 samples of a Hann window every 200, zeros around the sound; 80
    triangular filters of equal area from 55 to 7600 Hz on Slaney's mel scale; d = 20 log10(max(1e-5, S)) - 20, and
    8 (d + 100) / 100 - 4, cut to [-4, 4]. Computed in float64.

    Cutting the sound first would put zeros where its neighbourhood sounds: take windows of the whole's mel.

    Args:
        waveform [n]: floating point, in [-1, 1], mono, 16 kHz.

    Returns:
        [80, 1 + n // 200] float32 in [-4, 4], on the waveform's device.

    Raises:
        ValueError: the waveform is not one-dimensional, not floating point, or empty.
    """
    if waveform.ndim != 1 or not waveform.is_floating_point() or not len(waveform):
        raise ValueError(f"waveform: got {list(waveform.shape)} {waveform.dtype}, wanted floating [n], mono, 16 kHz")
    sound = waveform.double()
    emphasised = torch.cat([sound[:1], sound[1:] - PRE_EMPHASIS * sound[:-1]])
    window = torch.hann_window(FFT, dtype=torch.float64, device=sound.device)
    spectrum = torch.stft(emphasised, FFT, HOP, window=window, center=True, pad_mode="constant", return_complex=True)
    mel = mel_filters().to(sound.device) @ spectrum.abs()
    decibels = 20 * mel.clamp(min=10 ** (FLOOR_DB / 20)).log10() - REFERENCE_DB
    level = (decibels - FLOOR_DB) / -FLOOR_DB
    return (2 * LARGEST_MEL * level - LARGEST_MEL).clamp(-LARGEST_MEL, LARGEST_MEL).float()


@cache
def mel_filters() -> Tensor:
    """[80, 401] float64 weights of the frequencies 0, 20, ..., 8000 Hz in the mel filters, each of area 1 / Hz.

    Filter i rises from edge i to edge i + 1 and falls to edge i + 2. The edges are evenly spaced on Slaney's scale
    (Auditory Toolbox, 1998): linear below 1000 Hz, where 15 mel are reached, then 27 mel to each factor of 6.4.
    """
    knee, slope, octave = 1000.0, 3 / 200, 27 / math.log(6.4)
    low, high = (f * slope if f < knee else knee * slope + octave * math.log(f / knee) for f in MEL_RANGE)
    mels = torch.linspace(low, high, MEL_ROWS + 2, dtype=torch.float64)
    edges = torch.where(mels < knee * slope, mels / slope, knee * ((mels - knee * slope) / octave).exp())
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))[:, None]


def mel_start(first_frame: int) -> int:
    """The mel column with which frame `first_frame` begins: int(80 * first_frame / 25)."""
    return 16 * first_frame // 5


def mel_window(mel: Tensor, first_frame: int) -> Tensor:
    """[80, 52] columns of mel [80, M] that belong to 16 frames from `first_frame` on, at 25 frames a second.

    Raises:
        ValueError: the sound has fewer columns, or begins later.
    """
    start = mel_start(first_frame)
    if mel.ndim != 2 or mel.shape[0] != MEL_ROWS or first_frame < 0 or start + MEL_COLUMNS > mel.shape[1]:
        raise ValueError(
            f"mel: got {list(mel.shape)}; {WINDOW} frames from frame {first_frame} on are columns {start} to "
            f"{start + MEL_COLUMNS} of [{MEL_ROWS}, M]; use windows that have sound"
        )
    return mel[:, start : start + MEL_COLUMNS]
