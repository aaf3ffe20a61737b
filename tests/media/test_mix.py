"""The new speech and what is kept of a video's own sound."""

import numpy as np
import pytest
from media_files import tone

from diffsynth_omniavatar.media.mix import mix_speech
from diffsynth_omniavatar.media.sound import Sound

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def level(sound: Sound, hertz: float, begin: float, end: float) -> float:
    """How loud a tone is between two times."""
    part = sound.samples[0, round(begin * sound.rate) : round(end * sound.rate)]
    waves = np.exp(2j * np.pi * hertz * np.arange(len(part)) / sound.rate)
    return float(2 * abs(part @ waves) / len(part))


SPEECH = Sound(0.4 * tone(1.0, 16000, 400)[None], 16000)
OWN = Sound(np.stack([0.4 * tone(2.0, 48000, 1000)] * 2), 48000)


def test_speech_alone_keeps_its_samples_and_is_filled_up_with_silence() -> None:
    mixed = mix_speech([SPEECH], 1.5)
    assert mixed.rate == 16000 and mixed.samples.shape == (1, 24000)
    assert np.array_equal(mixed.samples[:, :16000], SPEECH.samples) and not mixed.samples[:, 16000:].any()
    assert mix_speech([SPEECH], 0.5).duration == 0.5


def test_the_own_sound_is_mixed_under() -> None:
    mixed = mix_speech([SPEECH], 2.0, OWN, 0.1)
    assert mixed.rate == 48000 and mixed.samples.shape == (2, 96000)
    assert level(mixed, 400, 0.1, 0.9) == pytest.approx(0.2, abs=2e-3)
    for begin, end in ((0.1, 0.9), (1.1, 1.9)):
        assert level(mixed, 1000, begin, end) == pytest.approx(0.02, abs=1e-3)


def test_the_own_sound_fills_the_gaps() -> None:
    mixed = mix_speech([SPEECH], 2.0, OWN, 1.0, [(0.5, 0.9)])
    for begin, end, speech, own in ((0.1, 0.4, 0, 0.2), (0.55, 0.85, 0.2, 0), (1.0, 1.9, 0, 0.2)):
        assert level(mixed, 400, begin, end) == pytest.approx(speech, abs=2e-3)
        assert level(mixed, 1000, begin, end) == pytest.approx(own, abs=2e-3)
    assert np.abs(np.diff(mixed.samples)).max() < 0.05  # no click


def test_several_speeches_are_added_without_clipping() -> None:
    loud = Sound(np.full((1, 16000), 0.8, np.float32), 16000)
    mixed = mix_speech([loud, loud], 1.0)
    assert mixed.samples.max() == pytest.approx(1.0) and mixed.samples.min() == mixed.samples.max()


def test_what_is_kept_in_gaps_is_as_loud_as_asked_and_silent_in_all_spans() -> None:
    mixed = mix_speech([SPEECH], 2.0, OWN, 0.1, [(0.5, 0.7), (0.72, 0.9)])
    assert level(mixed, 1000, 0.1, 0.4) == pytest.approx(0.02, abs=1e-3)
    assert level(mixed, 1000, 0.52, 0.69) == pytest.approx(0, abs=1e-3)
    assert level(mixed, 400, 0.52, 0.69) == pytest.approx(0.2, abs=2e-3)


def test_what_is_too_loud_below_zero_is_scaled_down_too() -> None:
    loud = Sound(np.full((1, 160), -0.8, np.float32), 16000)
    assert mix_speech([loud, loud], 0.01).samples.min() == pytest.approx(-1.0)
