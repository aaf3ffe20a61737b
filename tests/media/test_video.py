"""Video comes in by its timestamps, upright, beside its sound; bad files are refused by name."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from media_files import (
    QUADRANTS,
    flash_and_beep,
    grey_frame,
    named_error,
    on_screen,
    shown,
    tone,
    write_flash_and_beep,
    write_greys,
)
from PIL import Image

from diffsynth_omniavatar.media.images import fit_image, image_to_tensor, load_image, to_bytes, to_unit_range
from diffsynth_omniavatar.media.sound import load_sound, speech_waveform
from diffsynth_omniavatar.media.video import iter_frames, probe_video, read_frames
from diffsynth_omniavatar.media.writer import VideoWriter

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.mov"])
@pytest.mark.parametrize("rate", [30, 25, 24, 15, 60])
def test_frames_are_taken_by_their_time(tmp_path: Path, name: str, rate: int) -> None:
    write_greys(tmp_path / name, range(40), rate)
    frames = read_frames(tmp_path / name)
    assert shown(frames) == on_screen(range(40), rate, len(frames))
    info = probe_video(tmp_path / name)
    assert len(frames) == info.frames == -(-40 * 25 // rate)
    assert (info.height, info.width, info.has_sound) == (32, 48, False)
    # MPEG-TS counts in 1/90000 s, Matroska in 1/1000 s.
    assert info.duration == pytest.approx(40 / rate, abs=2e-3)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_variable_rate_is_followed(tmp_path: Path, name: str) -> None:
    times = [0, 33, 66, 300, 310, 320, 330, 340, 520, 900, 933, 966, 1000, 1500, 1550]
    write_greys(tmp_path / name, times)
    frames = read_frames(tmp_path / name)
    assert len(frames) == 39
    assert shown(frames) == on_screen(times, 1000, len(frames))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi", "clip.flv"])
def test_a_part_equals_that_part_of_the_whole(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    write_greys(tmp_path / name, range(50), 30, codec=codec, group=12)
    whole = read_frames(tmp_path / name)
    for start in range(0, len(whole), 3):
        assert torch.equal(read_frames(tmp_path / name, start, 2), whole[start : start + 2])
        assert torch.equal(read_frames(tmp_path / name, start), whole[start:])
    assert torch.equal(torch.stack(list(iter_frames(tmp_path / name))), whole)


def test_frames_of_a_size_are_fitted_as_images_are(tmp_path: Path) -> None:
    write_greys(tmp_path / "clip.mp4", range(3), 25)
    frames = read_frames(tmp_path / "clip.mp4")
    frames_of_size = read_frames(tmp_path / "clip.mp4", size=(20, 20))
    fitted = to_bytes(fit_image(to_unit_range(frames).permute(0, 3, 1, 2), (20, 20)))
    difference = frames_of_size.int() - fitted.permute(0, 2, 3, 1).int()
    assert frames_of_size.shape == (3, 20, 20, 3)
    # One level where the two ranges round differently.
    assert difference.abs().max() <= 1


def set_rotation(path: Path, clockwise: int, width: int, height: int) -> None:
    """Write the display matrix of an mp4 file's only track, as phones do (ISO 14496-12, track header)."""
    data = bytearray(path.read_bytes())
    matrices = {90: (0, 1, -1, 0, height, 0), 180: (-1, 0, 0, -1, width, height), 270: (0, -1, 1, 0, 0, width)}
    a, b, c, d, x, y = (value << 16 for value in matrices[clockwise])
    matrix_at = data.index(b"tkhd") + 4 + 40
    data[matrix_at : matrix_at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, x, y, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_videos_stand_upright(tmp_path: Path, clockwise: int) -> None:
    path = tmp_path / "phone.mp4"
    stored = torch.from_numpy(np.kron(QUADRANTS.astype(np.uint8), np.ones((4, 4, 1), np.uint8)))
    with VideoWriter(path, 32, 48) as writer:
        writer.write(stored[None])
    set_rotation(path, clockwise, width=48, height=32)
    upright = stored.numpy().copy()
    for _ in range(clockwise // 90):
        upright = upright.transpose(1, 0, 2)[:, ::-1]
    info, frames = probe_video(path), read_frames(path)
    assert (info.height, info.width) == tuple(frames.shape[1:3]) == upright.shape[:2]
    # Halved colour resolution blurs the borders of the quadrants.
    assert np.abs(frames[0].numpy().astype(int) - upright).mean() < 12


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize(("picture_start", "sound_start"), [(0, 0), (0.32, 0), (0, 0.32), (1, 1.2), (0.04, 0)])
def test_sound_stays_beside_the_picture(tmp_path: Path, name: str, picture_start: float, sound_start: float) -> None:
    path = tmp_path / name
    write_flash_and_beep(path, picture_start, sound_start, at=picture_start + 0.8)
    flash, beep = flash_and_beep(path)
    assert flash == 0.8
    # AAC smears an onset over a few milliseconds.
    assert beep == pytest.approx(flash, abs=0.005)


def test_a_hole_in_the_sound_track_is_silence(tmp_path: Path) -> None:
    rate = 16000
    with av.open(str(tmp_path / "hole.mkv"), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for index in range(20):
            samples = np.full((1, 800), 8000, np.int16)
            part = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            part.sample_rate, part.time_base = rate, Fraction(1, rate)
            part.pts = 800 * index + (4000 if index >= 10 else 0)
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    samples = load_sound(tmp_path / "hole.mkv").samples[0]
    assert len(samples) == 20_000
    assert not samples[8000:12_000].any()
    assert samples[:8000].all()
    assert samples[12_000:].all()


def test_bad_videos_are_refused_by_name(tmp_path: Path) -> None:
    text, image, speech = tmp_path / "text.mp4", tmp_path / "image.png", tmp_path / "speech.wav"
    text.write_text("no video" * 100)
    Image.new("RGB", (8, 8)).save(image)
    soundfile.write(speech, tone(1, 16000), 16000)
    cases = [
        (text, "cannot be read"),
        (tmp_path / "absent.mp4", "cannot be read"),
        (tmp_path, "cannot be read"),
        (image, "is an image"),
        (speech, "no video stream"),
    ]
    for path, words in cases:
        for read in (probe_video, read_frames, iter_frames):
            with named_error(path, words):
                read(path)


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        container.start_encoding()
    with named_error(path):
        read_frames(path)


def test_frames_that_the_file_has_not_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_greys(path, range(3), 25)
    for start, count in ((-1, 1), (3, None), (0, 4), (2, 2), (0, 0)):
        for read in (read_frames, iter_frames):
            with named_error(path, "has 3 frames"):
                read(path, start, count)


def test_timestamps_that_go_backward_are_refused(tmp_path: Path) -> None:
    # AVI has no presentation times, so that pictures coded out of order get wrong ones.
    write_greys(tmp_path / "clip.avi", range(20), 25, group=100, **{"x264-params": "bframes=2:b-adapt=0:scenecut=0"})
    with named_error(tmp_path / "clip.avi", "go backward"):
        read_frames(tmp_path / "clip.avi")


def test_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        container.mux(cover.encode(av.VideoFrame.from_ndarray(grey_frame(99), format="rgb24")))
        container.mux(cover.encode(None))
        part = av.AudioFrame.from_ndarray(tone(1, 16000)[None], format="fltp", layout="mono")
        part.sample_rate, part.pts = 16000, 0
        container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    assert load_sound(path).duration == pytest.approx(1, abs=0.07)
    with named_error(path, "no video stream"):
        probe_video(path)


def test_real_clips_have_their_frames_and_sound(shared_data: Path) -> None:
    for name, rate, frames, seconds in (("demo1_video", 25, 250, 10), ("demo3_video", 30, 500, 20)):
        path = shared_data / "talking_heads" / f"{name}.mp4"
        info = probe_video(path)
        assert (info.height, info.width) == (1920, 1080)
        assert (info.frame_rate, info.frames, info.has_sound) == (rate, frames, True)
        assert load_sound(path).duration == pytest.approx(seconds, abs=0.05)
        assert read_frames(path, frames - 3, 3, size=(180, 100)).shape == (3, 180, 100, 3)


def test_real_clip_of_30_fps_is_read_by_time(shared_data: Path) -> None:
    path = shared_data / "talking_heads" / "demo3_video.mp4"
    with av.open(str(path)) as container:
        own = [frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(13), strict=False)]
    for index, frame in enumerate(read_frames(path, 0, 10)):
        assert np.array_equal(frame, own[index * 30 // 25])


def test_real_portrait_and_speech_are_read(shared_data: Path) -> None:
    folder = shared_data / "omniavatar_example"
    image = load_image(folder / "0000.jpeg")
    assert fit_image(image_to_tensor(image), (400, 720)).shape == (3, 400, 720)
    sound = load_sound(folder / "0000.MP3")
    assert sound.rate == 44100
    assert len(speech_waveform(sound)) == pytest.approx(6 * 16000, rel=0.01)
