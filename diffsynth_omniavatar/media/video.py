"""Video in: frames at 25 per second by their timestamps.

A file's clock starts at the first picture of its video stream, or at its first sample if it has only sound. Frame i is
what is on screen i/25 s later and `sound.load_sound` gives the samples from the same instant on, so that both stay
together whatever the frame rate, and whichever of the two starts first.

Bad files raise `ValueError` with the path and what is wrong with them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch

from .colour import upright_rgb
from .files import MediaError, decoded, named_faults, open_media, video_stream
from .images import Size, scale_and_crop
from .timeline import FRAME_RATE

LONGEST_PICTURE = 10
"""Seconds that one picture may stay on screen; a damaged timestamp would ask for hours of the same frame."""

_TIMESTAMP_ERROR = Fraction(1, 1000)
"""Matroska and FLV round timestamps to whole milliseconds: a frame due by less than this is on screen."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What `probe_video` finds in a file."""

    height: int
    """Pixels, after the file's rotation."""

    width: int
    """Pixels, after the file's rotation."""

    frame_rate: float
    """Mean frames per second of the file itself."""

    duration: float
    """Seconds from the first picture to the end of the last."""

    frames: int
    """Number of frames at 25 per second: what `read_frames` gives."""

    has_sound: bool
    """Whether there is a sound track."""


class Picture(NamedTuple):
    """A decoded picture."""

    time: Fraction
    """Seconds on the file's own clock."""

    frame: av.VideoFrame
    pixel_aspect: Fraction | None
    """Width of a pixel by its height."""

    def rgb(self, path: str | Path) -> np.ndarray:
        """RGB bytes [height, width, 3], upright, with square pixels."""
        return upright_rgb(self.frame, self.pixel_aspect, path)


def first_picture(path: str | Path) -> Picture:
    """The first picture of a video, at whose time the file's clock starts."""
    pictures = decode_pictures(path)
    first = next(pictures, None)
    pictures.close()
    if first is None:
        raise ValueError(f"{path}: has no video frames")
    return first


def picture_end(path: str | Path) -> Fraction:
    """Time at which the last picture of a video ends, from all its packets.

    The durations that headers state are absent from some containers and include the sound in others. A last picture
    without a duration of its own is taken to last as long as the others on average.
    """
    with open_media(path) as container:
        stream = video_stream(container, path)
        packets = (packet for packet in container.demux(stream) if not packet.is_discard)
        times = sorted((packet.pts, packet.duration or 0) for packet in packets if packet.pts is not None)
        if not times or stream.time_base is None:
            raise MediaError(f"{path}: has no timestamps; encode the video again, with mp4 as its format")
        (first, _), (last, duration) = times[0], times[-1]
        mean = Fraction(last - first, max(len(times) - 1, 1))
        starts = [Fraction(time) for time, _ in times]
        starts.append(Fraction(last) + (duration or mean))
        for start, end in pairwise(starts):
            if (end - start) * stream.time_base > LONGEST_PICTURE:
                raise MediaError(
                    f"{path}: a picture stays from {float(start * stream.time_base):.3f} to "
                    f"{float(end * stream.time_base):.3f} s, more than {LONGEST_PICTURE} s, so its timestamps are "
                    "taken to be damaged; encode it again at a constant frame rate"
                )
        return starts[-1] * stream.time_base


def probe_video(path: str | Path) -> VideoInfo:
    """Look at a video file. All its packets are read, none but the first picture decoded.

    Raises ValueError, naming the path, if the file cannot be read, is not a video, or has no picture.
    """
    return _probe(path)[0]


def _probe(path: str | Path) -> tuple[VideoInfo, Fraction]:
    """What `probe_video` gives, and the time of the first picture on the file's own clock."""
    first = first_picture(path)
    duration = picture_end(path) - first.time
    with named_faults(path):
        height, width = first.rgb(path).shape[:2]
    with open_media(path) as container:
        info = VideoInfo(
            height=height,
            width=width,
            frame_rate=float(video_stream(container, path).average_rate or 0),
            duration=float(duration),
            frames=max(1, math.ceil((duration - _TIMESTAMP_ERROR) * FRAME_RATE)),
            has_sound=bool(container.streams.audio),
        )
    return info, first.time


