"""The sound of a row of phonemes in somebody's voice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...media.timeline import SAMPLE_RATE
from .phonemes import PHONEMES, Sentence, smooth
from .splits import Split, draw_unit


@dataclass(frozen=True, kw_only=True)
class Voice:
    """Who speaks, for the ear."""

    pitch: float
    """Hertz, on average."""

    formant_scale: float
    """All formants are multiplied by this: above one for short vocal tracts."""

    breathiness: float
    """Part of noise in voiced sounds, 0 to 1."""

    tilt: float
    """Hertz from which the pulses' spectrum falls by 6 dB per octave."""

    loudness: float
    """Effective value of vowels, full scale being 1."""

    hiss: float
    """Effective value of the noise that is always there."""


def draw_voice(rng: np.random.Generator, *, split: Split) -> Voice:
    """A voice from the bands of pitch and of formant scale that belong to the split."""
    return Voice(
        pitch=90 * 3 ** draw_unit(rng, split),
        formant_scale=0.88 + 0.3 * draw_unit(rng, split),
        breathiness=rng.uniform(0.0, 0.4),
        tilt=rng.uniform(300, 900),
        loudness=10 ** (rng.uniform(-32, -16) / 20),
        hiss=10 ** (rng.uniform(-90, -60) / 20),
    )


_HOP, _WINDOW, _FFT = 80, 320, 1024


def synthesise(sentence: Sentence, voice: Voice, rng: np.random.Generator, samples: int) -> np.ndarray:
    """The sentence as sound, float32 [samples], mono at 16 kHz, below full scale.

    Windows of 20 ms of the source are filtered each with the formants of their time, and added up.
    """
    hops = samples // _HOP + _WINDOW // _HOP + 1
    formants, voiced, noisy, bands = _tracks(sentence, voice, hops)
    length = (hops - 1) * _HOP + _WINDOW
    breath = rng.standard_normal(length)
    pulses = _pulses(_pitch(voice, rng, length))
    source = (1 - voice.breathiness) * pulses + voice.breathiness * breath
    window = np.hanning(_WINDOW + 1)[:-1] * 2 * _HOP / _WINDOW
    spectrum = _spectra(source, window) * _voice_response(formants, voice) * voiced[:, None]
    spectrum += _spectra(rng.standard_normal(length), window) * _band_response(bands) * noisy[:, None]
    parts = np.fft.irfft(spectrum, axis=1)
    total = np.zeros(length + _FFT)
    for index, part in enumerate(parts):
        total[index * _HOP : index * _HOP + _FFT] += part
    # The first window's middle is at time zero.
    sound = voice.loudness * total[_WINDOW // 2 : _WINDOW // 2 + samples] + voice.hiss * rng.standard_normal(samples)
    return (sound * (0.95 / max(0.95, np.abs(sound).max()))).astype(np.float32)


def _tracks(sentence: Sentence, voice: Voice, hops: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """By hop: formants [hops, 3], amplitudes of voice [hops] and of noise [hops], noise bands [hops, 2]."""
    times = np.arange(hops) * _HOP / SAMPLE_RATE
    places = sentence.at(times)
    begins = np.cumsum(sentence.seconds) - sentence.seconds
    table = [PHONEMES[label] for label in sentence.phonemes[places]]
    progress = (times - begins[places]) / sentence.seconds[places]
    sounding = progress >= np.array([phoneme.closure for phoneme in table])
    loudness = sentence.loudness[places] * sounding
    formants = np.array([phoneme.formants for phoneme in table], float) * voice.formant_scale
    voiced = np.array([phoneme.voiced for phoneme in table]) * loudness
    noisy = np.array([phoneme.noise for phoneme in table]) * loudness
    bands = np.array([phoneme.band for phoneme in table], float)
    return smooth(formants, 12), smooth(voiced, 6), smooth(noisy, 4), bands


def _pitch(voice: Voice, rng: np.random.Generator, length: int) -> np.ndarray:
    """Hertz by sample: slow waves of intonation around the voice's pitch."""
    times = np.arange(length) / SAMPLE_RATE
    melody = np.zeros(length)
    for rate in (0.3, 0.8, 2.3):
        melody += rng.uniform(0.02, 0.08) * np.sin(2 * np.pi * (rate * times + rng.random()))
    return voice.pitch * (1 + melody)


def _pulses(pitch: np.ndarray) -> np.ndarray:
    """A train of pulses of effective value one, each shared out between the two samples beside it."""
    phase = np.cumsum(pitch / SAMPLE_RATE)
    places = np.flatnonzero(np.diff(np.floor(phase)))
    share = (np.floor(phase[places + 1]) - phase[places]) / (phase[places + 1] - phase[places])
    pulses = np.zeros(len(pitch))
    height = np.sqrt(SAMPLE_RATE / pitch[places])
    pulses[places] += height * (1 - share)
    pulses[places + 1] += height * share
    return pulses


def _spectra(sound: np.ndarray, window: np.ndarray) -> np.ndarray:
    parts = np.lib.stride_tricks.sliding_window_view(sound, len(window))[::_HOP]
    return np.fft.rfft(parts * window, _FFT, axis=1)


def _voice_response(formants: np.ndarray, voice: Voice) -> np.ndarray:
    """Complex response [hops, bins] of tilt and a cascade of resonances, of equal power for all formants.

    Klatt, "Software for a cascade/parallel formant synthesizer" (1980): 1 / (1 - b z^-1 - c z^-2).
    """
    frequency = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    delay = np.exp(-2j * np.pi * frequency / SAMPLE_RATE)
    fixed = np.array([[3500.0, 4500.0]]) * voice.formant_scale
    peaks = np.concatenate([formants, np.broadcast_to(fixed, (len(formants), 2))], axis=1)
    response = np.broadcast_to(frequency / (frequency + 60) / (1 + frequency / voice.tilt), (len(peaks), len(delay)))
    for place, bandwidth in enumerate((70.0, 90.0, 140.0, 250.0, 300.0)):
        radius = math.exp(-math.pi * bandwidth / SAMPLE_RATE)
        b = 2 * radius * np.cos(2 * np.pi * peaks[:, place, None] / SAMPLE_RATE)
        response = response / (1 - b * delay + radius**2 * delay**2)
    return response / np.sqrt((np.abs(response) ** 2).mean(axis=1, keepdims=True))


def _band_response(bands: np.ndarray) -> np.ndarray:
    """Response [hops, bins] of bands of noise, of equal power."""
    frequency = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    response = np.exp(-0.5 * ((frequency - bands[:, :1]) / bands[:, 1:]) ** 2)
    return response / np.sqrt((response**2).mean(axis=1, keepdims=True))
