"""Noise and drift of colours are found where they are known."""

import numpy as np
import pytest

from diffsynth_omniavatar.metrics.picture import colour_drift, drift_at_end, psnr

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_psnr_is_that_of_known_noise():
    reference = np.full((2, 8, 8, 3), 100, np.uint8)
    everywhere = np.ones((8, 8), bool)
    assert psnr(reference + 5, reference, everywhere) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(reference + 5, reference[0], everywhere) == pytest.approx(20 * np.log10(255 / 5))


def test_the_drift_of_a_constant_is_found():
    frames = np.full((100, 8, 8, 3), 50, np.uint8)
    frames[..., 1] += (np.arange(100) // 10).astype(np.uint8)[:, None, None]
    frames[:, :4] = np.random.default_rng(0).integers(0, 255, (100, 4, 8, 3))
    where = np.zeros((8, 8), bool)
    where[4:] = True
    drift = colour_drift(frames, where)
    assert np.allclose(drift[:, [0, 2]], 0) and drift[-1, 1] == pytest.approx(9 - 0.8, abs=0.2)
    assert drift_at_end(frames, where) == pytest.approx(drift[-25:, 1].mean())