def decode_pictures(path: str | Path, seek_to: Fraction | None = None) -> Generator[Picture, None, None]:
    """Decoded pictures, from the key frame before `seek_to`, seconds on the file's own clock, on."""
    with open_media(path) as container:
        stream = video_stream(container, path)
        # With several threads FFmpeg hides damage in the last pictures.
        stream.codec_context.thread_count = 1
        if seek_to is not None and stream.time_base is not None:
            container.seek(math.floor(seek_to / stream.time_base), stream=stream)
        last: Fraction | None = None
        for frame in decoded(container.decode(stream), path):
            if frame.pts is None or frame.time_base is None:
                raise ValueError(f"{path}: has no timestamps; encode the video again, with mp4 as its format")
            time = frame.pts * frame.time_base
            if last is not None and time < last:
                raise ValueError(
                    f"{path}: timestamps go backward, from {float(last):.3f} to {float(time):.3f} s; "
                    "encode the video again, with mp4 as its format"
                )
            last = time
            yield Picture(time, frame, stream.sample_aspect_ratio)


def decode_from(path: str | Path, time: Fraction) -> Iterator[Picture]:
    """What `decode_pictures` gives, beginning at or before `time`."""
    pictures = decode_pictures(path, time)
    first = next(pictures, None)
    if first is not None and first.time <= time:
        yield first
        yield from pictures
        return
    # In files without an index the search may end too far on: those are decoded from the beginning.
    pictures.close()
    yield from decode_pictures(path)


def _fit_frame(frame: torch.Tensor, size: Size | None) -> torch.Tensor:
    if size is None or tuple(frame.shape[:2]) == size:
        return frame
    fitted = scale_and_crop(frame.permute(2, 0, 1)[None].float(), size, black=0.0)
    return fitted[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


def iter_frames(
    path: str | Path, start: int = 0, count: int | None = None, size: Size | None = None
) -> Iterator[torch.Tensor]:
    """The frames of `read_frames` one by one, as uint8 tensors [height, width, 3], in bounded memory.

    A tensor may come twice in a row, when one picture is on screen for longer: do not write into it. The file and the
    range are checked at the call; a fault further on in the file is raised when it is met.
    """
    return _sample_frames(path, *_wanted_frames(path, start, count), size)


def _wanted_frames(path: str | Path, start: int, count: int | None) -> tuple[Fraction, range]:
    """Time of the first picture, and the frames asked for; ValueError if the file has not those."""
    info, start_time = _probe(path)
    stop = info.frames if count is None else start + count
    if not 0 <= start < stop <= info.frames:
        raise ValueError(
            f"{path}: has {info.frames} frames at {FRAME_RATE} per second; "
            f"start={start} and count={count} ask for others"
        )
    return start_time, range(start, stop)


def _sample_frames(path: str | Path, start_time: Fraction, wanted: range, size: Size | None) -> Iterator[torch.Tensor]:
    if wanted.start == 0:
        pictures: Iterator[Picture] = decode_pictures(path)
    else:
        pictures = decode_from(path, start_time + Fraction(wanted.start, FRAME_RATE))
    shown, following = next(pictures), next(pictures, None)
    shape, image = None, None
    for index in wanted:
        due = start_time + Fraction(index, FRAME_RATE) + _TIMESTAMP_ERROR
        while following is not None and following.time < due:
            shown, following, image = following, next(pictures, None), None
        if image is None:
            with named_faults(path):
                image = _fit_frame(torch.from_numpy(shown.rgb(path)), size)
            shape = shape or image.shape
            if image.shape != shape:
                raise ValueError(
                    f"{path}: the picture changes from {shape[0]}x{shape[1]} to {image.shape[0]}x{image.shape[1]} "
                    f"at frame {index}; ask for a fixed size"
                )
        yield image


def read_frames(path: str | Path, start: int = 0, count: int | None = None, size: Size | None = None) -> torch.Tensor:
    """Frames of a video at 25 per second, whatever its own frame rate.

    Args:
        path: video file.
        start: first frame wanted; frame i is on screen i/25 s after the first picture, by the file's timestamps.
        count: number of frames; None takes all up to the end.
        size: height and width wanted, reached by `fit_image`; None keeps the file's own.

    Returns:
        uint8 tensor [count, height, width, 3], RGB. Use `iter_frames` for what does not fit into memory.

    Raises:
        ValueError: the path cannot be read, is not a video, has no pictures, or not the frames asked for.
    """
    start_time, wanted = _wanted_frames(path, start, count)
    sampled = _sample_frames(path, start_time, wanted, size)
    first = next(sampled)
    frames = first.new_empty((len(wanted), *first.shape))
    frames[0] = first
    for index, frame in enumerate(sampled, start=1):
        frames[index] = frame
    return frames


def filmstrip(path: str | Path, count: int = 8) -> np.ndarray:
    """Up to `count` evenly spaced frames of a video side by side: uint8 [H, count * W, 3], RGB.

    Raises:
        ValueError: as `read_frames`.
    """
    frames = probe_video(path).frames
    places = {round(place * (frames - 1) / max(count - 1, 1)) for place in range(count)}
    wanted = [frame.numpy() for place, frame in enumerate(iter_frames(path)) if place in places]
    return np.concatenate(wanted, axis=1)
