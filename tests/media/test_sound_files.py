"""What libsndfile passes over in sound files is told: damage, cut ends, and what is joined behind the end."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_files import named_error, tone

from diffsynth_omniavatar.media.sound import load_sound

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

RATE = 16000


def coded(kind: str, samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def without_header(mp3: bytes) -> bytes:
    """The frames of an MP3 file behind the first, which says how many there are."""
    return mp3[mp3.index(b"\xff\xf3", 3) :]


def test_joined_mp3_files_are_read_to_the_end(tmp_path: Path) -> None:
    path, whole = tmp_path / "speech", coded("MP3", tone(1, RATE))
    path.write_bytes(whole + whole)
    assert load_sound(path).duration == pytest.approx(2, abs=0.2)
    for second in (coded("MP3", np.stack([tone(1, RATE)] * 2, axis=1)), coded("MP3", tone(1, 22050), 22050)):
        path.write_bytes(whole + second)
        with named_error(path, "joined of several files|changes from 16000 Hz and 1 channels", "encode it again"):
            load_sound(path)


def test_an_mp3_file_without_a_header_is_read_to_the_end(tmp_path: Path) -> None:
    """Its first frames are the smallest: silence at a variable bit rate."""
    path, whole = tmp_path / "speech.mp3", coded("MP3", np.append(np.zeros(8000, np.float32), tone(4, RATE)))
    path.write_bytes(without_header(whole))
    assert load_sound(path).duration == pytest.approx(4.5, abs=0.2)


def test_joined_ogg_files_are_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "speech", coded("OGG", tone(1, RATE))
    path.write_bytes(whole + whole)
    with named_error(path, "joined of several files", "encode it again"):
        load_sound(path)


def test_damage_inside_an_mp3_file_is_told_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "speech.mp3"
    for whole in (coded("MP3", tone(4, RATE)), without_header(coded("MP3", tone(4, RATE)))):
        path.write_bytes(whole)
        assert load_sound(path).duration == pytest.approx(4, abs=0.2)
        half = len(whole) // 2
        for damaged in (whole[:half] + b"\0" * 200 + whole[half + 200 :], whole[:half] + whole[half + 205 :]):
            path.write_bytes(damaged)
            with named_error(path, r"damaged after (1\.[89]|2\.[0-2])"):
                load_sound(path)


def test_tags_around_an_mp3_file_are_no_damage(tmp_path: Path) -> None:
    path, whole = tmp_path / "speech.mp3", coded("MP3", tone(1, RATE))
    picture = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    path.write_bytes(
        b"ID3\4\0\0\0\0" + bytes([5000 >> 7, 5000 & 127]) + picture + whole + b"APETAGEX" + picture + b"TAG"
    )
    assert load_sound(path).samples.shape == (1, RATE)


@pytest.mark.parametrize("kind", ["MP3", "FLAC", "OGG", "WAV"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    path, whole = tmp_path / "speech", coded(kind, tone(2, RATE))
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with named_error(path):
        load_sound(path)


def test_damage_in_a_flac_file_is_told_with_its_time(tmp_path: Path) -> None:
    path, data = tmp_path / "speech.flac", bytearray(coded("FLAC", tone(2, RATE)))
    data[len(data) // 2 : len(data) // 2 + 100] = b"\xff" * 100
    path.write_bytes(data)
    with named_error(path, r"damaged after (0\.[5-9]|1\.0)"):
        load_sound(path)


def test_a_wav_file_that_was_streamed_has_no_size(tmp_path: Path) -> None:
    path, data = tmp_path / "speech.wav", bytearray(coded("WAV", tone(1, RATE)))
    for size in (b"\xff" * 4, b"\xff\xff\xff\x7f"):
        data[40:44] = size
        path.write_bytes(data)
        assert load_sound(path).samples.shape == (1, RATE)


def test_samples_in_another_unit_are_refused(tmp_path: Path) -> None:
    path, samples = tmp_path / "speech.wav", tone(1, RATE) * 32768
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    with named_error(path, "16384 times full scale", "divide"):
        load_sound(path)
    with pytest.raises(ValueError, match="32768"):
        load_sound(samples, RATE)
    assert load_sound(8 * tone(1, RATE), RATE).duration == 1
