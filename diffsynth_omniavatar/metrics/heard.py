"""Does the mouth do what the sound says? How well a curve of the mouth can be told from the sound beside it.

Loudness alone says little of real speech: an open vowel may be soft, and closed teeth hiss. So a linear map from the
sound's cepstral coefficients to the mouth is fitted on a part of the clip, and judged on the rest.
"""

from __future__ import annotations

import numpy as np

from .mfcc import COEFFICIENTS, mfcc
from .sync import correlation

CONTEXT = 3
"""Frames of sound before and behind a frame that its mouth is told from."""
FOLDS = 5
GAP = 8
"""Frames around the judged part that are not fitted, since their mouths resemble those inside."""
RIDGE = 300.0
LAGS = range(-12, 13)
PLATEAU = 0.15
LEAST_FRAMES = 100
"""Four seconds; too little can be fitted to less."""


def heard_correlation(curve: np.ndarray, waveform: np.ndarray, lag: int = 0) -> float:
    """Pearson's r of a curve of the mouth with what a linear map makes of the sound, on frames it was not fitted on.

    The map is a ridge regression from 13 coefficients in each of 7 frames, over five parts of the clip in turn.
    About 0.3 to 0.6 for real speech, 0 or less where sound and picture do not belong together. Compare only values of
    clips of similar length.

    Args:
        curve: [F], openness or width; NaN where there is no mouth.
        waveform: [n] mono at 16 kHz in [-1, 1], from the first frame on.
        lag: frames by which the curve is taken to be later than the sound.

    Returns:
        r; NaN where fewer than 100 frames have a mouth and sound.
    """
    return _judge(curve, _features(waveform, len(curve)), lag)


def heard_lag(curve: np.ndarray, waveform: np.ndarray) -> float:
    """Frames by which the curve is later than the sound: the centre of the lags at which the two fit best.

    Since a frame's mouth is told from seven frames of sound, `heard_correlation` hardly changes over a few lags around
    the right one: the mean of the lags of -12 to 12 is taken, weighted by how far they come above the best r - 0.15.
    NaN where fewer than 100 frames have a mouth and sound.
    """
    features = _features(waveform, len(curve))
    judged = np.array([_judge(curve, features, lag) for lag in LAGS])
    if np.isnan(judged).all():
        return float("nan")
    fits = np.nan_to_num(judged, nan=-1.0)
    weights = (fits - fits.max() + PLATEAU).clip(0)
    return float(weights @ np.array(LAGS) / weights.sum())


def _judge(curve: np.ndarray, features: np.ndarray, lag: int) -> float:
    """`heard_correlation`, from the features of the sound."""
    if len(curve) < LEAST_FRAMES:
        return float("nan")
    moved = np.full(len(curve), np.nan)
    if lag >= 0:
        moved[: len(curve) - lag] = curve[lag:]
    else:
        moved[-lag:] = curve[:lag]
    moved[len(features) :] = np.nan
    seen = np.flatnonzero(np.isfinite(moved))
    if len(seen) < LEAST_FRAMES:
        return float("nan")
    told = np.empty(len(seen))
    for part in np.array_split(np.arange(len(seen)), FOLDS):
        near = (seen >= seen[part[0]] - GAP) & (seen <= seen[part[-1]] + GAP)
        told[part] = _ridge(features[seen[~near]], moved[seen[~near]], features[seen[part]])
    return correlation(told, moved[seen])


def _features(waveform: np.ndarray, frames: int) -> np.ndarray:
    """Coefficients of the frames around each frame that has sound, of mean 0 and variance 1: [frames, 7 * 13]."""
    columns = mfcc(waveform)
    frames = min(frames, -(-len(columns) // 4))
    padded = np.pad(columns, ((0, max(0, 4 * frames - len(columns))), (0, 0)), mode="edge")[: 4 * frames]
    means = padded.reshape(frames, 4, COEFFICIENTS).mean(axis=1)
    means = (means - means.mean(axis=0)) / np.maximum(means.std(axis=0), 1e-6)
    around = np.pad(means, ((CONTEXT, CONTEXT), (0, 0)), mode="edge")
    return np.concatenate([around[place : place + frames] for place in range(2 * CONTEXT + 1)], axis=1)


def _ridge(known: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Values at `asked` by the ridge regression of the values at `known`."""
    centre = known.mean(axis=0)
    centred = known - centre
    weights = np.linalg.solve(
        centred.T @ centred + RIDGE * np.eye(known.shape[1]), centred.T @ (values - values.mean())
    )
    return (asked - centre) @ weights + values.mean()
