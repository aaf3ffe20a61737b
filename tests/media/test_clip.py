"""Media in and out: pictures and sound stay together, and bad files are refused by name."""

import json
import logging
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from diffsynth_omniavatar.media import clip
from diffsynth_omniavatar.media.clip import (
    Sound,
    VideoWriter,
    iter_frames,
    load_image,
    load_sound,
    probe_video,
    read_frames,
)
from diffsynth_omniavatar.model import config

GREY_STEP = 4
"""Grey levels between frames of a synthetic clip; lossy coding changes a flat picture by less than half of that."""


def grey_frame(level: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def write_greys(
    path: Path, times: Sequence[int], rate: int = 1000, codec: str = "libx264", group: int = 8, **options: str
) -> None:
    """A clip whose picture number k, of grey level 4 k, comes on screen at times[k] / rate seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.gop_size = group
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(grey_frame(GREY_STEP * index), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def shown(frames: torch.Tensor) -> list[int]:
    """Which picture each frame shows."""
    return (frames[:, 8:24, 8:40].float().mean((1, 2, 3)) / GREY_STEP).round().int().tolist()


def on_screen(times: Sequence[int], rate: int, frames: int) -> list[int]:
    """Which picture is on screen at each 25th of a second after the first."""
    return [bisect_right(times, times[0] + Fraction(index * rate, 25)) - 1 for index in range(frames)]


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def named_error(path: Path, *words: str) -> Any:
    """pytest.raises for a ValueError that names `path` and has `words`."""
    return pytest.raises(ValueError, match=".*".join([path.name.replace(".", r"\."), *words]))


# Images

QUADRANTS = np.kron(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8), np.ones((4, 6, 1)))
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED_AS)
def test_images_stand_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(QUADRANTS.astype(np.uint8))
    turn = STORED_AS[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "photo.png"), upright)


def palette_image() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    return image


def see_through_palette() -> Image.Image:
    image = palette_image()
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 30_000, np.uint16)), (117, 117, 117)),
        (Image.fromarray(np.full((4, 4), 65_535, np.int32)), (255, 255, 255)),
        (palette_image(), (200, 100, 50)),
        (see_through_palette(), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("LA", (4, 4), (0, 51)), (204, 204, 204)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, image: Image.Image, expected: tuple[int, int, int]) -> None:
    path = tmp_path / ("image.tif" if image.mode in ("CMYK", "I") else "image.png")
    image.save(path)
    for source in (image, path, str(path)):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert loaded.getcolors() == [(16, expected)]


def test_bad_images_are_refused_by_name(tmp_path: Path) -> None:
    text, cut, thin = (tmp_path / name for name in ("text.png", "cut.png", "thin.png"))
    text.write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    Image.new("RGB", (30, 1)).save(thin)
    for path, words in ((text, "cannot be read"), (cut, "cannot be read"), (thin, "1x30")):
        with named_error(path, words):
            load_image(path)
    with named_error(tmp_path / "absent.png", "cannot be read"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="floats"):
        load_image(Image.new("F", (4, 4)))
    with pytest.raises(ValueError, match="grey levels"):
        load_image(Image.fromarray(np.full((4, 4), 70_000, np.int32)))


def test_images_and_tensors_are_inverse() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels[::-1], levels.T], axis=-1))
    tensor = clip.image_to_tensor(image)
    assert tensor.shape == (3, 16, 16)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert np.array_equal(clip.tensor_to_image(tensor), image)
    assert clip.to_bytes(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


def test_sizes_equal_upstream(goldens: Path) -> None:
    recorded = json.loads((goldens / "resize.json").read_text())
    assert [list(size) for size in config.IMAGE_SIZES_720] == recorded["image_sizes_720"]
    assert [list(size) for size in config.IMAGE_SIZES_1280] == recorded["image_sizes_1280"]
    for case in recorded["cases"]:
        for name, sizes in (("720", config.IMAGE_SIZES_720), ("1280", config.IMAGE_SIZES_1280)):
            size = clip.match_size(case["h"], case["w"], sizes)
            scaled, padding = clip.fit_layout(case["h"], case["w"], size)
            got = {"size": list(size), "scaled": list(scaled), "pad_left_right_top_bottom": list(padding)}
            assert got == case[name], (case["h"], case["w"])


def test_fitted_images_equal_upstream(goldens: Path) -> None:
    tensors = load_file(goldens / "resize.safetensors")
    image = tensors.pop("in.image") * 2 - 1
    for name, expected in tensors.items():
        size = tuple(map(int, name.removeprefix("out.").split("x")))
        # Upstream scales in [0, 1]; the same sums in [-1, 1] round differently.
        torch.testing.assert_close(clip.fit_image(image, size), expected * 2 - 1, rtol=0, atol=2e-5)


def test_fit_image_pads_with_black_and_takes_any_leading_dimensions() -> None:
    white = torch.ones(2, 5, 3, 161, 291)
    fitted = clip.fit_image(white, (400, 720))
    assert fitted.shape == (2, 5, 3, 400, 720)
    assert fitted[..., -1, :].unique().tolist() == [-1.0]
    torch.testing.assert_close(fitted[..., :-1, :], torch.ones(2, 5, 3, 399, 720))
    with pytest.raises(ValueError, match="to_unit_range"):
        clip.fit_image(white.byte(), (400, 720))


# Video in


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
    fitted = clip.to_bytes(clip.fit_image(clip.to_unit_range(frames).permute(0, 3, 1, 2), (20, 20)))
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


def write_flash_and_beep(path: Path, picture_start: float, sound_start: float, at: float) -> None:
    """A clip whose streams start at different times, with a white frame and a loud tone `at` seconds on its clock."""
    rate = 48000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="mono")
        for index in range(50):
            time = picture_start + index / 25
            frame = av.VideoFrame.from_ndarray(grey_frame(255 if abs(time - at) < 0.02 else 0), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        sound = np.zeros(2 * rate, np.float32)
        first = round((at - sound_start) * rate)
        sound[first : first + rate // 25] = tone(0.04, rate, 1000)
        for start in range(0, len(sound), 1024):
            part = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            part.sample_rate, part.time_base = rate, Fraction(1, rate)
            part.pts = round(sound_start * rate) + start
            container.mux(audio.encode(part))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def flash_and_beep(path: Path) -> tuple[float, float]:
    """Seconds from the first frame to the white frame, and from the first sample to the tone."""
    brightness = read_frames(path).float().mean((1, 2, 3))
    sound = load_sound(path)
    loud = np.abs(sound.samples[0]) > 0.25
    return int(brightness.argmax()) / 25, int(loud.argmax()) / sound.rate


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


# Sound


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
    waveform = clip.speech_waveform(load_sound(np.stack([left, right]), rate))
    assert (waveform.dtype, waveform.shape) == (torch.float32, (8000,))
    expected = (tone(0.5, 16000) + tone(0.5, 16000, 1000)) / 2
    # The resampler's filter reaches over the ends.
    np.testing.assert_allclose(waveform[500:-500], expected[500:-500], atol=2e-4)


def test_speech_waveform_keeps_16_khz_and_rounds_lengths_up() -> None:
    samples = tone(0.5, 16000)
    assert np.array_equal(clip.speech_waveform(load_sound(samples, 16000)), samples)
    for samples_at_44100 in (4410, 4411, 4412, 4413):
        waveform = clip.speech_waveform(load_sound(tone(1, 44100)[:samples_at_44100], 44100))
        assert len(waveform) == -(-samples_at_44100 * 160 // 441)


def test_silence_goes_in_front() -> None:
    sound = load_sound(np.stack([tone(0.5, 44100)] * 2), 44100)
    later = clip.add_silence(sound, 0.3)
    assert later.duration == pytest.approx(0.8)
    assert not later.samples[:, :13_230].any()
    assert np.array_equal(later.samples[:, 13_230:], sound.samples)
    with pytest.raises(ValueError, match=r"-0\.1 s"):
        clip.add_silence(sound, -0.1)


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


# Video out


def greys(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.stack([torch.from_numpy(grey_frame(GREY_STEP * index, height, width)) for index in range(count)])


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
    for name, given in (("a.mp4", frames), ("b.mp4", clip.to_unit_range(frames)), ("c.mp4", frames.flip(0).flip(0))):
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
    assert (record.name, record.levelno) == ("diffsynth_omniavatar", logging.WARNING)
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

    monkeypatch.setattr(clip.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"), VideoWriter(tmp_path / "out.mp4", 32, 48) as writer:
        writer.write(greys(3))
    with pytest.raises(RuntimeError, match="first fault"), VideoWriter(tmp_path / "out.mp4", 32, 48) as writer:
        writer.write(greys(3))
        raise RuntimeError("first fault")
    assert not list(tmp_path.iterdir())
    assert "no space left" in caplog.text


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


# Real clips


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
    assert clip.fit_image(clip.image_to_tensor(image), (400, 720)).shape == (3, 400, 720)
    sound = load_sound(folder / "0000.MP3")
    assert sound.rate == 44100
    assert len(clip.speech_waveform(sound)) == pytest.approx(6 * 16000, rel=0.01)
