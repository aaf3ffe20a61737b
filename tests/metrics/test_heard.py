"""A mouth is told from its own sound and from no other, and a moved sound is found to the frame."""

import numpy as np
import pytest

from diffsynth_omniavatar.metrics.heard import heard_correlation, heard_lag
from diffsynth_omniavatar.nano.speaker.phonemes import draw_sentence, mouth_curves
from diffsynth_omniavatar.nano.speaker.voice import draw_voice, synthesise

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

FRAMES = 200


def spoken(seed):
    """A sentence's sound, and the openness of the mouth that speaks it."""
    rng = np.random.default_rng(seed)
    sentence = draw_sentence(rng, FRAMES / 25, split="evaluation")
    waveform = synthesise(sentence, draw_voice(rng, split="evaluation"), rng, FRAMES * 640)
    return mouth_curves(sentence, FRAMES)[0].astype(float), waveform


def moved(waveform, frames):
    """The sound, later by some frames."""
    if frames >= 0:
        return np.concatenate([np.zeros(640 * frames, waveform.dtype), waveform])
    return waveform[-640 * frames :]


def test_a_mouth_fits_its_own_sound_and_not_another():
    (openness, own), (_, other) = spoken(1), spoken(2)
    assert heard_correlation(openness, own) > 0.7
    assert heard_correlation(openness, other) < 0.3


@pytest.mark.parametrize("frames", [-5, 0, 3])
def test_a_sound_that_is_moved_is_found_to_the_frame(frames):
    openness, waveform = spoken(3)
    assert heard_lag(openness, moved(waveform, frames)) == pytest.approx(-frames, abs=0.5)


def test_frames_without_a_mouth_are_left_out_and_little_is_not_judged():
    openness, waveform = spoken(1)
    gaps = np.where(np.arange(FRAMES) % 9 == 0, np.nan, openness)
    assert heard_correlation(gaps, waveform) > 0.7
    assert heard_correlation(np.full(FRAMES, 0.2), waveform) == 0
    assert np.isnan(heard_correlation(openness[:90], waveform))
    assert np.isnan([heard_lag(openness[:frames], waveform) for frames in (1, 5, 90)]).all()
    assert np.isnan(heard_correlation(openness, waveform[: 90 * 640]))


def test_the_judged_frames_are_not_those_that_were_fitted():
    """A curve that has nothing to do with the sound is not told from it, although 91 coefficients could fit it."""
    _, waveform = spoken(1)
    noise = np.random.default_rng(0).standard_normal(FRAMES)
    smooth = np.convolve(noise, np.ones(3) / 3, "same")
    assert heard_correlation(smooth, waveform) < 0.35
