"""Sound tracks come in at their timestamps; what no player would play rightly is refused by name."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from media_files import greys, named_error, pitch, tone, write_blocks, write_flash_and_beep, write_tracks

from diffsynth_omniavatar.media import sound as sound_module
from diffsynth_omniavatar.media.sound import Sound, load_sound, load_speech, speech_waveform
from diffsynth_omniavatar.media.writer import VideoWriter

RATE = 16000


def clicking_blocks(count: int, size: int = 800) -> list[np.ndarray]:
    """Blocks of faint noise with a click in the middle of each."""
    blocks = np.random.default_rng(0).uniform(-0.01, 0.01, (count, size)).astype(np.float32)
    blocks[:, size // 2] = 0.9
    return list(blocks)


@pytest.mark.parametrize(
    "times",
    [
        np.arange(200) * 0.048,
        np.arange(200) * 0.052,
        np.arange(200) * 0.05 - np.arange(200) // 20 * 0.022,
        np.arange(200) * 0.05 + np.arange(200) // 20 * 0.3,
        np.arange(200) * 0.05 + np.random.default_rng(0).uniform(-0.004, 0.004, 200),
    ],
    ids=["fast clock", "slow clock", "joined parts", "holes", "jitter"],
)
def test_sound_is_where_its_timestamps_say(tmp_path: Path, times: np.ndarray) -> None:
    write_blocks(tmp_path / "speech.mkv", clicking_blocks(len(times)), times.clip(0).tolist())
    samples = load_sound(tmp_path / "speech.mkv").samples[0]
    heard = np.flatnonzero(samples > 0.5) / RATE
    due = times - times[0] + 0.025
    # Half a video frame, and Matroska's milliseconds.
    assert all(np.abs(heard - click).min() <= 0.0215 for click in due)
    assert len(heard) == len(times)
    assert len(samples) / RATE == pytest.approx(due[-1] + 0.025, abs=0.0215)


def test_small_errors_of_timestamps_change_nothing(tmp_path: Path) -> None:
    blocks = clicking_blocks(40)
    write_blocks(tmp_path / "speech.mkv", blocks, [0.05 * index + 0.015 * (index % 2) for index in range(40)])
    np.testing.assert_allclose(load_sound(tmp_path / "speech.mkv").samples[0], np.concatenate(blocks), atol=1e-4)


@pytest.mark.parametrize("jump", [70.0, 1e6])
def test_timestamps_that_jump_are_refused(tmp_path: Path, jump: float) -> None:
    times = 2 + np.arange(60) * 0.05
    times[50:] += jump
    write_blocks(tmp_path / "speech.mkv", clicking_blocks(60), times.tolist())
    with named_error(tmp_path / "speech.mkv", f"jump by {jump:.0f}", "after 2.500 s", "encode it again"):
        load_sound(tmp_path / "speech.mkv")


def test_timestamps_that_go_back_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "speech.mkv"
    write_blocks(path, clicking_blocks(60), [0.05 * index for index in range(60)])
    data = path.read_bytes()
    for index in range(50, 60):  # Matroska's blocks begin with track, time in ms, flags
        old, new = (struct.pack(">BhB", 0x81, time, 0x80) for time in (50 * index, 50 * index - 1500))
        assert data.count(old) == 1
        data = data.replace(old, new)
    path.write_bytes(data)
    with named_error(path, "jump by -1.500 s after 2.500 s", "encode it again"):
        load_sound(path)


def test_many_holes_are_refused(tmp_path: Path) -> None:
    write_blocks(tmp_path / "speech.mkv", clicking_blocks(10), [20.0 * index for index in range(10)])
    with named_error(tmp_path / "speech.mkv", "jump by"):
        load_sound(tmp_path / "speech.mkv")


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_track_is_taken(tmp_path: Path, default: int) -> None:
    write_tracks(tmp_path / "talk.mp4", [500, 1000], default)
    assert pitch(load_sound(tmp_path / "talk.mp4").samples[0], RATE) == pytest.approx(500 * (1 + default), abs=5)


def test_an_encoders_filling_at_the_end_is_no_sound(tmp_path: Path) -> None:
    write_tracks(tmp_path / "talk.m4a", [500], seconds=0.97)
    assert load_sound(tmp_path / "talk.m4a").samples.shape[1] == round(0.97 * RATE)


def without_decoders(path: Path, tracks: int) -> None:
    """Give the first tracks of an mp4 file a codec that nobody knows."""
    data = path.read_bytes().replace(b"mp4a", b"zzzz", tracks).replace(b"esds", b"skip", tracks)
    path.write_bytes(data)


@pytest.mark.parametrize("default", [0, 1])
def test_a_track_without_a_decoder_is_passed_over(tmp_path: Path, default: int) -> None:
    write_tracks(tmp_path / "talk.mp4", [500, 1000], default)
    without_decoders(tmp_path / "talk.mp4", 1)
    assert pitch(load_sound(tmp_path / "talk.mp4").samples[0], RATE) == pytest.approx(1000, abs=5)
    without_decoders(tmp_path / "talk.mp4", 1)
    with named_error(tmp_path / "talk.mp4", "no decoder", "encode"):
        load_sound(tmp_path / "talk.mp4")


@pytest.mark.parametrize("name", ["speech.wav", "speech.mp3", "speech.raw", "speech.gsm", "speech.vox", "speech"])
def test_files_are_read_by_their_content(tmp_path: Path, name: str) -> None:
    write_tracks(tmp_path / "speech.m4a", [500])
    write_flash_and_beep(tmp_path / "clip.mp4", 0, 0, at=0.8)
    soundfile.write(tmp_path / "speech.flac", tone(1, RATE), RATE)
    for right in ("speech.m4a", "clip.mp4", "speech.flac"):
        wanted = load_sound(tmp_path / right)
        (tmp_path / right).rename(tmp_path / name)
        got = load_sound(tmp_path / name)
        assert got.rate == wanted.rate and np.array_equal(got.samples, wanted.samples)


@pytest.mark.parametrize(("layout", "rate"), [("stereo", 16000), ("mono", 32000)])
def test_sound_that_changes_in_the_middle_is_refused(tmp_path: Path, layout: str, rate: int) -> None:
    for name, kind, per_second in (("a.aac", "mono", 16000), ("b.aac", layout, rate)):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("aac", rate=per_second, layout=kind)
            samples = np.stack([tone(1, per_second)] * stream.channels)
            part = av.AudioFrame.from_ndarray(samples, format="fltp", layout=kind)
            part.sample_rate, part.pts = per_second, 0
            container.mux(stream.encode(part))
            container.mux(stream.encode(None))
    joined = tmp_path / "joined.aac"
    joined.write_bytes((tmp_path / "a.aac").read_bytes() + (tmp_path / "b.aac").read_bytes())
    with named_error(joined, "changes from 16000 Hz and 1 channels", "encode it again"):
        load_sound(joined)


@pytest.mark.parametrize("gain", [-1.0, -0.9])
def test_channels_that_cancel_out_are_refused(tmp_path: Path, gain: float) -> None:
    speech = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    soundfile.write(tmp_path / "speech.wav", np.stack([speech, gain * speech], axis=1), RATE)
    with named_error(tmp_path / "speech.wav", "cancel out", "one of the channels"):
        load_sound(tmp_path / "speech.wav")
    with pytest.raises(ValueError, match="cancel out"):
        load_sound(np.stack([speech, gain * speech]), RATE, allow_silent=True)


def test_channels_that_differ_are_taken() -> None:
    channels = np.random.default_rng(0).normal(0, 0.1, (8, 8000)).astype(np.float32)
    alone = np.zeros_like(channels)
    alone[3] = channels[3]
    for samples in (channels[:2], channels, alone, alone[2:4], np.stack([channels[0], -0.3 * channels[0]])):
        assert np.array_equal(load_sound(samples, RATE).samples, samples)


@pytest.mark.parametrize("rate", [1, 999, 4_000_000_000])
def test_rates_that_no_recording_has_are_refused(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "speech.wav"
    soundfile.write(path, tone(1, RATE), RATE)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)
    with named_error(path):
        load_sound(path)


def test_memory_is_for_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "speech.flac"
    soundfile.write(path, tone(1, RATE), RATE)
    wanted = load_sound(path).samples
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # the number of samples: 36 bits of STREAMINFO
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)
    assert np.array_equal(load_sound(path).samples, wanted)
    monkeypatch.setattr(sound_module, "MAX_SAMPLES", 10_000)
    write_tracks(tmp_path / "speech.m4a", [500])
    for name in ("speech.flac", "speech.m4a"):
        with named_error(tmp_path / name, "more than 10000 samples", "cut it"):
            load_sound(tmp_path / name)


def test_damage_is_told_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "speech.m4a"
    write_tracks(path, [500], seconds=3)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux() if packet.size][30]
        at, size, due = packet.pos, packet.size, float(packet.pts * packet.time_base)
    data = bytearray(path.read_bytes())
    data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    with named_error(path, f"damaged after {due - 0.064:.3f} s", "encode it again"):
        load_sound(path)


def test_a_silent_sound_is_refused_with_a_remedy(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "speech.wav", np.zeros(RATE), RATE)
    with named_error(tmp_path / "speech.wav", "is silent", "check the microphone", "in Python"):
        load_sound(tmp_path / "speech.wav")


@pytest.mark.parametrize("rate, layout", [(44100, "stereo"), (16000, "mono")])
def test_speech_in_pieces_is_that_of_the_whole(tmp_path: Path, rate: int, layout: str) -> None:
    path = tmp_path / "talk.mkv"
    write_flash_and_beep(path, 0.2, 0.0, 1.0)
    if layout == "stereo":
        samples = 0.1 * np.random.default_rng(0).standard_normal((2, 3 * rate)).astype(np.float32)
        with VideoWriter(tmp_path / "talk.mp4", 32, 48, sound=Sound(samples, rate)) as writer:
            writer.write(greys(60))
        path = tmp_path / "talk.mp4"
    pieces, whole = load_speech(path), speech_waveform(load_sound(path))
    assert pieces.shape == whole.shape and float((pieces - whole).abs().max()) < 1e-4


def test_bad_speech_in_pieces_is_refused_by_name(tmp_path: Path) -> None:
    tones = np.stack([tone(1, 16000), -tone(1, 16000)])
    for name, samples, words in (("a.mp4", tones, "cancel out"), ("b.mp4", 0 * tones, "silent")):
        with VideoWriter(tmp_path / name, 32, 48, sound=Sound(samples, 16000)) as writer:
            writer.write(greys(25))
        with named_error(tmp_path / name, words):
            load_speech(tmp_path / name)
