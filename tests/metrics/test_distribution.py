"""Distances of sets: moments without keeping features, and the packages' own numbers where they are installed."""

import numpy as np
import pytest
import torch

from diffsynth_omniavatar.metrics.distribution import Fid, Fvd, Moments

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_moments_are_those_of_all_features():
    features = np.random.default_rng(0).normal(3, 2, (40, 6)).astype(np.float32)
    whole = Moments(6)
    whole.add(features[:7])
    whole.add(features[7:])
    mean, covariance = whole.mean_and_covariance()
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(features, rowvar=False), atol=1e-5)


class Stats:
    """As cd-fvd's."""

    def __init__(self, **_):
        self.features = []

    num_items = property(lambda self: len(self.features))

    def append(self, features):
        self.features += list(features)

    def get_all(self):
        return np.stack(self.features)


class Evaluator:
    """As cd-fvd's, with the mean colour of a piece for its feature."""

    device, model, model_dtype = "cpu", None, torch.float32

    def empty_fake_stats(self):
        self.fake_stats = Stats()

    def empty_real_stats(self):
        self.real_stats = Stats()

    def feature_fn(self, stats, model, videos, device, model_dtype):
        assert videos.shape[1] == 16
        stats.append(videos.mean(axis=(1, 2, 3)))

    def compute_fvd_from_stats(self):
        return np.abs(self.fake_stats.get_all() - self.real_stats.get_all()).mean()


def test_fvd_counts_pieces_of_16_frames_of_the_clips_that_are_taken():
    frames = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3)
    fvd = Fvd(Evaluator())
    assert fvd.compute() is None
    for start in range(0, 50, 7):
        fvd.add(frames[start : start + 7] + 2, frames[start : start + 7])
    fvd.end_clip()
    for start in range(0, 50, 20):
        fvd.add(frames[start : start + 20] + 2, frames[start : start + 20])
    fvd.take(fvd.end_clip())
    seen = [float(feature[0]) for feature in fvd._evaluator.real_stats.features]
    assert seen == [7.5, 23.5, 39.5] and fvd.compute() == 2


class Inception:
    """Features of a picture: its colour at 2048 places."""

    def __call__(self, pictures):
        return (pictures.flatten(1)[:, :2048].float(),)


def test_fid_counts_the_clips_that_are_taken():
    package = pytest.importorskip("torch_fidelity.metric_fid")
    draws = np.random.default_rng(0)
    ours, theirs = (torch.from_numpy(draws.integers(0, 255, (6, 32, 32, 3), np.uint8)) for _ in range(2))
    fid = Fid(Inception())
    fid.add(theirs, ours)
    fid.end_clip()
    assert fid.compute() is None
    for part in (slice(0, 4), slice(4, 6)):
        fid.add(ours[part], theirs[part])
        fid.take(fid.end_clip())
    stats = [package.fid_features_to_statistics(Inception()(video.permute(0, 3, 1, 2))[0]) for video in (ours, theirs)]
    expected = package.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert fid.compute() == pytest.approx(expected, rel=1e-4)
