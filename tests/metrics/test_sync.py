"""Correlation and lag of two curves are found where they are known."""

import numpy as np
import pytest

from diffsynth_omniavatar.metrics.sync import best_lag, correlation
from diffsynth_omniavatar.nano.speaker.phonemes import draw_sentence, mouth_curves

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def openness(seed, frames):
    """How open a mouth is that speaks some sentence."""
    sentence = draw_sentence(np.random.default_rng(seed), frames / 25, split="evaluation")
    return mouth_curves(sentence, frames)[0]


@pytest.mark.parametrize("lag", [-4, -1, 0, 1, 3])
def test_the_lag_of_a_shifted_curve_is_found(lag):
    truth = openness(0, 90)
    shifted = np.roll(truth, lag)[8:-8]
    assert best_lag(shifted, truth[8:-8]) == lag
    assert correlation(shifted, truth[8:-8]) < 0.999 or lag == 0


def test_a_correlation_is_that_of_numpy_and_zero_where_nothing_moves():
    one, other = openness(0, 40), openness(1, 40)
    assert correlation(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-6)
    assert correlation(np.full(40, 0.3), one) == 0 and correlation(np.full(40, np.nan), one) == 0
    gaps = np.where(np.arange(40) % 4 == 0, np.nan, one)
    assert 0.3 < correlation(gaps, one) < 0.99
