"""Distances of distributions: closed forms, and that the mean of what may come is no clip."""

import numpy as np
import pytest

from diffsynth_omniavatar.nano.distributions import (
    FIGURES,
    bimodality,
    blinks,
    distances,
    dwells,
    frechet,
    latent_features,
    samples,
    wasserstein,
)
from diffsynth_omniavatar.nano.measure_face import measure_face

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_wasserstein_is_the_way_that_a_sample_is_moved():
    sample = np.random.default_rng(0).standard_normal(50)
    assert wasserstein(sample, sample) == 0
    assert wasserstein(sample, sample + 0.7) == pytest.approx(0.7)
    assert wasserstein(sample + 0.7, np.repeat(sample, 3)) == pytest.approx(0.7)  # of another size
    assert wasserstein(np.array([0.0, 1.0]), np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.25)


def test_frechet_of_normal_distributions():
    sample = np.random.default_rng(0).standard_normal((400, 3)) * [1, 2, 3]
    assert frechet(sample, sample) == pytest.approx(0, abs=1e-6)
    assert frechet(sample, sample + np.array([3, 0, 4])) == pytest.approx(25)
    variances = sample.var(axis=0, ddof=1)
    doubled = sample.mean(axis=0) + 2 * (sample - sample.mean(axis=0))
    assert frechet(sample, doubled) == pytest.approx(variances.sum())  # of (s - 2 s)^2 for each deviation s


def test_features_of_latents_tell_mean_detail_and_change():
    latents = np.random.default_rng(0).standard_normal((2, 16, 7, 4, 4))
    features = latent_features(latents)
    assert features.shape == (4, 48)
    moved = latent_features(latents + 1)
    assert np.allclose(moved - features, np.repeat([1.0, 0, 0], 16))
    still = latent_features(np.repeat(latents[:, :, :1], 7, axis=2))
    assert np.allclose(still[:, 32:], 0) and (features[:, 32:] > 0.5).all()


def test_blinks_dwells_and_modes_of_tracks():
    lids = np.array([1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1], float)
    assert blinks(lids) == [2, 1, 3] and blinks(0 * lids) == []
    gaze = np.array([4, 4.2, 4, -4, -4, np.nan, np.nan, -4, 4, 4], float)
    assert dwells(gaze) == [3, 5, 2]
    assert dwells(np.full(3, np.nan)) == []
    assert bimodality(np.array([-4.0, 4, -4, 4])) == pytest.approx(1)
    assert bimodality(np.linspace(-4, 4, 1000)) == pytest.approx(5 / 9, abs=1e-3)
    assert np.isnan(bimodality(np.ones(5)))


def test_the_mean_of_what_may_come_is_no_clip(futures):
    """What a model makes in a single step. True clips are near other true ones, and neither the mean nor a still is."""
    frames = np.array([[clip.frames[10:] for clip in row[:3]] for row in futures])  # from when they have parted
    true, other = (samples([measure_face(row[future]) for row in frames]) for future in (0, 1))
    mean = samples([measure_face(row.mean(axis=0).round().astype(np.uint8)) for row in frames])
    frozen = samples([measure_face(np.repeat(row[0][:1], 24, axis=0)) for row in frames])
    assert set(true) == set(FIGURES)
    floor, of_mean, of_still = (distances(found, true) for found in (other, mean, frozen))
    assert mean["sharpness of the eyes"].mean() < 0.65 * true["sharpness of the eyes"].mean()
    for name in ("sharpness of the eyes", "share of gaze between targets"):
        assert of_mean[name] > 3 * floor[name], name
    assert of_still["head's speed (pixels a second)"] > 3 * floor["head's speed (pixels a second)"]
