"""Small clips of known pictures and sounds, and what of them is on screen."""

import struct
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from diffsynth_omniavatar.media.sound import load_sound
from diffsynth_omniavatar.media.video import read_frames

GREY_STEP = 4
"""Grey levels between frames of a synthetic clip; lossy coding changes a flat picture by less than half of that."""

QUADRANTS = np.kron(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8), np.ones((4, 6, 1)))


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


def set_matrix(path: Path, *matrix: float) -> None:
    """Write the display matrix a, b, c, d of an mp4 file's only track, as phones do (ISO 14496-12, track header)."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (round(value * 65536) for value in matrix)
    matrix_at = data.index(b"tkhd") + 4 + 40
    data[matrix_at : matrix_at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def write_planes(path: Path, colours: Sequence[Sequence[int]], pixels: str, height: int = 16, **tags: int) -> None:
    """A lossless clip of flat pictures, each of the given Y, Cb and Cr, with these tags (ITU-T H.273)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, 16, pixels
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index, colour in enumerate(colours):
            frame = av.VideoFrame(16, height, pixels)
            for plane, value in zip(frame.planes, colour, strict=True):
                size = plane.buffer_size
                plane.update(np.full(size // 2, value, "<u2") if "10" in pixels else np.full(size, value, np.uint8))
            for name, value in tags.items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = index, Fraction(1, 25)
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


def write_blocks(path: Path, blocks: Sequence[np.ndarray], times: Sequence[float], rate: int = 16000) -> None:
    """A sound file, in PCM, whose block number k, float samples [n], begins at times[k] seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for block, time in zip(blocks, times, strict=True):
            samples = (block * 32767).astype(np.int16)[None]
            part = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            part.sample_rate, part.time_base, part.pts = rate, Fraction(1, rate), round(time * rate)
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def write_tracks(path: Path, tones: Sequence[float], default: int = 0, rate: int = 16000, seconds: float = 1) -> None:
    """A file of AAC tracks, one for each tone of so many hertz."""
    with av.open(str(path), "w", format="adts" if path.suffix == ".aac" else "mp4") as container:
        streams = [container.add_stream("aac", rate=rate, layout="mono") for _ in tones]
        streams[default].disposition = int(av.stream.Disposition.default)
        for stream, hertz in zip(streams, tones, strict=True):
            part = av.AudioFrame.from_ndarray(tone(seconds, rate, hertz)[None], format="fltp", layout="mono")
            part.sample_rate, part.pts = rate, 0
            container.mux(stream.encode(part))
            container.mux(stream.encode(None))


def pitch(samples: np.ndarray, rate: int) -> float:
    """The strongest frequency, in hertz."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples))


def flash_and_beep(path: Path) -> tuple[float, float]:
    """Seconds from the first frame to the white frame, and from the first sample to the tone."""
    brightness = read_frames(path).float().mean((1, 2, 3))
    sound = load_sound(path)
    loud = np.abs(sound.samples[0]) > 0.25
    return int(brightness.argmax()) / 25, int(loud.argmax()) / sound.rate


def greys(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.stack([torch.from_numpy(grey_frame(GREY_STEP * index, height, width)) for index in range(count)])


def icc_profile(model: bytes, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile (ICC.1:2001-04) for colours of `model`, as b"RGB ", by way of `space`, with these tags."""
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249), **tags}
    directory, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        directory += struct.pack(">4sII", name, start + len(body), len(data))
        body += data
    kind = b"prtr" if model == b"CMYK" else b"mntr"
    header = struct.pack(">I4sI4s4s4s12s4s", start + len(body), b"", 0x02100000, kind, model, space, b"", b"acsp")
    header += struct.pack(">28x3i", *(round(65536 * value) for value in (0.9642, 1, 0.8249)))
    return header.ljust(128, b"\0") + directory + body


def xyz(*values: float) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(round(65536 * value) for value in values))


def gamma(exponent: float) -> bytes:
    return struct.pack(">4s4xIH", b"curv", 1, round(256 * exponent))


def rgb_profile(columns: Sequence[Sequence[float]], exponent: float) -> bytes:
    """The profile of a screen whose red, green and blue have these XYZ (white D50)."""
    tags = {name + b"XYZ": xyz(*column) for name, column in zip((b"r", b"g", b"b"), columns, strict=True)}
    return icc_profile(b"RGB ", b"XYZ ", {**tags, **{name + b"TRC": gamma(exponent) for name in (b"r", b"g", b"b")}})


def ink_profile(lightness: int) -> bytes:
    """A profile that says that every mixture of inks is a grey of this L*."""
    identity = struct.pack(">9i", *(round(65536 * value) for value in np.eye(3).flatten()))
    ramp = bytes(range(256))
    corners = bytes([round(lightness * 2.55), 128, 128]) * 16
    table = struct.pack(">4s4x4B", b"mft1", 4, 3, 2, 0) + identity + ramp * 4 + corners + ramp * 3
    return icc_profile(b"CMYK", b"Lab ", {b"A2B0": table})
