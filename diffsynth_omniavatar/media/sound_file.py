"""Sound files that libsndfile reads, and what it passes over: damage, cut ends, files joined to one.

It skips damaged parts of an MP3 file, so that all that follows would come too early; of joined files it reads the
first, and of an MP3 file with a variable bit rate, but no header that counts its frames, a part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from .files import MediaError

_REMEDY = "encode it again"

_STREAMED = 0x7FFF0000
"""Sizes from here on stand in WAV files whose writer did not know where they would end."""

_MORE_FRAMES = 8
"""MP3 frames that may be there beyond what is read: the encoder's delay and padding, and a header of their own."""

_KILOBITS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of MPEG 1 and 2, layer III, by the index in a frame's header less one."""

_RATES = {1: (44100, 48000, 32000), 2: (22050, 24000, 16000), 2.5: (11025, 12000, 8000)}


def sound_blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """Samples [channels, n] in turn: memory is for what is there, not for what the header claims."""
    while len(block := sound.read(2**20 // sound.channels + 1, dtype="float32", always_2d=True)):
        yield block.T


def is_all(sound: soundfile.SoundFile, read: int, path: str | Path) -> bool:
    """Whether what was read of a file is all of it; False for an MP3 file that has more, which FFmpeg can read.

    Args:
        sound: the file.
        read: samples of each channel that were read.
        path: the file's.

    Raises:
        MediaError: it is damaged or cut off, or joined of several in a way that nothing reads.
    """
    if sound.format == "MP3":
        return _is_all_of_mp3(Path(path).read_bytes(), sound.frames, read, path)
    if sound.format == "OGG":
        if Path(path).read_bytes().count(b"OggS\0\2") > 1:
            raise MediaError(f"{path}: is joined of several files, of which only the first can be read; {_REMEDY}")
    elif found := re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE):
        said, there = int(found[1]), int(found[2])
        if there < said < _STREAMED:
            raise MediaError(f"{path}: is cut off: it has {there} of {said} bytes of sound; get the whole file")
    return True


def _is_all_of_mp3(data: bytes, promised: int, read: int, path: str | Path) -> bool:
    place = _next_frame(data, _behind_tags(data))
    if place is None:  # another layer, or a free bit rate
        return True
    kind = _kind(data, place)
    rate, in_frame = kind[1], 1152 if kind[0] == 1 else 576
    has_header = any(name in data[place : place + 200] for name in (b"Xing", b"Info", b"VBRI"))
    frames = 0
    while length := _frame_length(data, place, kind):
        place += length
        frames += 1
    if _next_frame(data, place) is not None:
        raise MediaError(
            f"{path}: is damaged after {frames * in_frame / rate:.3f} s, or joined of several files; {_REMEDY}"
        )
    if has_header and promised > read:
        raise MediaError(
            f"{path}: is damaged or cut off after {read / rate:.3f} s, its header tells of {promised / rate:.3f} s; "
            f"{_REMEDY}"
        )
    return frames * in_frame <= read + _MORE_FRAMES * in_frame


def _behind_tags(data: bytes) -> int:
    """Where the sound may begin: behind the ID3v2 tags."""
    place = 0
    while data[place : place + 3] == b"ID3" and len(data) >= place + 10:
        size = 0
        for byte in data[place + 6 : place + 10]:
            size = size << 7 | byte & 0x7F
        place += 10 + size
    return place


def _kind(data: bytes, place: int) -> tuple[float, int]:
    """MPEG version (1, 2 or 2.5) and samples per second of the frame at a place; (0, 0) if no frame of MP3 is there."""
    if len(data) < place + 4 or data[place] != 0xFF or data[place + 1] & 0xE6 != 0xE2:
        return 0, 0
    version = {0: 2.5, 2: 2, 3: 1}.get(data[place + 1] >> 3 & 3)
    rate = data[place + 2] >> 2 & 3
    return (0, 0) if version is None or rate == 3 else (version, _RATES[version][rate])


def _frame_length(data: bytes, place: int, kind: tuple[float, int]) -> int:
    """Bytes of the frame of this kind at a place; 0 if there is none."""
    if _kind(data, place) != kind or kind == (0, 0):
        return 0
    index = data[place + 2] >> 4
    if index in (0, 15):
        return 0
    version, rate = kind
    bits = 1000 * _KILOBITS[1 if version == 1 else 2][index - 1]
    return (144 if version == 1 else 72) * bits // rate + (data[place + 2] >> 1 & 1)


def _next_frame(data: bytes, place: int) -> int | None:
    """Where the next three frames of one kind begin: what looks like one alone may be part of a tag."""
    while (place := data.find(b"\xff", place)) >= 0:
        kind, following = _kind(data, place), place
        for _ in range(3):
            length = _frame_length(data, following, kind)
            if not length:
                break
            following += length
        else:
            return place
        place += 1
    return None
