"""The 13 mel-frequency cepstral coefficients that SyncNet hears, 100 times a second.

Source: `mfcc` of python_speech_features 0.6 (https://github.com/jameslyons/python_speech_features) with its defaults,
which SyncNet's authors use.
"""

from __future__ import annotations

import math

import numpy as np

SAMPLE_RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512
FILTERS, COEFFICIENTS, LIFTER = 26, 13, 22
PRE_EMPHASIS = 0.97
FULL_SCALE = 32768
"""Sound in [-1, 1] is taken as 16-bit integers."""


def mfcc(waveform: np.ndarray) -> np.ndarray:
    """Coefficients of a sound; the first one is the logarithm of the window's energy.

    y[i] = w[i] - 0.97 w[i-1]; P = |rfft(y of 400 samples, no window function, 512)|^2 / 512; 26 triangular filters
    between 0 and 8000 Hz, evenly spaced on the mel scale 2595 log10(1 + f / 700); the orthonormal DCT-II of their
    logarithms, coefficient n times 1 + 11 sin(pi n / 22).

    Args:
        waveform: [n] mono at 16 kHz, in [-1, 1].

    Returns:
        float64 [windows, 13], windows = 1 + ceil((n - 400) / 160), at least 1.
    """
    sound = np.round(np.asarray(waveform, np.float64) * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1)
    emphasised = np.concatenate([sound[:1], sound[1:] - PRE_EMPHASIS * sound[:-1]])
    count = 1 + max(0, math.ceil((len(sound) - WINDOW) / HOP))
    padded = np.pad(emphasised, (0, (count - 1) * HOP + WINDOW - len(emphasised)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(windows, FFT)) ** 2 / FFT
    smallest = np.finfo(np.float64).eps
    mels = np.log(np.where((heard := power @ _filters().T) == 0, smallest, heard))
    places = np.arange(FILTERS)
    orders = np.arange(COEFFICIENTS)
    basis = np.cos(np.pi * orders[:, None] * (2 * places + 1) / (2 * FILTERS)) * math.sqrt(2 / FILTERS)
    basis[0] /= math.sqrt(2)
    coefficients = mels @ basis.T * (1 + LIFTER / 2 * np.sin(np.pi * orders / LIFTER))
    energy = power.sum(axis=1)
    coefficients[:, 0] = np.log(np.where(energy == 0, smallest, energy))
    return coefficients


def _filters() -> np.ndarray:
    """[26, 257] weights of the frequencies in the filters, whose edges lie on whole bins."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, FILTERS + 2) / 2595) - 1)
    edges = np.floor((FFT + 1) * hertz / SAMPLE_RATE)
    filters = np.zeros((FILTERS, FFT // 2 + 1))
    for index, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = np.arange(low, middle), np.arange(middle, high)
        filters[index, int(low) : int(middle)] = (rising - low) / max(middle - low, 1)
        filters[index, int(middle) : int(high)] = (high - falling) / max(high - middle, 1)
    return filters
