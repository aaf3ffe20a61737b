"""Correlation and lag of two curves are found where they are known."""

import numpy as np
import pytest

from diffsynth_omniavatar.metrics.sync import best_lag, correlation
from diffsynth_omniavatar.nano.speaker.clips import draw_clip


@pytest.fixture(scope="module")
def clips():
    return [draw_clip(seed, 40, split="evaluation", sways=False) for seed in range(4)]


@pytest.mark.parametrize("lag", [-4, -1, 0, 1, 3])
def test_the_lag_of_a_shifted_curve_is_found(clips, lag):
    truth = draw_clip(0, 90, split="evaluation").openness
    shifted = np.roll(truth, lag)[8:-8]
    assert best_lag(shifted, truth[8:-8]) == lag
    assert correlation(shifted, truth[8:-8]) < 0.999 or lag == 0


def test_a_correlation_is_that_of_numpy_and_zero_where_nothing_moves(clips):
    one, other = clips[0].openness, clips[1].openness
    assert correlation(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-6)
    assert correlation(np.full(40, 0.3), one) == 0 and correlation(np.full(40, np.nan), one) == 0
    gaps = np.where(np.arange(40) % 4 == 0, np.nan, one)
    assert 0.3 < correlation(gaps, one) < 0.99
