"""The sound of a dubbed video: new speech, with what is kept of the sound that was there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr

from .sound import Sound

CROSSFADE = 0.05
"""Seconds over which the original sound goes into the new speech, and back."""

Spans = Sequence[tuple[float, float]]
"""Seconds at which each span begins and ends, in order."""


def mix_speech(
    speeches: Sequence[Sound],
    seconds: float,
    original: Sound | None = None,
    gain: float = 1.0,
    replaced: Spans | None = None,
) -> Sound:
    """New speech with the original sound under it, as long as the video.

    The rate and the number of channels are the original's, or the largest of the speeches where there is none. What
    gets louder than full scale is scaled down as a whole.

    Args:
        speeches: sounds that all begin with the video; they are added.
        seconds: length of the result; silence fills it up.
        original: the video's own sound; None if it has none or nothing of it is kept.
        gain: what the original is multiplied with.
        replaced: with spans, the original is heard outside them only and the speeches inside them only, with
            crossfades of `CROSSFADE` around the spans; None for both all the time.
    """
    sounds = list(speeches) if original is None else [original]
    rate = max(sound.rate for sound in sounds)
    channels = max(min(2, len(sound.samples)) for sound in sounds)
    mixed = np.zeros((channels, round(seconds * rate)), np.float32)
    for speech in speeches:
        _add(mixed, _as(speech, rate, channels), 1.0)
    share: np.ndarray | float = gain
    if replaced is not None:
        spoken = _share(replaced, mixed.shape[1], rate)
        mixed *= spoken
        share = gain * (1 - spoken)
    if original is not None:
        _add(mixed, _as(original, rate, channels), share)
    peak = max(mixed.max(initial=0), -mixed.min(initial=0))
    if peak > 1:
        mixed /= peak
    return Sound(mixed, rate)


def _add(total: np.ndarray, samples: np.ndarray, share: np.ndarray | float) -> None:
    """Add samples times their share, as far as the total goes."""
    count = min(total.shape[1], samples.shape[1])
    total[:, :count] += samples[:, :count] * (share[:count] if isinstance(share, np.ndarray) else share)


def _as(sound: Sound, rate: int, channels: int) -> np.ndarray:
    """Samples [channels, n] at another rate."""
    samples = sound.samples
    if len(samples) != channels:
        samples = np.repeat(samples.mean(axis=0, keepdims=True), channels, axis=0)
    if sound.rate != rate:
        samples = soxr.resample(samples.T, sound.rate, rate, quality="HQ").T
    return samples


def _share(spans: Spans, length: int, rate: int) -> np.ndarray:
    """1 inside the spans, 0 outside, ramps around them: float32 [length]."""
    share = np.zeros(length, np.float32)
    reach = round(CROSSFADE * rate)
    for begin, end in spans:
        first, last = round(begin * rate), round(end * rate)
        places = np.arange(max(0, first - reach), min(length, last + reach))
        beyond = np.maximum(first - places, places - last).clip(min=0)
        share[places] = np.maximum(share[places], 1 - beyond / max(reach, 1))
    return share
