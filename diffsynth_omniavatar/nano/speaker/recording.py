"""A rough mouth for recorded speech, whose phonemes nobody knows."""

from __future__ import annotations

import numpy as np

from ...media.timeline import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from .phonemes import COARTICULATION, smooth


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
    smoothed = smooth(np.stack([openness, width], axis=1), round(COARTICULATION * 2 * FRAME_RATE))
    openness, width = smoothed.reshape(frames, 2, 2).mean(axis=1).T.astype(np.float32)
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
