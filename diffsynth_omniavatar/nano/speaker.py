"""A drawn person who speaks made-up speech: any number of clips whose mouth is known exactly.

    clip = draw_clip(7, frames=81, split="train")
    python -m diffsynth_omniavatar.nano.speaker FOLDER --clips 100 --frames 101 --seed 0 --split train

Sound and mouth come from one row of phonemes. A source-filter synthesiser makes the sound: pulses or noise through
formants (vowels, nasals), bands of noise (fricatives, bursts). The mouth follows targets, openness and width, that a
phoneme has for every voice. Loudness tells little of them: it is drawn by syllable, all vowels are equally loud, "i"
and "u" are nearly closed, and "m" and "s" sound with a closed mouth. Head, eyes and colours know nothing of the sound.

The mouth's targets are smoothed over `COARTICULATION` seconds, and frame j shows it at the middle of its time, at
(j + 1/2) / 25 s: the middle of the sound from j/25 to (j + 1)/25 s.

Nobody and nothing of the evaluation split occurs in training: words, combinations of hair, clothes and background,
and bands of pitch, formant scale and skin tone each belong to one split. numpy draws; PyAV writes.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import multiprocessing
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from ..media.clip import Sound, VideoWriter
from ..media.timeline import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME

Split = Literal["train", "evaluation"]
Colour = tuple[float, float, float]

SIZE = 128
"""Height and width of the pictures."""

COARTICULATION = 0.16
"""Seconds of the Hann window over which the mouth's targets are smoothed. Its width at half height is 80 ms, and its
first zero lies at 12.5 Hz: a mouth seen 25 times a second shows all of its movement."""

EVALUATION_SHARE = 5
"""One in this many words, looks and bands of numbers belongs to the evaluation split."""

# ------------------------------------------------------------------------------------------------------------ phonemes


class Phoneme(NamedTuple):
    """How a phoneme sounds and looks, for every voice."""

    name: str
    openness: float
    """0 closed to 1."""
    width: float
    """0 rounded to 1 spread."""
    seconds: tuple[float, float]
    """Shortest and longest duration."""
    formants: tuple[float, float, float] = (500.0, 1500.0, 2500.0)
    """Hertz, before the voice's formant scale."""
    voiced: float = 0.0
    """Amplitude of the sound through the formants."""
    noise: float = 0.0
    """Amplitude of the band of noise."""
    band: tuple[float, float] = (4000.0, 1000.0)
    """Middle and half width of that band in hertz."""
    closure: float = 0.0
    """Part of the duration that is silent at the start: of plosives."""


_VOWEL, _CONSONANT, _PLOSIVE = (0.14, 0.30), (0.08, 0.14), (0.09, 0.13)

PHONEMES = (
    Phoneme("-", 0.0, 0.5, (0.20, 0.60)),
    # Formants of vowels: men in Peterson and Barney, "Control methods used in a study of the vowels" (1952).
    Phoneme("a", 1.00, 0.60, _VOWEL, (730, 1090, 2440), voiced=1.0),
    Phoneme("ae", 0.80, 0.90, _VOWEL, (660, 1720, 2410), voiced=1.0),
    Phoneme("e", 0.50, 0.80, _VOWEL, (530, 1840, 2480), voiced=1.0),
    Phoneme("i", 0.20, 1.00, _VOWEL, (270, 2290, 3010), voiced=1.0),
    Phoneme("o", 0.65, 0.20, _VOWEL, (570, 840, 2410), voiced=1.0),
    Phoneme("u", 0.20, 0.00, _VOWEL, (300, 870, 2240), voiced=1.0),
    Phoneme("er", 0.35, 0.40, _VOWEL, (490, 1350, 1690), voiced=1.0),
    Phoneme("s", 0.10, 0.75, _CONSONANT, noise=0.9, band=(6200, 900)),
    Phoneme("sh", 0.15, 0.15, _CONSONANT, noise=1.0, band=(3200, 800)),
    Phoneme("f", 0.05, 0.50, _CONSONANT, noise=0.5, band=(4500, 3500)),
    Phoneme("m", 0.00, 0.50, _CONSONANT, (260, 1000, 2200), voiced=0.9),
    Phoneme("n", 0.20, 0.60, _CONSONANT, (260, 1600, 2600), voiced=0.8),
    Phoneme("l", 0.30, 0.55, _CONSONANT, (360, 1200, 2800), voiced=0.8),
    Phoneme("w", 0.12, 0.00, _CONSONANT, (290, 610, 2150), voiced=0.8),
    Phoneme("p", 0.00, 0.50, _PLOSIVE, (400, 900, 2200), noise=0.6, band=(900, 600), closure=0.7),
    Phoneme("t", 0.12, 0.65, _PLOSIVE, (400, 1700, 2700), noise=0.7, band=(4500, 1200), closure=0.7),
    Phoneme("k", 0.25, 0.50, _PLOSIVE, (400, 1900, 2400), noise=0.7, band=(1900, 500), closure=0.7),
)
"""All phonemes; a label is a place in this table, 0 being the pause."""

