"""What is written comes back, with its sound, whole or interrupted."""

import logging
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_files import flash_and_beep, greys, named_error, shown, tone

from diffsynth_omniavatar.media.images import to_unit_range
from diffsynth_omniavatar.media.sound import Sound, load_sound
from diffsynth_omniavatar.media.video import probe_video, read_frames
from diffsynth_omniavatar.media.writer import VideoWriter

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.mov"])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_written_frames_come_back(tmp_path: Path, name: str, count: int) -> None:
    frames = greys(count, 34, 50)
    with VideoWriter(tmp_path / name, 34, 50) as writer:
        for part in frames.split(7):
            writer.write(part)
    assert writer.frames_written == count
    back = read_frames(tmp_path / name)
    assert back.shape == frames.shape
    assert shown(back) == list(range(count))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with av.open(str(tmp_path / name)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("count", [14, 27, 40, 53, 66])
def test_the_last_frame_comes_back_wherever_a_fragment_ends(tmp_path: Path, count: int) -> None:
    place = torch.arange(64) - 32.0
    left = 12 * torch.sin(torch.arange(count) / 6)[:, None, None]
    ball = (place[:, None] ** 2 + (place - left) ** 2 < 150).to(torch.uint8) * 200
    frames = ball[..., None].expand(-1, -1, -1, 3)
    with VideoWriter(tmp_path / "out.mp4", 64, 64) as writer:
        writer.write(frames)
    assert len(read_frames(tmp_path / "out.mp4")) == count == probe_video(tmp_path / "out.mp4").frames


def test_other_frame_rates_are_kept(tmp_path: Path) -> None:
    for rate in (30, 29.97, Fraction(24000, 1001), 50):
        with VideoWriter(tmp_path / "out.mp4", 32, 48, frame_rate=rate) as writer:
            writer.write(greys(12))
        assert probe_video(tmp_path / "out.mp4").frame_rate == pytest.approx(float(rate), rel=1e-4)


def test_colours_come_back_and_are_tagged(tmp_path: Path) -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 100, 50]])
    frames = colours.to(torch.uint8)[:, None, None].expand(-1, 32, 48, 3)
    with VideoWriter(tmp_path / "out.mp4", 32, 48, crf=1) as writer:
        writer.write(frames)
    back = read_frames(tmp_path / "out.mp4")
    # 8-bit YUV keeps a colour to within about 3 levels.
    assert (back.float().mean((1, 2)) - colours).abs().max() <= 4
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_floats_are_written_as_bytes_are(tmp_path: Path) -> None:
    frames = greys(5)
    for name, given in (("a.mp4", frames), ("b.mp4", to_unit_range(frames)), ("c.mp4", frames.flip(0).flip(0))):
        with VideoWriter(tmp_path / name, 32, 48) as writer:
            writer.write(given)
    first = read_frames(tmp_path / "a.mp4")
    assert torch.equal(read_frames(tmp_path / "b.mp4"), first)
    assert torch.equal(read_frames(tmp_path / "c.mp4"), first)


@pytest.mark.parametrize("rate", [16000, 44100, 48000, 12345])
@pytest.mark.parametrize("delay", [0.0, 0.04])
def test_flash_and_beep_are_written_together(tmp_path: Path, rate: int, delay: float) -> None:
    flash_at = 30
    frames = torch.zeros(60, 32, 48, 3, dtype=torch.uint8)
    frames[flash_at] = 255
    samples = np.zeros(rate * 3, np.float32)
    first = round((flash_at / 25 - delay) * rate)
    beep = tone(0.04, rate, 1000)
    samples[first : first + len(beep)] = beep
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 32, 48, sound=Sound(samples[None], rate), sound_delay=delay) as writer:
        writer.write(frames)
    flash_time, beep_time = flash_and_beep(path)
    assert flash_time == flash_at / 25
    # AAC smears an onset over a few milliseconds.
    assert beep_time == pytest.approx(flash_time, abs=0.005)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_sound_is_cut_to_the_picture(tmp_path: Path, channels: int) -> None:
    for seconds, heard in ((3.0, 0.8), (0.5, 0.5)):
        samples = np.stack([tone(seconds, 44100)] * channels)
        with VideoWriter(tmp_path / "out.mp4", 32, 48, sound=Sound(samples, 44100)) as writer:
            writer.write(greys(20))
        sound = load_sound(tmp_path / "out.mp4")
        assert sound.samples.shape == (1 if channels == 3 else channels, round(heard * 44100))
        middle = slice(2000, 20_000)
        np.testing.assert_allclose(sound.samples[0, middle], samples[0, middle], atol=0.05)


def test_sound_is_interleaved_with_the_picture(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 16000 * 20)).astype(np.float32)
    with VideoWriter(tmp_path / "out.mp4", 32, 48, sound=Sound(noise, 16000)) as writer:
        for _ in range(25):
            writer.write(greys(20))
    times = {"video": 0.0, "audio": 0.0}
    with av.open(str(tmp_path / "out.mp4")) as container:
        packets = [packet for packet in container.demux() if packet.size]
        for packet in sorted(packets, key=lambda packet: packet.pos):
            times[packet.stream.type] = float(packet.dts * packet.time_base)
            assert abs(times["video"] - times["audio"]) < 2
    assert times["audio"] > 19


