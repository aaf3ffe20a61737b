"""Do two curves of a mouth fit, and how late is one of them."""

from __future__ import annotations

import math

import numpy as np

LAGS = range(-5, 6)
"""Frames by which a mouth may be late (early below zero) in the search for the best fit."""


def correlation(measured: np.ndarray, truth: np.ndarray) -> float:
    """Pearson's r of two curves [F]. Frames without a mouth (NaN) count as the mean of the others; no movement as 0."""
    seen = np.isfinite(measured)
    if seen.sum() < 2:
        return 0.0
    curve = np.where(seen, measured, measured[seen].mean()).astype(np.float64)
    one, other = curve - curve.mean(), truth - truth.mean(dtype=np.float64)
    scale = math.sqrt((one @ one) * (other @ other))
    return float(one @ other / scale) if scale > 1e-9 else 0.0


def best_lag(measured: np.ndarray, truth: np.ndarray) -> int:
    """Frames by which the measured curve [F] is later than the true one [F], where the two correlate most."""

    def fit(lag: int) -> float:
        frames = len(truth)
        return correlation(measured[max(0, lag) : frames + min(0, lag)], truth[max(0, -lag) : frames - max(0, lag)])

    return max(sorted(LAGS, key=abs), key=fit)
