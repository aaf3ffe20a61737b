"""Paired differences, and how sure they are."""

import numpy as np
import pytest

from diffsynth_omniavatar.metrics.compare import paired_difference

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def runs(shift, clips=30):
    """A figure that differs a lot between clips, and by `shift` +- 0.1 between the runs."""
    draws = np.random.default_rng(0)
    a = {f"{clip}.mp4": float(draws.normal(5, 3)) for clip in range(clips)}
    return a, {name: value + shift + float(draws.normal(0, 0.1)) for name, value in a.items()}


def test_a_small_difference_is_clear_because_clips_are_paired():
    a, b = runs(0.2)
    found = paired_difference(a, b)
    differences = np.array(list(b.values())) - np.array(list(a.values()))
    assert found.clips == 30 and found.difference == pytest.approx(differences.mean())
    assert found.difference == pytest.approx(found.mean_b - found.mean_a)
    # The interval of a mean is about 1.96 standard errors wide on either side.
    error = differences.std() / np.sqrt(30)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)
    assert found.low < 0.2 < found.high and found.is_clear


def test_no_difference_is_not_clear():
    assert not paired_difference(*runs(0.0)).is_clear


def test_only_clips_with_the_figure_in_both_count():
    found = paired_difference({"a": 1.0, "b": 2.0, "c": float("nan")}, {"a": 2.0, "b": 3.5, "c": 1.0, "d": 9.0})
    assert found.clips == 2 and found.difference == pytest.approx(1.25)
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


def test_one_clip_has_no_interval():
    found = paired_difference({"a": 1.0}, {"a": 2.0})
    assert found.difference == 1 and np.isnan([found.low, found.high]).all() and not found.is_clear
