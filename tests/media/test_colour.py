"""Colours come in as a screen shows them, whatever a video stores; what cannot be converted is refused by name."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from media_files import named_error, write_planes

from diffsynth_omniavatar.media import colour
from diffsynth_omniavatar.media.video import read_frames

COLOURS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128), (220, 170, 140), (16, 16, 16)])

BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)
"""Parts of red and blue in the luma."""

TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""Linear light of BT.709 in the primaries of BT.2020 (ITU-R BT.2087)."""

TO_P3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])
"""Linear light of BT.709 in the primaries of Display P3."""


def stored(rgb: np.ndarray, parts: tuple[float, float], bits: int = 8, full: bool = False) -> list[list[int]]:
    """Y, Cb and Cr of colours whose levels go from 0 to 1."""
    red, blue = parts
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    chroma = [(rgb[:, 2] - luma) / (2 - 2 * blue), (rgb[:, 0] - luma) / (2 - 2 * red)]
    unit = 2 ** (bits - 8)
    scale, offset, swing = (2**bits - 1, 0, 2**bits - 1) if full else (219 * unit, 16 * unit, 224 * unit)
    planes = [luma * scale + offset, *(part * swing + 128 * unit for part in chroma)]
    return np.stack(planes, axis=1).round().astype(int).tolist()


def largest_error(path: Path) -> int:
    return int(np.abs(read_frames(path)[:, 8, 8].numpy().astype(int) - COLOURS).max())


@pytest.mark.parametrize(("height", "parts"), [(718, BT601), (720, BT709)])
@pytest.mark.parametrize("full", [False, True])
def test_an_untagged_video_has_the_matrix_of_its_height(
    tmp_path: Path, height: int, parts: tuple[float, float], full: bool
) -> None:
    path = tmp_path / "clip.mkv"
    tags = {"color_range": 2} if full else {}
    write_planes(path, stored(COLOURS / 255, parts, full=full), "yuv420p", height=height, **tags)
    assert largest_error(path) <= 2


@pytest.mark.parametrize(("tag", "parts"), [(1, BT709), (5, BT601), (6, BT601), (9, BT2020)])
@pytest.mark.parametrize("full", [False, True])
def test_a_tagged_video_has_the_matrix_and_the_range_of_its_tags(
    tmp_path: Path, tag: int, parts: tuple[float, float], full: bool
) -> None:
    path = tmp_path / "clip.mkv"
    tags = {"colorspace": tag, "color_range": 1 + full}
    write_planes(path, stored(COLOURS / 255, parts, full=full), "yuv444p", **tags)
    assert largest_error(path) <= 2


def to_pq(nits: np.ndarray) -> np.ndarray:
    power = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def to_hlg(nits: np.ndarray) -> np.ndarray:
    scene = (nits / 1000) ** (1 / 1.2)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log((12 * scene - 0.28466892).clip(0.1)) + 0.55991073
    )


@pytest.mark.parametrize(("transfer", "encode"), [(16, to_pq), (18, to_hlg)])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("primaries", [9, 2])
def test_high_dynamic_range_keeps_colours_below_white(
    tmp_path: Path, transfer: int, encode: Callable[[np.ndarray], np.ndarray], bits: int, primaries: int
) -> None:
    nits = 203 * (COLOURS / 255) ** 2.4 @ TO_BT2020.T
    planes = stored(encode(nits), BT2020, bits)
    path, pixels = tmp_path / "clip.mkv", "yuv420p" if bits == 8 else "yuv420p10le"
    write_planes(path, planes, pixels, colorspace=9, color_primaries=primaries, color_trc=transfer)
    # Eight bits have few levels for what is dark.
    assert largest_error(path) <= (4 if bits == 10 else 24)


@pytest.mark.parametrize(("transfer", "encode"), [(16, to_pq), (18, to_hlg)])
def test_highlights_stay_distinct(tmp_path: Path, transfer: int, encode: Callable[[np.ndarray], np.ndarray]) -> None:
    nits = np.repeat(np.array([[120.0], [203], [300], [450], [700], [1000]]), 3, axis=1)
    path = tmp_path / "clip.mkv"
    planes = stored(encode(nits), BT2020, 10)
    write_planes(path, planes, "yuv420p10le", colorspace=9, color_primaries=9, color_trc=transfer)
    levels = read_frames(path)[:, 8, 8, 1].int().tolist()
    assert levels[0] == pytest.approx(255 * (120 / 203) ** (1 / 2.4), abs=2)
    assert np.diff(levels).min() >= 1 and levels[-1] >= 254


