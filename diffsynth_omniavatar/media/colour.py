"""Decoded pictures of a video as a screen shows them: RGB of BT.709, square pixels, upright, over white.

High dynamic range (the transfer functions PQ and HLG of ITU-R BT.2100) is brought there with the reference white of
ITU-R BT.2408, 203 cd/m2: what is darker keeps its colour, highlights up to 1000 cd/m2 are compressed.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from .files import MAX_PIXELS, MediaError

HD_HEIGHT = 720
"""A video that does not name its matrix has BT.709's from this height on, as players take it, and else BT.601's."""

REFERENCE_WHITE = 203.0
"""Brightness of white paper, cd/m2; level 255 after conversion."""

_PEAK = 1000.0
"""Brightest highlight that stays distinct, cd/m2; nominal peak of HLG."""

_KNEE = 0.8
"""Highlights above this fraction of the reference white are compressed."""

_UNSPECIFIED = 2
_LIKE_BT709_LIGHT = {1, _UNSPECIFIED, 4, 6, 7, 11, 13, 14, 15}
"""Transfer functions (ITU-T H.273) that are shown as they are, as players do."""

_PQ, _HLG = 16, 18
_MATRICES = {0, 1, _UNSPECIFIED, 4, 5, 6, 7, 9}
"""Matrices (H.273) that libswscale undoes."""

_LIKE_BT709 = {1, _UNSPECIFIED, 5, 6, 7}
"""Primaries (H.273) that are shown as they are, as players do."""

_CHROMATICITIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""x, y of red, green and blue: BT.709, BT.2020, Display P3. All three have the white D65."""

_GAMMA = 2.4
"""Of a screen for BT.709 (ITU-R BT.1886): light is level ** 2.4."""

_STEPS = 2**14 - 1
"""Steps of the table that gives light its level, by the root of the light: all are finer than a tenth of a level."""


def upright_rgb(frame: av.VideoFrame, pixel_aspect: Fraction | None, path: str | Path) -> np.ndarray:
    """RGB bytes [height, width, 3] of a decoded frame with square pixels, turned as the file says.

    `pixel_aspect` is the width of a pixel by its height, None or 0 if it is unknown. Raises ValueError, naming the
    path, for colours, pixels or orientations that cannot be converted, and for interlaced pictures.
    """
    if frame.interlaced_frame:
        raise MediaError(
            f"{path}: is interlaced, each picture shows two instants; encode it again with one instant a picture "
            "(FFmpeg's filter bwdif)"
        )
    height, width = _square_size(frame.height, frame.width, pixel_aspect, path)
    orient = _orientation(frame, path)
    opacity = _opacity(frame, height, width)
    rgb = _to_bt709_bytes(frame, height, width, path)
    if opacity is not None:
        rgb = (255 - opacity * (1 - rgb / np.float32(255))).round().astype(np.uint8)
    return np.ascontiguousarray(orient(rgb))


def _opacity(frame: av.VideoFrame, height: int, width: int) -> np.ndarray | None:
    """float32 [height, width, 1], 0 to 255; None for a frame that is opaque by its format."""
    if not any(component.is_alpha for component in frame.format.components):
        return None
    return frame.to_ndarray(format="rgba", width=width, height=height, threads=1)[..., 3:].astype(np.float32)


def _square_size(height: int, width: int, aspect: Fraction | None, path: str | Path) -> tuple[int, int]:
    """The size with square pixels; one side grows, so that no detail is lost."""
    if not aspect or aspect == 1:
        return height, width
    if not Fraction(1, 10) <= aspect <= 10:
        raise MediaError(
            f"{path}: says that its pixels are {float(aspect):g} times as wide as high, which is damage; "
            "encode it again"
        )
    square = (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)
    if square[0] * square[1] > MAX_PIXELS:
        raise MediaError(f"{path}: pictures of {square[0]}x{square[1]} are too large: scale the video down")
    return square