VOWELS, CONSONANTS = range(1, 8), range(8, len(PHONEMES))


@dataclass(frozen=True, eq=False)
class Sentence:
    """A row of n phonemes."""

    phonemes: np.ndarray
    """int [n], places in `PHONEMES`."""

    seconds: np.ndarray
    """float [n], durations."""

    loudness: np.ndarray
    """float [n], amplitudes that the phonemes' own are multiplied by."""

    def at(self, times: np.ndarray) -> np.ndarray:
        """Places in the row at `times` in seconds; the last phoneme goes on for ever."""
        ends = np.cumsum(self.seconds)
        return np.minimum(np.searchsorted(ends, times, side="right"), len(ends) - 1)


def _belongs(thing: object, split: Split) -> bool:
    """Whether a word or a combination belongs to the split."""
    held_out = zlib.crc32(repr(thing).encode()) % EVALUATION_SHARE == 0
    return held_out == (split == "evaluation")


def _draw_unit(rng: np.random.Generator, split: Split, bands: int = 20) -> float:
    """A number in [0, 1) from the bands of it that belong to the split."""
    held_out = [band for band in range(bands) if band % EVALUATION_SHARE == 2]
    owned = held_out if split == "evaluation" else [band for band in range(bands) if band not in held_out]
    return float((rng.choice(owned) + rng.random()) / bands)


def _draw_word(rng: np.random.Generator, split: Split) -> list[list[int]]:
    """Two or three syllables of a consonant, a vowel and at times a consonant."""
    while True:
        word = []
        for _ in range(rng.integers(2, 4)):
            syllable = [int(rng.choice(CONSONANTS)), int(rng.choice(VOWELS))]
            word.append(syllable + [int(rng.choice(CONSONANTS))] * (rng.random() < 0.3))
        if _belongs(word, split):
            return word


def draw_sentence(rng: np.random.Generator, seconds: float, *, split: Split) -> Sentence:
    """Words of the split for at least `seconds`, with a pause in front and after each two to four words."""
    phonemes: list[int] = []
    durations: list[float] = []
    loudness: list[float] = []

    def append(phoneme: int, level: float, pace: float) -> None:
        phonemes.append(phoneme)
        durations.append(pace * rng.uniform(*PHONEMES[phoneme].seconds))
        loudness.append(level)

    pace = rng.uniform(0.9, 1.2)
    append(0, 0.0, rng.uniform(0.3, 1.0))
    words = int(rng.integers(2, 5))
    while sum(durations) < seconds:
        for syllable in _draw_word(rng, split):
            level = 10 ** (rng.uniform(-8, 8) / 20)
            for phoneme in syllable:
                append(phoneme, level, pace)
        words -= 1
        if words == 0:
            append(0, 0.0, 1.0)
            words = int(rng.integers(2, 5))
    return Sentence(np.array(phonemes), np.array(durations), np.array(loudness))


NOTHING = Sentence(np.array([0]), np.array([1.0]), np.array([0.0]))
"""A pause that goes on for ever."""


def phoneme_labels(sentence: Sentence, frames: int) -> np.ndarray:
    """int64 [frames]: the phoneme at the middle of each frame."""
    return sentence.phonemes[sentence.at((np.arange(frames) + 0.5) / FRAME_RATE)].astype(np.int64)


