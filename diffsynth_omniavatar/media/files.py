"""Files that FFmpeg reads: opened by their content, whatever they are called, and which of their tracks are taken.

Bad files raise `ValueError` with the path and what is wrong with them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import av
from av.container import InputContainer

MAX_PIXELS = 2**26
"""Most pixels of a video's picture, 8192x8192; a damaged header can claim any number."""

_ANY_TITLE: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Titles in other encodings than UTF-8 are no reason to refuse a file; PyAV 19 takes them as they are."""

_Frame = TypeVar("_Frame", av.VideoFrame, av.AudioFrame)


class MediaError(ValueError):
    """A fault of a media file; the message begins with its path."""


def libav_name(path: str | Path) -> str:
    """The name under which libav opens a file: absolute, because it takes `12:30.mp4` for the protocol `12`."""
    return os.path.abspath(path)


@contextmanager
def named_faults(path: str | Path) -> Iterator[None]:
    """What a reader raises about the file's content becomes a MediaError with the path."""
    try:
        yield
    except MediaError:
        raise
    except av.FFmpegError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise MediaError(f"{path}: cannot be read: it asks for more memory than there is") from error
    # PyAV raises LookupError where a stream turns up in the middle of a file.
    except (OSError, ValueError, ArithmeticError, LookupError, RuntimeError, struct.error) as error:
        raise MediaError(f"{path}: cannot be read: {error}") from error


@contextmanager
def open_media(path: str | Path) -> Iterator[InputContainer]:
    """The opened file. Faults found here, also those met in the block inside, become ValueErrors with the path."""
    if not os.path.isfile(path):
        raise MediaError(
            f"{path}: cannot be read: {'is not a file' if os.path.exists(path) else 'there is no such file'}"
        )
    # A playlist may name other places; those on the network are none of a file's business.
    with named_faults(path):
        try:
            container = av.open(libav_name(path), options={"protocol_whitelist": "file"}, **_ANY_TITLE)
        except av.InvalidDataError as error:
            raise MediaError(f"{path}: cannot be read: it is damaged, or no sound or video for FFmpeg") from error
        with container:
            yield container


def picture_stream(container: InputContainer) -> av.VideoStream | None:
    """The default video stream, or else the first, but never the cover picture of a sound file."""
    kinds = av.stream.Disposition
    streams = [stream for stream in container.streams.video if not stream.disposition & kinds.attached_pic]
    return next((stream for stream in streams if stream.disposition & kinds.default), streams[0] if streams else None)


def video_stream(container: InputContainer, path: str | Path) -> av.VideoStream:
    """The video stream to decode; ValueError if there is none that can be."""
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise MediaError(f"{path}: is an image, wanted a video")
    stream = picture_stream(container)
    if stream is None:
        raise MediaError(f"{path}: has no video stream")
    context = stream.codec_context
    if context is None:
        raise MediaError(f"{path}: FFmpeg has no decoder for its video; encode it again, as H.264")
    if context.width * context.height > MAX_PIXELS:
        raise MediaError(
            f"{path}: pictures of {context.height}x{context.width} are too large, or its header is damaged; "
            f"at most {MAX_PIXELS} pixels can be read: scale it down"
        )
    if stream.metadata.get("alpha_mode") == "1":
        raise MediaError(
            f"{path}: is see-through, and FFmpeg's decoder leaves that out; encode it again over a background"
        )
    # Decoders hide damage, by grey patches or by the picture before, unless they are told to explode.
    context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
    return stream


def sound_stream(container: InputContainer, path: str | Path) -> av.AudioStream:
    """The sound track to decode: the default one, or else the first that has a decoder; ValueError without any."""
    tracks = container.streams.audio
    if not tracks:
        raise MediaError(f"{path}: has no sound track")
    usable = [track for track in tracks if track.codec_context is not None]
    if not usable:
        raise MediaError(f"{path}: FFmpeg has no decoder for its sound; encode the sound again, as AAC or WAV")
    taken = next((track for track in usable if track.disposition & av.stream.Disposition.default), usable[0])
    if taken.codec_context.name == "flac":
        taken.codec_context.options = {"err_detect": "crccheck+explode"}
    return taken


def decoded(frames: Iterator[_Frame], path: str | Path) -> Generator[_Frame, None, None]:
    """The frames that a container decodes; damage becomes a ValueError with the path and the time."""
    place, remedy = "at its beginning", "encode it again, or cut that part out"
    try:
        for frame in frames:
            if frame.is_corrupt:
                raise MediaError(f"{path}: is damaged {place}; {remedy}")
            if frame.time is not None:
                place = f"after {frame.time:.3f} s"
            yield frame
    except av.FFmpegError as error:
        raise MediaError(f"{path}: is damaged {place} ({error.strerror}); {remedy}") from error
