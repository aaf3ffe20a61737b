"""Video comes in by its timestamps, upright, beside its sound; bad files are refused by name."""

import gc
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from fuzz_media import damaged_packet
from media_files import (
    QUADRANTS,
    flash_and_beep,
    grey_frame,
    named_error,
    on_screen,
    set_matrix,
    shown,
    tone,
    write_flash_and_beep,
    write_greys,
)
from PIL import Image
from synthetic_clips import write_levels

from diffsynth_omniavatar.media import files
from diffsynth_omniavatar.media.images import fit_image, image_to_tensor, load_image, to_bytes, to_unit_range
from diffsynth_omniavatar.media.sound import load_sound, speech_waveform
from diffsynth_omniavatar.media.video import iter_frames, probe_video, read_frames

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


def write_quadrants(path: Path, **settings: Any) -> np.ndarray:
    """A clip of one picture of 32x48, which is returned."""
    stored = np.kron(QUADRANTS.astype(np.uint8), np.ones((4, 4, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode(None))
    return stored


ORIENTATIONS: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda picture: picture,
    (-1, 0, 0, 1): lambda picture: picture[:, ::-1],
    (1, 0, 0, -1): lambda picture: picture[::-1],
    (-1, 0, 0, -1): lambda picture: picture[::-1, ::-1],
    (0, 1, -1, 0): lambda picture: np.rot90(picture, -1),
    (0, -1, 1, 0): lambda picture: np.rot90(picture),
    (0, 1, 1, 0): lambda picture: picture.swapaxes(0, 1),
    (0, -1, -1, 0): lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
}
"""What a display matrix (x' = a x + c y, y' = b x + d y) makes of a picture."""


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_videos_stand_upright(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = tmp_path / "phone.mp4"
    upright = ORIENTATIONS[matrix](write_quadrants(path))
    set_matrix(path, *matrix)
    info, frames = probe_video(path), read_frames(path)
    assert (info.height, info.width) == tuple(frames.shape[1:3]) == upright.shape[:2]
    assert np.abs(frames[0].numpy().astype(int) - upright).mean() < 4


def test_a_video_that_is_to_be_shown_askew_is_refused(tmp_path: Path) -> None:
    write_quadrants(tmp_path / "phone.mp4")
    set_matrix(tmp_path / "phone.mp4", 0.7, 0.7, -0.7, 0.7)
    with named_error(tmp_path / "phone.mp4", "askew"):
        probe_video(tmp_path / "phone.mp4")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize(
    ("aspect", "height", "width"), [("4/3", 32, 64), ("1/2", 64, 48), ("1", 32, 48), ("0", 32, 48)]
)
def test_pixels_become_square(tmp_path: Path, name: str, aspect: str, height: int, width: int) -> None:
    stored = write_quadrants(tmp_path / name, sample_aspect_ratio=Fraction(aspect))
    info, frames = probe_video(tmp_path / name), read_frames(tmp_path / name)
    assert (info.height, info.width) == tuple(frames.shape[1:3]) == (height, width)
    rows, columns = (np.arange(4) * 2 + 1) * height // 8, (np.arange(4) * 2 + 1) * width // 8
    wanted = stored[np.ix_((np.arange(4) * 2 + 1) * 4, (np.arange(4) * 2 + 1) * 6)]
    assert np.abs(frames[0].numpy().astype(int)[np.ix_(rows, columns)] - wanted).max() < 8


def test_pixels_are_square_before_the_picture_is_turned(tmp_path: Path) -> None:
    write_quadrants(tmp_path / "phone.mp4", sample_aspect_ratio=Fraction(2))
    set_matrix(tmp_path / "phone.mp4", 0, 1, -1, 0)
    assert read_frames(tmp_path / "phone.mp4").shape == (1, 96, 32, 3)


def test_impossible_pixels_are_refused(tmp_path: Path) -> None:
    write_quadrants(tmp_path / "clip.mp4", sample_aspect_ratio=Fraction(20))
    with named_error(tmp_path / "clip.mp4", "20 times as wide", "encode"):
        read_frames(tmp_path / "clip.mp4")


@pytest.mark.parametrize("far", [11.5, 300, 10**7])
@pytest.mark.parametrize("place", [0, 8, 19])
def test_far_timestamps_are_refused(tmp_path: Path, far: float, place: int) -> None:
    times = [40 * index + (round(1000 * far) if index > place or index == 19 else 0) for index in range(20)]
    write_greys(tmp_path / "clip.mkv", times)
    for read in (probe_video, read_frames, iter_frames):
        with named_error(tmp_path / "clip.mkv", "stays from", "10 s", "encode"):
            read(tmp_path / "clip.mkv")


def test_a_picture_may_stay_for_seconds(tmp_path: Path) -> None:
    times = [0, 40, 9000, 9040]
    write_greys(tmp_path / "clip.mkv", times)
    frames = read_frames(tmp_path / "clip.mkv")
    assert shown(frames) == on_screen(times, 1000, len(frames))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_damage_is_told_with_its_time(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.max_b_frames = 0
        for picture in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    whole = path.read_bytes()
    for picture, after in ((20, r"0\.[678]\d\d"), (24, r"0\.920")):  # the last too, whatever decodes beside it
        path.write_bytes(damaged_packet(whole, picture, seed=1))
        assert probe_video(path).frames == 25
        with named_error(path, rf"damaged after {after} s", "encode it again"):
            read_frames(path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.flv", "clip.avi"])
def test_damaged_files_are_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    path, random = tmp_path / name, np.random.default_rng(0)
    write_greys(path, range(10), 25, codec="mpeg4" if name == "clip.avi" else "libx264")
    whole = path.read_bytes()
    for _ in range(8):
        data = bytearray(whole[: random.integers(1, len(whole))] if random.random() < 0.2 else whole)
        for place in random.integers(0, len(data), 4):
            data[place] = random.integers(0, 256)
        path.write_bytes(data)
        for read in (probe_video, read_frames, load_sound):
            try:
                read(path)
            except ValueError as error:
                assert str(error).startswith(f"{path}: ")


def test_pictures_of_absurd_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_greys(tmp_path / "clip.mp4", range(3), 25)
    monkeypatch.setattr(files, "MAX_PIXELS", 32 * 48 - 1)
    for read in (probe_video, read_frames, load_sound):
        with named_error(tmp_path / "clip.mp4", "32x48" if read is not load_sound else "no sound"):
            read(tmp_path / "clip.mp4")


@pytest.mark.parametrize("name", ["12:30.mp4", "file:a.mp4", "-", "a%02d.mp4", "http:a.mp4"])
def test_any_file_name_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_flash_and_beep(tmp_path / "clip.mp4", 0, 0, at=0.8)
    (tmp_path / "clip.mp4").rename(tmp_path / name)
    assert flash_and_beep(Path(name)) == (0.8, pytest.approx(0.8, abs=0.005))
    assert probe_video(name).frames == 50


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for read in (probe_video, load_sound, load_image):
        with named_error(tmp_path / "pipe.mp4", "not a file"):
            read(tmp_path / "pipe.mp4")


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


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by Linux' files")
def test_reading_leaves_no_threads_that_a_forked_worker_would_wait_for(tmp_path: Path) -> None:
    path = write_levels(tmp_path / "a.mp4", 20)
    gc.collect()
    before = len(os.listdir("/proc/self/task"))
    gc.disable()
    try:
        read_frames(path)
        probe_video(path)
        assert len(os.listdir("/proc/self/task")) == before
    finally:
        gc.enable()