def mouth_curves(sentence: Sentence, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Openness and width in [0, 1], float32 [frames]: the phonemes' targets, smoothed, at the middle of each frame.

    What stands before the sentence is as its first phoneme.
    """
    rate = 1000
    half = round(COARTICULATION * rate / 2)
    times = (np.arange(-half, frames * rate // FRAME_RATE + half + 1)) / rate
    places = sentence.phonemes[sentence.at(np.maximum(times, 0.0))]
    middles = (2 * np.arange(frames) + 1) * rate // (2 * FRAME_RATE)
    openness, width = (
        _smooth(np.array([getattr(phoneme, name) for phoneme in PHONEMES])[places], 2 * half)[half + middles]
        for name in ("openness", "width")
    )
    return openness.astype(np.float32), width.astype(np.float32)


def _smooth(track: np.ndarray, length: int) -> np.ndarray:
    """Convolution along axis 0 with a Hann window of `length` steps; the ends are continued."""
    if length < 2:
        return track
    kernel = np.hanning(length + 1)
    padded = np.pad(track, [(length // 2, length // 2), *[(0, 0)] * (track.ndim - 1)], mode="edge")
    columns = padded.reshape(len(padded), -1).T
    smooth = np.stack([np.convolve(column, kernel / kernel.sum(), mode="valid") for column in columns], axis=1)
    return smooth.reshape(track.shape)


# --------------------------------------------------------------------------------------------------------------- sound


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
        pitch=90 * 3 ** _draw_unit(rng, split),
        formant_scale=0.88 + 0.3 * _draw_unit(rng, split),
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
    return _smooth(formants, 12), _smooth(voiced, 6), _smooth(noisy, 4), bands


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


def mouth_of_recording(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A rough mouth for recorded speech: openness by the first formant, width by the second.

    Args:
        waveform: float [n], mono at 16 kHz.

    Returns:
        Openness and width in [0, 1], float32 [n / 640, rounded down]. What is 35 dB below the loud parts is silence,
        with a closed mouth; what has its energy above 2.5 kHz is a fricative, with a narrow one.

    Raises:
        ValueError: less than one frame of sound, or more than one channel.
    """
    if waveform.ndim != 1 or len(waveform) < SAMPLES_PER_FRAME:
        raise ValueError(
            f"waveform {list(waveform.shape)}; wanted mono samples at 16 kHz, at least {SAMPLES_PER_FRAME}"
        )
    frames = len(waveform) // SAMPLES_PER_FRAME
    # Two windows of 40 ms per frame, around its quarters.
    step = SAMPLES_PER_FRAME // 2
    padded = np.pad(waveform.astype(np.float64), step // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, SAMPLES_PER_FRAME)[::step][: 2 * frames]
    level = np.sqrt((windows**2).mean(axis=1))
    power = np.abs(np.fft.rfft(windows * np.hanning(SAMPLES_PER_FRAME), axis=1)) ** 2
    frequency = np.fft.rfftfreq(SAMPLES_PER_FRAME, 1 / SAMPLE_RATE)
    centre = (power * frequency).sum(axis=1) / np.maximum(power.sum(axis=1), 1e-12)
    first, second = np.array([_formants(window) for window in windows]).T
    openness = np.clip((first - 220) / 500, 0, 1)
    width = np.clip((second - 800) / 1400, 0, 1)
    fricative = centre > 2500
    openness[fricative], width[fricative] = 0.1, 0.5
    silent = level < max(1e-4, 10 ** (-35 / 20) * np.quantile(level, 0.95))
    openness[silent], width[silent] = 0.0, 0.5
    smooth = _smooth(np.stack([openness, width], axis=1), round(COARTICULATION * 2 * FRAME_RATE))
    openness, width = smooth.reshape(frames, 2, 2).mean(axis=1).T.astype(np.float32)
    return openness, width


def _formants(window: np.ndarray, order: int = 14) -> tuple[float, float]:
    """First and second formant in hertz, from the roots of a linear prediction by autocorrelation."""
    emphasised = np.diff(window, prepend=0.0) * np.hanning(len(window))
    correlation = np.correlate(emphasised, emphasised, mode="full")[len(window) - 1 :][: order + 1]
    lags = np.abs(np.subtract.outer(np.arange(order), np.arange(order)))
    matrix = correlation[lags] + (1e-6 * correlation[0] + 1e-12) * np.eye(order)
    roots = np.roots([1.0, *-np.linalg.solve(matrix, correlation[1:])])
    roots = roots[roots.imag > 0]
    frequency = np.angle(roots) * SAMPLE_RATE / (2 * np.pi)
    bandwidth = -np.log(np.abs(roots) + 1e-9) * SAMPLE_RATE / np.pi
    peaks = np.sort(frequency[(frequency > 180) & (frequency < 3500) & (bandwidth < 500)])
    return (float(peaks[0]), float(peaks[1])) if len(peaks) > 1 else (500.0, 1500.0)


# ------------------------------------------------------------------------------------------------------------ identity

LIP: Colour = (206, 58, 98)
INSIDE: Colour = (62, 8, 38)
"""Colours of the lips and of the open mouth: the only ones with clearly less green than red and blue."""

HAIR = {
    "black": (44, 38, 38),
    "brown": (104, 70, 46),
    "blond": (222, 188, 118),
    "ginger": (194, 108, 50),
    "grey": (160, 162, 164),
    "white": (232, 230, 226),
}
CLOTHES = {
    "blue": (62, 112, 184),
    "green": (72, 142, 92),
    "yellow": (228, 194, 76),
    "orange": (226, 134, 56),
    "teal": (48, 138, 140),
    "white": (238, 238, 234),
    "black": (48, 50, 54),
}
BACKGROUNDS = {
    "light blue": (172, 204, 228),
    "beige": (226, 212, 188),
    "grey": (134, 138, 142),
    "green": (158, 192, 160),
    "yellow": (240, 226, 158),
    "dark blue": (62, 86, 118),
}
SKIN = np.array([(252, 222, 196), (236, 190, 154), (190, 136, 98), (124, 84, 58)], float)
IRIS = {"brown": (92, 62, 40), "blue": (80, 130, 180), "green": (90, 132, 92), "grey": (110, 120, 128)}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who speaks, for the eye. Colours are RGB of 0 to 255, lengths pixels."""

    hair: str
    """Name in `HAIR`."""
    long_hair: bool
    clothes: str
    """Name in `CLOTHES`."""
    background: str
    """Name in `BACKGROUNDS`."""
    iris: str
    """Name in `IRIS`."""
    skin: Colour
    shade: tuple[float, float, float]
    """Brightness of hair, clothes and background, about 1."""
    face_width: float
    """Half the width of the face."""
    jaw_width: float
    """Half the width of the jaw."""
    eye_distance: float
    """Of an eye from the middle of the face."""
    eye_size: float
    brow_height: float
    """Of the brows above the eyes."""
    brow_tilt: float
    """How much lower the inner ends of the brows are."""
    nose_length: float
    lip_thickness: float
    parting: float
    """How far right of the middle the hair lets the forehead show."""
    fringe: float
    """How far down the hair comes on the forehead."""

    @property
    def look(self) -> tuple[str, bool, str, str]:
        """The combination that belongs to one of the splits."""
        return self.hair, self.long_hair, self.clothes, self.background

    def describe(self, sways: bool) -> str:
        """The prompt."""
        length = "long" if self.long_hair else "short"
        movement = "sways from side to side" if sways else "keeps the head still"
        return (
            f"A person with {length} {self.hair} hair in {self.clothes} clothes, in front of a {self.background} wall, "
            f"talks and {movement}."
        )


def draw_identity(rng: np.random.Generator, *, split: Split) -> Identity:
    """A face whose combination of hair, clothes and background, and whose skin tone, belong to the split."""
    looks = [
        look
        for look in itertools.product(HAIR, (False, True), CLOTHES, BACKGROUNDS)
        if _belongs(look, split) and look[0] != look[3]
    ]
    hair, long_hair, clothes, background = looks[rng.integers(len(looks))]
    tone = _draw_unit(rng, split) * (len(SKIN) - 1)
    skin = [float(np.interp(tone, range(len(SKIN)), channel)) for channel in SKIN.T]
    hair_shade, clothes_shade, background_shade = rng.uniform(0.9, 1.06, 3)
    return Identity(
        hair=hair,
        long_hair=long_hair,
        clothes=clothes,
        background=background,
        iris=list(IRIS)[rng.integers(len(IRIS))],
        skin=(skin[0], skin[1], skin[2]),
        shade=(float(hair_shade), float(clothes_shade), float(background_shade)),
        face_width=rng.uniform(35.0, 39.0),
        jaw_width=rng.uniform(27.0, 33.0),
        eye_distance=rng.uniform(14.5, 17.0),
        eye_size=rng.uniform(0.9, 1.15),
        brow_height=rng.uniform(9.0, 11.5),
        brow_tilt=rng.uniform(-1.5, 1.5),
        nose_length=rng.uniform(7.5, 11.0),
        lip_thickness=rng.uniform(3.4, 4.6),
        parting=rng.uniform(-3.0, 3.0),
        fringe=rng.uniform(-3.0, 2.0),
    )


# -------------------------------------------------------------------------------------------------------------- motion


@dataclass(frozen=True, eq=False)
class Motion:
    """How head and eyes move, float32 [F] each."""

    x: np.ndarray
    """Pixels that the head is right of the middle."""
    y: np.ndarray
    """Pixels that the head is below its place."""
    roll: np.ndarray
    """Radians, clockwise."""
    lids: np.ndarray
    """0 open to 1 closed."""
    gaze: np.ndarray
    """Pixels that the irises are right of the middle of the eyes."""


def draw_motion(rng: np.random.Generator, frames: int, *, sways: bool) -> Motion:
    """Slow movements and blinks.

    Swaying, the head travels 10 to 15 pixels at 0.6 to 0.9 Hz; otherwise at most 1.2.
    """
    times = np.arange(frames) / FRAME_RATE

    def wave(amplitude: float, slowest: float, fastest: float) -> np.ndarray:
        return amplitude * np.sin(2 * np.pi * (rng.uniform(slowest, fastest) * times + rng.random()))

    drift = wave(0.6, 0.1, 0.3)
    sway = wave(rng.uniform(5.0, 7.5), 0.6, 0.9) if sways else np.zeros(frames)
    lids = np.zeros(frames)
    start = rng.uniform(0.3, 2.5)
    while start < times[-1]:
        # A blink takes 0.28 s; shorter ones would be lost between the frames.
        lids = np.maximum(lids, np.clip(1.4 - np.abs(times - start) / 0.1, 0, 1))
        start += rng.uniform(1.2, 4.0)
    tracks = (
        rng.uniform(-1.0, 1.0) + drift + sway,
        wave(1.0, 0.1, 0.35) + wave(0.4, 0.4, 0.7),
        0.004 * sway + wave(0.012, 0.1, 0.3),
        lids,
        wave(1.2, 0.1, 0.4),
    )
    return Motion(*(track.astype(np.float32) for track in tracks))


def still(frames: int) -> Motion:
    """No movement at all."""
    return Motion(*np.zeros((5, frames), np.float32))


# ------------------------------------------------------------------------------------------------------------- drawing

FACE = (64.0, 60.0)
"""Where the middle of the face is, x and y."""

NARROW, SPREAD = 13.0, 9.0
"""The mouth, lips and all, is 2 (NARROW + SPREAD width) pixels wide."""

OPENING = 26.0
"""Pixels between the lips at openness 1."""

MOUTH = 22.0
"""Pixels from the middle of the face down to the closed mouth."""

CORNER = 2.5
"""Width of the lips at the corners of the mouth."""

UPWARD = 0.3
"""Part of the opening that is above the closed mouth."""

_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32) + np.float32(0.5)


class _Canvas:
    """A picture, float32 [3, SIZE, SIZE], on which shapes are laid in coordinates that move and turn with a part."""

    def __init__(self, pixels: np.ndarray, x: float, y: float, roll: float) -> None:
        self.pixels = pixels
        self.origin = x, y
        sine, cosine = math.sin(roll), math.cos(roll)
        self.x = cosine * (_COLUMNS - x) + sine * (_ROWS - y)
        self.y = cosine * (_ROWS - y) - sine * (_COLUMNS - x)

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """The pixels in which a shape lies, also when turned by 0.1."""
        margin = 2 + 0.1 * max(abs(left), abs(right), abs(top), abs(bottom))
        x, y = self.origin
        rows = slice(max(0, int(y + top - margin)), max(0, int(y + bottom + margin) + 1))
        return rows, slice(max(0, int(x + left - margin)), max(0, int(x + right + margin) + 1))

    def cover(
        self, box: tuple[slice, slice], x: float, y: float, rx: float, up: float, down: float | None = None
    ) -> np.ndarray:
        """Share of each pixel of the box inside an ellipse with its own half heights above and below the middle.

        From the distance to the edge, (k0 - 1) k0 / k1 with k0 = |p / r| and k1 = |p / r^2|, true near the edge.
        """
        dx, dy = self.x[box] - np.float32(x), self.y[box] - np.float32(y)
        ry = np.float32(up) if down is None else np.where(dy < 0, np.float32(up), np.float32(down))
        px, py = dx / np.float32(rx), dy / ry
        k0 = np.sqrt(px * px + py * py)
        k1 = np.hypot(px / np.float32(rx), py / ry) + np.float32(1e-6)
        return np.clip(np.float32(0.5) - (k0 - 1) * k0 / k1, 0, 1)

    def lay(self, box: tuple[slice, slice], cover: np.ndarray, colour: Sequence[float]) -> None:
        part = self.pixels[(slice(None), *box)]
        part += cover * (np.array(colour, np.float32)[:, None, None] - part)

    def ellipse(
        self,
        colour: Sequence[float],
        x: float,
        y: float,
        rx: float,
        up: float,
        down: float | None = None,
    ) -> None:
        box = self.box(x - rx, y - up, x + rx, y + (up if down is None else down))
        self.lay(box, self.cover(box, x, y, rx, up, down), colour)


def _shaded(colour: Sequence[float], brightness: float) -> Colour:
    red, green, blue = (min(255.0, channel * brightness) for channel in colour)
    return red, green, blue


def render(identity: Identity, openness: np.ndarray, width: np.ndarray, motion: Motion) -> np.ndarray:
    """Draw the speaker.

    Args:
        identity: who.
        openness: float [F], 0 closed to 1.
        width: float [F], 0 rounded to 1 spread.
        motion: of F frames.

    Returns:
        uint8 [F, 128, 128, 3], RGB. The mouth is 26 + 18 width pixels wide and 26 openness pixels open.

    Raises:
        ValueError: openness, width and motion have different lengths.
    """
    if not len(openness) == len(width) == len(motion.x):
        raise ValueError(
            f"render got {len(openness)} values of openness, {len(width)} of width and {len(motion.x)} frames of "
            "motion; wanted one of each per frame"
        )
    wall = _shaded(BACKGROUNDS[identity.background], identity.shade[2])
    light = np.linspace(1.04, 0.94, SIZE, dtype=np.float32)[:, None] * np.ones((1, SIZE), np.float32)
    background = np.array(wall, np.float32)[:, None, None] * light
    frames = np.empty((len(openness), SIZE, SIZE, 3), np.uint8)
    for index in range(len(frames)):
        pixels = background.copy()
        x, y, roll, lids, gaze = (
            float(track[index]) for track in (motion.x, motion.y, motion.roll, motion.lids, motion.gaze)
        )
        opening = OPENING * float(openness[index])
        head = _Canvas(pixels, FACE[0] + x, FACE[1] + y, roll)
        _draw_body(pixels, identity, x, head)
        _draw_face(head, identity, 0.2 * opening)
        # Features lie in front of the axis about which the head turns.
        features = _Canvas(pixels, FACE[0] + 1.15 * x, FACE[1] + y, roll)
        _draw_eyes(features, identity, lids, gaze)
        _draw_nose(features, identity)
        _draw_mouth(features, identity, opening, NARROW + SPREAD * float(width[index]))
        _draw_hair(head, identity)
        frames[index] = (np.clip(pixels, 0, 255) + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return frames


def _draw_body(pixels: np.ndarray, identity: Identity, x: float, head: _Canvas) -> None:
    """Hair behind the neck, neck and clothes; these follow the head half the way."""
    if identity.long_hair:
        hair = _shaded(HAIR[identity.hair], 0.92 * identity.shade[0])
        head.ellipse(hair, 0, 8, identity.face_width + 8, 50, 52)
    body = _Canvas(pixels, FACE[0] + 0.5 * x, FACE[1], 0.0)
    clothes = _shaded(CLOTHES[identity.clothes], identity.shade[1])
    body.ellipse(clothes, 0, 82, 56, 34)
    body.ellipse(_shaded(clothes, 0.82), 0, 52, 19, 10)
    body.ellipse(_shaded(identity.skin, 0.82), 0, 38, 15, 30, 21)


def _draw_face(head: _Canvas, identity: Identity, jaw: float) -> None:
    """Ears and face; the chin is `jaw` pixels lower than with the mouth closed."""
    for side in (-1, 1):
        head.ellipse(_shaded(identity.skin, 0.9), side * identity.face_width, 2, 5.5, 8.5)
    head.ellipse(identity.skin, 0, 0, identity.face_width, 45, 44)
    head.ellipse(identity.skin, 0, 22, identity.jaw_width, 24, 25 + jaw)


def _draw_eyes(face: _Canvas, identity: Identity, lids: float, gaze: float) -> None:
    lid = _shaded(identity.skin, 0.92)
    dark = _shaded(identity.skin, 0.5)
    hair = _shaded(HAIR[identity.hair], 0.75)
    size = identity.eye_size
    for side in (-1, 1):
        x, y = side * identity.eye_distance, -6.0
        rx, ry = 7.2 * size, 5.0 * size
        brow = y - identity.brow_height
        face.ellipse(hair, x - side * 3, brow + identity.brow_tilt, 4.5, 1.6)
        face.ellipse(hair, x + side * 2, brow, 5.5, 1.6)
        edge = y - ry * (1 - 2.1 * lids)
        face.ellipse(dark, x, y - 0.7, rx + 0.7, ry + 0.5)
        box = face.box(x - rx - 1, y - ry - 1, x + rx + 1, y + ry + 1)
        white = face.cover(box, x, y, rx, ry)
        face.lay(box, white, (248, 248, 246))
        face.lay(box, white * face.cover(box, x + gaze, y, 4.4 * size, 4.4 * size), IRIS[identity.iris])
        face.lay(box, white * face.cover(box, x + gaze, y, 2.2 * size, 2.2 * size), (26, 24, 26))
        if lids > 0:
            eye = face.cover(box, x, y - 0.7, rx + 0.7, ry + 0.5)
            face.lay(box, eye * np.clip(np.float32(edge) - face.y[box], 0, 1), lid)
            lashes = np.abs(face.y[box] - np.float32(min(edge, y + 0.5 * ry)))
            face.lay(box, eye * np.clip(1.5 - lashes, 0, 1), dark)


def _draw_nose(face: _Canvas, identity: Identity) -> None:
    tip = identity.nose_length - 2
    face.ellipse(_shaded(identity.skin, 0.84), 0, tip, 5.0, 3.2)
    face.ellipse(_shaded(identity.skin, 1.03), 0, tip - 2.2, 4.6, 3.4)


def _draw_mouth(face: _Canvas, identity: Identity, opening: float, half_width: float) -> None:
    up, down = UPWARD * opening, (1 - UPWARD) * opening
    thickness = identity.lip_thickness
    face.ellipse(LIP, 0, MOUTH, half_width, up + 0.85 * thickness, down + thickness)
    face.ellipse(INSIDE, 0, MOUTH, half_width - CORNER, up + 0.05, down + 0.05)


def _draw_hair(head: _Canvas, identity: Identity) -> None:
    """Hair in front: a cap around a window in which the face shows; long hair goes on beside the cheeks."""
    colour = _shaded(HAIR[identity.hair], identity.shade[0])
    width = identity.face_width
    low = 34.0 if identity.long_hair else -2.0
    box = head.box(-width - 8, -54, width + 8, low)
    cap = head.cover(box, 0, -4, width + 6, 47, 40)
    window = head.cover(box, identity.parting, 4, width - 3, 28 - identity.fringe, 60)
    ends = np.clip(np.float32(low) - head.y[box], 0, 1)
    head.lay(box, cap * ends * (1 - window), colour)


# --------------------------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True, eq=False, kw_only=True)
class SpeakerClip:
    """A clip of F frames and what it was drawn from."""

    frames: np.ndarray
    """uint8 [F, 128, 128, 3], RGB."""
    waveform: np.ndarray
    """float32 [640 F], mono at 16 kHz."""
    openness: np.ndarray
    """float32 [F], 0 closed to 1."""
    width: np.ndarray
    """float32 [F], 0 rounded to 1 spread."""
    phonemes: np.ndarray
    """int64 [F], places in `PHONEMES`."""
    prompt: str
    sways: bool
    identity: Identity
    voice: Voice
    sentence: Sentence
    motion: Motion


def draw_clip(
    seed: int,
    frames: int,
    *,
    split: Split,
    identity: Identity | None = None,
    voice: Voice | None = None,
    sways: bool | None = None,
    speaks: bool = True,
) -> SpeakerClip:
    """The clip of a seed; what is given replaces what would be drawn and changes nothing else.

    Args:
        seed: 0 or more. Equal seeds give equal clips in one split and unrelated ones in the other.
        frames: number F of frames.
        split: whose words, looks and voices are taken.
        identity, voice: who speaks.
        sways: whether the head sways from side to side, which the prompt tells.
        speaks: else the voice's hiss is all that is heard, and the mouth stays closed.

    Raises:
        ValueError: no frames, a negative seed, or an unknown split.
    """
    if frames < 1 or seed < 0 or split not in ("train", "evaluation"):
        raise ValueError(
            f"draw_clip got seed {seed}, {frames} frames and split {split!r}; "
            'wanted a seed of 0 or more, at least one frame, and "train" or "evaluation"'
        )
    streams = [np.random.default_rng([split == "evaluation", seed, part]) for part in range(5)]
    identity = identity or draw_identity(streams[0], split=split)
    voice = voice or draw_voice(streams[1], split=split)
    sentence = draw_sentence(streams[2], frames / FRAME_RATE, split=split) if speaks else NOTHING
    waveform = synthesise(sentence, voice, streams[3], frames * SAMPLES_PER_FRAME)
    drawn = bool(streams[4].random() < 0.5)
    sways = drawn if sways is None else sways
    motion = draw_motion(streams[4], frames, sways=sways)
    openness, width = mouth_curves(sentence, frames)
    return SpeakerClip(
        frames=render(identity, openness, width, motion),
        waveform=waveform,
        openness=openness,
        width=width,
        phonemes=phoneme_labels(sentence, frames),
        prompt=identity.describe(sways),
        sways=sways,
        identity=identity,
        voice=voice,
        sentence=sentence,
        motion=motion,
    )


def write_clip(clip: SpeakerClip, path: str | Path, crf: int = 10) -> None:
    """Write an mp4 with sound, and beside it an .npz with `openness`, `width` and `phonemes`, [F] each."""
    path = Path(path)
    with VideoWriter(path, SIZE, SIZE, sound=Sound(clip.waveform[None], SAMPLE_RATE), crf=crf) as writer:
        writer.write(torch.from_numpy(clip.frames))
    np.savez(path.with_suffix(".npz"), openness=clip.openness, width=clip.width, phonemes=clip.phonemes)


def cut_start(clip: SpeakerClip, frames: int) -> SpeakerClip:
    """The clip without its first `frames` frames, so that it begins in mid-speech; `sentence` stays the whole one."""
    curves = {name: getattr(clip, name)[frames:] for name in ("frames", "openness", "width", "phonemes")}
    motion = Motion(**{name: value[frames:] for name, value in vars(clip.motion).items()})
    return replace(clip, waveform=clip.waveform[frames * SAMPLES_PER_FRAME :], motion=motion, **curves)


def write_clips(
    folder: str | Path,
    seeds: Sequence[int],
    frames: int,
    *,
    split: Split,
    identity: Identity | None = None,
    lead: int = 0,
    silent: float = 0.0,
    workers: int = 1,
    crf: int = 10,
) -> Path:
    """Write a data set: metadata.csv (video, prompt), and per seed an .mp4 and its .npz as by `write_clip`.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        seeds, frames, split, identity: as for `draw_clip`; a given identity speaks in all clips.
        lead: up to so many frames, drawn for each clip, are spoken before it begins, so that clips begin in mid-speech.
        silent: share of clips in which nobody speaks.
        workers: processes that draw. With more than one, a script must call this under `if __name__ == "__main__"`.
        crf: quality of x264.

    Returns:
        The path of metadata.csv.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(
        _write_seed,
        folder=folder,
        frames=frames,
        split=split,
        identity=identity,
        lead=lead,
        silent=silent,
        crf=crf,
    )
    if workers == 1:
        rows = [work(seed) for seed in seeds]
    else:
        # Forking a process in which torch has started threads can hang.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows = list(pool.map(work, seeds))
    table = folder / "metadata.csv"
    with open(table.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as content:
        writer = csv.writer(content)
        writer.writerow(("video", "prompt"))
        writer.writerows(rows)
    os.replace(table.with_suffix(".tmp"), table)
    return table


def _write_seed(
    seed: int,
    *,
    folder: Path,
    frames: int,
    split: Split,
    identity: Identity | None,
    lead: int,
    silent: float,
    crf: int,
) -> tuple[str, str]:
    rng = np.random.default_rng([seed, frames])
    before, speaks = int(rng.integers(lead + 1)), bool(rng.random() >= silent)
    clip = cut_start(draw_clip(seed, before + frames, split=split, identity=identity, speaks=speaks), before)
    name = f"{split}_{seed:06d}.mp4"
    write_clip(clip, folder / name, crf)
    return name, clip.prompt


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m diffsynth_omniavatar.nano.speaker", description=write_clips.__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--frames", type=int, default=101)
    parser.add_argument("--seed", type=int, default=0, help="of the first clip; the others follow")
    parser.add_argument("--split", choices=("train", "evaluation"), default="train")
    parser.add_argument("--lead", type=int, default=0, help="most frames that are spoken before a clip begins")
    parser.add_argument("--silent", type=float, default=0.0, help="share of clips in which nobody speaks, 0 to 1")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    seeds = range(given.seed, given.seed + given.clips)
    options = {name: getattr(given, name) for name in ("split", "lead", "silent", "workers")}
    print(write_clips(given.folder, seeds, given.frames, **options))


if __name__ == "__main__":
    main()