def _orientation(frame: av.VideoFrame, path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """What the frame's display matrix asks for: x' = a x + c y, y' = b x + d y, with y downward."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return lambda picture: picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if b == c == 0 and a and d:
        return lambda picture: picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    if a == d == 0 and b and c:
        return lambda picture: picture.swapaxes(0, 1)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    raise MediaError(
        f"{path}: is to be shown askew; only turns by 90 degrees and mirroring can be done: encode it upright"
    )


def _to_bt709_bytes(frame: av.VideoFrame, height: int, width: int, path: str | Path) -> np.ndarray:
    # On one thread: PyAV keeps a frame whose side data were read in a cycle, and with it the threads that converted it;
    # a loader's worker that is forked meanwhile would wait for them for ever.
    matrix, primaries, transfer = int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc)
    if (matrix, transfer) == (_UNSPECIFIED, _UNSPECIFIED) and "DOVI_METADATA" in frame.side_data:
        raise MediaError(
            f"{path}: has Dolby Vision's own colours, which cannot be converted; encode it again in BT.709"
        )
    high_range = transfer in (_PQ, _HLG)
    if high_range and primaries == _UNSPECIFIED:
        primaries = 9
    known = transfer in _LIKE_BT709_LIGHT or high_range
    if matrix not in _MATRICES or not known or not (primaries in _LIKE_BT709 or primaries in _CHROMATICITIES):
        raise MediaError(
            f"{path}: has colours that cannot be converted (matrix {matrix}, primaries {primaries}, "
            f"transfer {transfer} of ITU-T H.273); encode it again in BT.709"
        )
    if matrix == _UNSPECIFIED and frame.format.components and not frame.format.is_rgb:
        frame.colorspace = 9 if high_range else 1 if frame.height >= HD_HEIGHT else 5
    if not high_range and primaries in _LIKE_BT709:
        return frame.to_ndarray(format="rgb24", width=width, height=height, threads=1)
    light = _light_table(transfer)[frame.to_ndarray(format="rgb48le", width=width, height=height, threads=1)]
    light = light @ _primaries_to_bt709(primaries).T
    if high_range:
        light = _compress_highlights(light)
    return _level_table()[(np.sqrt(light.clip(0, 1)) * _STEPS + 0.5).astype(np.uint16)]


@cache
def _light_table(transfer: int) -> np.ndarray:
    """The light of each 16-bit level on a screen, by the reference white."""
    level = np.arange(65536) / 65535
    if transfer == _PQ:
        # SMPTE ST 2084.
        m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
        root = level ** (1 / m2)
        light = 10000 / REFERENCE_WHITE * ((root - c1).clip(0) / (c2 - c3 * root)) ** (1 / m1)
    elif transfer == _HLG:
        # ARIB STD-B67, and the gamma of a screen with this peak. It is taken of each colour for itself, as FFmpeg's
        # zscale does; BT.2100 takes it of the luminance, which makes strong colours duller.
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(level <= 0.5, level**2 / 3, (np.exp((level - c) / a) + b) / 12)
        light = _PEAK / REFERENCE_WHITE * scene**1.2
    else:
        light = level**_GAMMA
    return light.astype(np.float32)


@cache
def _level_table() -> np.ndarray:
    """Bytes of the light whose root goes up from 0 to 1 in _STEPS steps."""
    root = np.arange(_STEPS + 1) / _STEPS
    return (255 * root ** (2 / _GAMMA)).round().astype(np.uint8)


def _compress_highlights(light: np.ndarray) -> np.ndarray:
    """Identity up to the knee, then Reinhard's extended curve, by the brightest of the three so that hues stay."""
    span = 1 - _KNEE
    brightest = light.max(axis=-1, keepdims=True)
    above = (brightest - _KNEE).clip(0) / span
    peak = (_PEAK / REFERENCE_WHITE - _KNEE) / span
    compressed = _KNEE + span * above * (1 + above / peak**2) / (1 + above)
    return np.where(brightest > _KNEE, light * (compressed / brightest.clip(_KNEE)), light)


@cache
def _primaries_to_bt709(primaries: int) -> np.ndarray:
    """Matrix from linear RGB of these primaries to linear RGB of BT.709."""
    if primaries in _LIKE_BT709:
        return np.eye(3, dtype=np.float32)
    return (np.linalg.inv(_to_xyz(1)) @ _to_xyz(primaries)).astype(np.float32)


def _to_xyz(primaries: int) -> np.ndarray:
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in _CHROMATICITIES[primaries]]).T
    white = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)
