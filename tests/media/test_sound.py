"""Sound comes in exactly and as upstream hears it; bad files are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from media_files import named_error, tone, write_greys

from diffsynth_omniavatar.media.sound import Sound, add_silence, load_sound, speech_waveform
from diffsynth_omniavatar.media.writer import _encodable

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


@pytest.mark.parametrize("name", ["speech.wav", "speech.flac"])
def test_lossless_sound_is_read_exactly(tmp_path: Path, name: str) -> None:
    samples = np.random.default_rng(0).integers(-20_000, 20_000, (2000, 2), dtype=np.int16)
    soundfile.write(tmp_path / name, samples, 22050)
    sound = load_sound(tmp_path / name)
    assert sound.rate == 22050
    assert np.array_equal(sound.samples, samples.T / np.float32(32768))


def test_arrays_of_every_shape_and_type_give_the_same_sound() -> None:
    exact = np.random.default_rng(0).integers(-20_000, 20_000, (2, 2000), dtype=np.int16)
    wanted = exact / np.float32(32768)
    sources: list[Any] = [
        exact,
        exact.T,
        exact.astype(np.int32) << 16,
        wanted,
        wanted.astype(np.float64).T,
        torch.from_numpy(exact),
        torch.from_numpy(wanted).T,
        torch.from_numpy(wanted).double().requires_grad_(),
    ]
    for source in sources:
        assert np.array_equal(load_sound(source, 16000).samples, wanted)
    assert np.array_equal(load_sound(exact[0], 16000).samples, wanted[:1])
    coarse = load_sound(torch.from_numpy(wanted).bfloat16(), 16000).samples
    np.testing.assert_allclose(coarse, wanted, rtol=2**-8)


@pytest.mark.parametrize("name", ["speech.mp3", "speech.m4a", "speech.mp4"])
def test_coded_sound_is_close(tmp_path: Path, name: str) -> None:
    samples = tone(1.0, 44100)
    if name.endswith("mp3"):
        soundfile.write(tmp_path / name, samples, 44100)
    else:
        with av.open(str(tmp_path / name), "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=44100, layout="mono")
            part = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            part.sample_rate, part.pts = 44100, 0
            container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    sound = load_sound(tmp_path / name)
    assert sound.rate == 44100
    assert abs(sound.samples.shape[1] - 44100) < 2304
    middle = slice(10_000, 30_000)
    assert np.corrcoef(sound.samples[0, middle], samples[middle])[0, 1] > 0.99


@pytest.mark.parametrize("rate", [44100, 48000, 8000, 22050])
def test_speech_waveform_is_the_mean_at_16_khz(rate: int) -> None:
    left, right = tone(0.5, rate), tone(0.5, rate, 1000)
    waveform = speech_waveform(load_sound(np.stack([left, right]), rate))
    assert (waveform.dtype, waveform.shape) == (torch.float32, (8000,))
    expected = (tone(0.5, 16000) + tone(0.5, 16000, 1000)) / 2
    # The resampler's filter reaches over the ends.
    np.testing.assert_allclose(waveform[500:-500], expected[500:-500], atol=2e-4)


def error_of(tone_heard: np.ndarray, tone_wanted: np.ndarray) -> float:
    """Largest difference in the middle of two tones, in dB of their amplitude."""
    middle = slice(4000, -4000)
    return 20 * float(np.log10(np.abs(tone_heard[middle] - tone_wanted[middle]).max() / 0.5))


@pytest.mark.parametrize("rate", [44100, 22050])
def test_speech_is_resampled_to_20_bits(rate: int) -> None:
    """soxr's HQ errs by 20 bits, -120 dB; its next lower quality by 16 bits, -96 dB, on these tones -108."""
    heard = speech_waveform(load_sound(tone(2, rate, 1000), rate)).numpy()
    assert error_of(heard, tone(2, 16000, 1000)) < -114


def test_sound_at_a_rate_that_aac_has_not_is_resampled_to_20_bits() -> None:
    written = _encodable(load_sound(tone(2, 37000, 1000), 37000))
    assert written.rate == 48000 and error_of(written.samples[0], tone(2, 48000, 1000)) < -114


def test_speech_waveform_keeps_16_khz_and_rounds_lengths_up() -> None:
    samples = tone(0.5, 16000)
    assert np.array_equal(speech_waveform(load_sound(samples, 16000)), samples)
    for samples_at_44100 in (4410, 4411, 4412, 4413):
        waveform = speech_waveform(load_sound(tone(1, 44100)[:samples_at_44100], 44100))
        assert len(waveform) == -(-samples_at_44100 * 160 // 441)


def test_silence_goes_in_front() -> None:
    sound = load_sound(np.stack([tone(0.5, 44100)] * 2), 44100)
    later = add_silence(sound, 0.3)
    assert later.duration == pytest.approx(0.8)
    assert not later.samples[:, :13_230].any()
    assert np.array_equal(later.samples[:, 13_230:], sound.samples)
    with pytest.raises(ValueError, match=r"-0\.1 s"):
        add_silence(sound, -0.1)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.full(1000, 0.9e-4, np.float32), "silent"),
        (tone(0.039, 16000), "39.0 ms"),
        (np.append(tone(1, 16000), np.float32("nan")), "not finite"),
        (np.append(tone(1, 16000), np.float32("inf")), "not finite"),
    ],
)
def test_bad_sound_is_refused_by_name(tmp_path: Path, samples: np.ndarray, words: str) -> None:
    path = tmp_path / "speech.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    with named_error(path, words):
        load_sound(path)
    with pytest.raises(ValueError, match=words):
        load_sound(samples, 16000)


def test_silence_can_be_asked_for() -> None:
    assert load_sound(np.zeros(1000, np.float32), 16000, allow_silent=True).samples.shape == (1, 1000)
    assert load_sound(np.full(1000, 1.1e-4, np.float32), 16000).samples.shape == (1, 1000)


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    text, mute = tmp_path / "text.wav", tmp_path / "mute.mp4"
    text.write_text("no sound" * 100)
    write_greys(mute, range(3), 25)
    for path, words in ((text, "cannot be read"), (mute, "no sound track"), (tmp_path / "absent.wav", "not a file")):
        with named_error(path, words):
            load_sound(path)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: load_sound(tone(1, 16000)), "needs its rate"),
        (lambda: load_sound(text, 16000), "leave it out"),
        (lambda: load_sound(np.zeros((100, 100), np.float32), 16000), r"shape \[100, 100\]"),
        (lambda: load_sound(np.zeros(1000, np.int64), 16000), "int64"),
        (lambda: Sound(np.zeros(1000, np.float32), 16000), "use load_sound"),
        (lambda: Sound(np.zeros((1, 1000), np.float32), 0), "positive"),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=words):
            call()
