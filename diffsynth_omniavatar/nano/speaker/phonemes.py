"""Made-up speech as a row of phonemes, and the mouth that speaks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...media.timeline import FRAME_RATE
from .splits import Split, belongs

COARTICULATION = 0.16
"""Seconds of the Hann window over which the mouth's targets are smoothed. Its width at half height is 80 ms, and its
first zero lies at 12.5 Hz: a mouth seen 25 times a second shows all of its movement."""


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


def _draw_word(rng: np.random.Generator, split: Split) -> list[list[int]]:
    """Two or three syllables of a consonant, a vowel and at times a consonant."""
    while True:
        word = []
        for _ in range(rng.integers(2, 4)):
            syllable = [int(rng.choice(CONSONANTS)), int(rng.choice(VOWELS))]
            word.append(syllable + [int(rng.choice(CONSONANTS))] * (rng.random() < 0.3))
        if belongs(word, split):
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
        smooth(np.array([getattr(phoneme, name) for phoneme in PHONEMES])[places], 2 * half)[half + middles]
        for name in ("openness", "width")
    )
    return openness.astype(np.float32), width.astype(np.float32)


def smooth(track: np.ndarray, length: int) -> np.ndarray:
    """Convolution along axis 0 with a Hann window of `length` steps; the ends are continued."""
    if length < 2:
        return track
    kernel = np.hanning(length + 1)
    padded = np.pad(track, [(length // 2, length // 2), *[(0, 0)] * (track.ndim - 1)], mode="edge")
    columns = padded.reshape(len(padded), -1).T
    smoothed = np.stack([np.convolve(column, kernel / kernel.sum(), mode="valid") for column in columns], axis=1)
    return smoothed.reshape(track.shape)