@pytest.mark.parametrize(("primaries", "parts", "matrix"), [(9, BT2020, TO_BT2020), (12, BT709, TO_P3)])
def test_wide_primaries_become_those_of_bt709(
    tmp_path: Path, primaries: int, parts: tuple[float, float], matrix: np.ndarray
) -> None:
    levels = ((COLOURS / 255) ** 2.4 @ matrix.T) ** (1 / 2.4)
    path = tmp_path / "clip.mkv"
    tags = {"colorspace": 9 if primaries == 9 else 1, "color_primaries": primaries, "color_trc": 1}
    write_planes(path, stored(levels, parts, 10), "yuv420p10le", **tags)
    assert largest_error(path) <= 3


@pytest.mark.parametrize("tags", [{"colorspace": 8}, {"color_primaries": 10}, {"color_trc": 8}])
def test_other_colours_are_refused_by_name(tmp_path: Path, tags: dict[str, int]) -> None:
    path = tmp_path / "clip.mkv"
    write_planes(path, [[100, 128, 128]], "yuv420p", **tags)
    with named_error(path, "colours", "BT.709"):
        read_frames(path)


@pytest.mark.parametrize(("codec", "pixels", "name"), [("png", "rgba", "clip.mov"), ("ffv1", "yuva420p", "clip.mkv")])
def test_see_through_pictures_are_laid_over_white(tmp_path: Path, codec: str, pixels: str, name: str) -> None:
    opacities = [0, 51, 255]
    write_see_through(tmp_path / name, codec, pixels, [(255, 0, 0, opacity) for opacity in opacities])
    wanted = [[255, 255 - opacity, 255 - opacity] for opacity in opacities]
    assert np.abs(read_frames(tmp_path / name)[:, 8, 8].numpy().astype(int) - wanted).max() <= 3


def test_a_see_through_webm_is_refused_by_name(tmp_path: Path) -> None:
    write_see_through(tmp_path / "clip.webm", "libvpx-vp9", "yuva420p", [(255, 0, 0, 0)])
    with named_error(tmp_path / "clip.webm", "see-through", "over a background"):
        read_frames(tmp_path / "clip.webm")


def write_see_through(path: Path, codec: str, pixels: str, colours: list[tuple[int, ...]]) -> None:
    """A clip of flat pictures in red, green, blue and opacity."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height = stream.width = 16
        stream.pix_fmt = pixels
        for index, colour in enumerate(colours):
            picture = np.full((16, 16, 4), colour, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pixels)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_an_interlaced_video_is_refused_by_name(tmp_path: Path) -> None:
    interlaced = 0x20000000 | 0x40000  # FFmpeg's flags ilme and ildct
    with av.open(str(tmp_path / "clip.mpg"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height = stream.width = 32
        stream.codec_context.flags = interlaced
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with named_error(tmp_path / "clip.mpg", "interlaced", "bwdif"):
        read_frames(tmp_path / "clip.mpg")


def test_dolby_visions_own_colours_are_refused_by_name() -> None:
    untagged = {"colorspace": 2, "color_primaries": 2, "color_trc": 2}
    frame: Any = SimpleNamespace(**untagged, side_data={"DOVI_METADATA": b""}, interlaced_frame=False)
    with pytest.raises(ValueError, match=r"clip\.mp4: has Dolby Vision's own colours"):
        colour._to_bt709_bytes(frame, 16, 16, "clip.mp4")


def test_the_default_picture_track_is_taken(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        streams = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream, is_default in zip(streams, (False, True), strict=True):
            stream.height = stream.width = 16
            stream.pix_fmt = "yuv420p"
            stream.disposition = av.stream.Disposition.default if is_default else av.stream.Disposition(0)
        for stream, level in zip(streams, (50, 200), strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 0, Fraction(1, 25)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    assert read_frames(tmp_path / "clip.mkv")[0, 8, 8].tolist() == [200, 200, 200]