@pytest.mark.parametrize("stop", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_interrupted_file_can_be_played(
    tmp_path: Path, stop: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "out.mp4"
    sound = Sound(tone(4, 16000)[None], 16000)
    with pytest.raises(type(stop)), VideoWriter(path, 32, 48, sound=sound) as writer:
        writer.write(greys(33))
        raise stop
    assert shown(read_frames(path)) == list(range(33))
    assert load_sound(path).samples.shape == (1, 33 * 640)
    assert list(tmp_path.iterdir()) == [path]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("diffsynth_omniavatar.media.writer", logging.WARNING)
    assert "33 frames" in record.getMessage()
    assert str(path) in record.getMessage()


def test_nothing_is_left_when_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("an older result")
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 32, 48):
        raise KeyboardInterrupt
    with named_error(path, "no frame was written"), VideoWriter(path, 32, 48):
        pass
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "an older result"


def test_a_file_that_cannot_be_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full_disk(*paths: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"), VideoWriter(tmp_path / "out.mp4", 32, 48) as writer:
        writer.write(greys(3))
    with pytest.raises(RuntimeError, match="first fault"), VideoWriter(tmp_path / "out.mp4", 32, 48) as writer:
        writer.write(greys(3))
        raise RuntimeError("first fault")
    assert not list(tmp_path.iterdir())
    assert "no space left" in caplog.text


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_a_file_can_be_played_while_it_grows(tmp_path: Path, ending: str) -> None:
    """What a process that is killed outright leaves behind."""
    path, part = tmp_path / f"out.{ending}", tmp_path / f"out.part.{ending}"
    noise = torch.randint(0, 256, (75, 32, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with VideoWriter(path, 32, 48, sound=Sound(tone(8, 16000)[None], 16000)) as writer:
        assert list(tmp_path.iterdir()) == [part] and part.stat().st_size == 0
        for written in (17, 75):
            writer.write(noise[writer.frames_written : written])
            assert list(tmp_path.iterdir()) == [part]
            assert written - 16 <= probe_video(part).frames < written
            assert load_sound(part).duration >= (written - 16) / 25
    assert list(tmp_path.iterdir()) == [path]
    assert probe_video(path).frames == 75


@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_a_finished_file_is_an_ordinary_one(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    with VideoWriter(path, 32, 48, sound=Sound(tone(4, 16000)[None], 16000)) as writer:
        writer.write(greys(60))
    data, boxes = path.read_bytes(), []
    while data:
        size, name = struct.unpack(">I4s", data[:8])
        boxes.append(name)
        data = data[size:]
    assert boxes in ([b"ftyp", b"free", b"mdat", b"moov"], [b"ftyp", b"wide", b"mdat", b"moov"])
    with av.open(str(path)) as container:
        assert [(stream.start_time, float(stream.duration * stream.time_base)) for stream in container.streams] == [
            (0, 2.4),
            (0, 2.4),
        ]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events = tmp_path / "out.mp4", []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(os.fstat(handle).st_ino), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    with VideoWriter(path, 32, 48) as writer:
        writer.write(greys(3))
    assert events == [path.stat().st_ino, "replace", tmp_path.stat().st_ino]


@pytest.mark.parametrize("name", ["10:45.mp4", "file:a.mkv", "a%02d.mov"])
def test_any_file_name_is_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter(name, 32, 48) as writer:
        writer.write(greys(3))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert shown(read_frames(name)) == [0, 1, 2]


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "taken.part.mp4").mkdir()
    for path, words in (
        (tmp_path / "folder.mp4", "there is a folder"),
        (tmp_path / "taken.mp4", "cannot be written"),
        (tmp_path / f"{'x' * 250}.mp4", "cannot be written"),
        (tmp_path / f"{'x' * 300}.mp4", "cannot be written"),
        (Path("/proc/out.mp4"), "cannot be written"),
    ):
        with named_error(path, words):
            VideoWriter(path, 32, 48)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_writer_left_stays_until_the_next_writes(tmp_path: Path) -> None:
    part = tmp_path / "out.part.mp4"
    part.write_text("what was made before")
    writer = VideoWriter(tmp_path / "out.mp4", 32, 48)
    assert part.read_text() == "what was made before"
    with writer:
        writer.write(greys(3))
    assert list(tmp_path.iterdir()) == [tmp_path / "out.mp4"]


def test_a_file_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", 32, 48) as writer:
        writer.write(greys(3))
        if (child := os.fork()) == 0:
            refused = False
            try:
                VideoWriter(tmp_path / "out.mp4", 32, 48).__enter__()
            except ValueError as error:
                refused = "out.mp4: another run is writing it" in str(error)
            finally:
                os._exit(0 if refused else 1)
        assert os.waitpid(child, 0)[1] == 0
        writer.write(greys(3))
    assert list(tmp_path.iterdir()) == [tmp_path / "out.mp4"]
    assert shown(read_frames(tmp_path / "out.mp4")) == [0, 1, 2, 0, 1, 2]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for arguments, words in (
        (("out.mp4", 33, 48), "33x48"),
        (("out.mp4", 32, 47), "32x47"),
        (("out.webm", 32, 48), "mp4"),
        (("absent/out.mp4", 32, 48), "folder does not exist"),
    ):
        with pytest.raises(ValueError, match=words):
            VideoWriter(tmp_path / arguments[0], *arguments[1:])
    bad = torch.zeros(1, 32, 48, 3)
    bad[0, 0, 0, 0] = torch.nan
    for frames, words in (
        (greys(1, 34, 48), "wanted"),
        (greys(1)[0], "wanted"),
        (greys(1).int(), "int32"),
        (bad, "not finite"),
    ):
        with pytest.raises(ValueError, match=words), VideoWriter(tmp_path / "out.mp4", 32, 48) as writer:
            writer.write(frames)
    assert not list(tmp_path.iterdir())
