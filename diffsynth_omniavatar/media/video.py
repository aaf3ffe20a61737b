"""Media in and out: images, video frames at 25 per second, sound, and mp4 files with picture and sound.

A file's clock starts at the first picture of its video stream, or at its first sample if it has only sound. Frame i is
what is on screen i/25 s later and `load_sound` gives the samples from the same instant on, so that both stay together
whatever the frame rate, and whichever of the two starts first.

Bad files raise `ValueError` with the path and what is wrong with them.
"""

import logging
import math
import os
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np
import soundfile
import soxr
import torch
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from .timeline import FRAME_RATE, SAMPLE_RATE

logger = logging.getLogger("diffsynth_omniavatar")

Size = tuple[int, int]
"""Height and width in pixels."""

SILENCE = 1e-4
"""A sound whose samples all lie below this part of full scale counts as silent."""

MAX_CHANNELS = 8
"""Most channels of a sound given as an array; the longer side of an array is time."""

_TIMESTAMP_ERROR = Fraction(1, 1000)
"""Matroska and FLV round timestamps to whole milliseconds: a frame due by less than this is on screen."""

_SOUND_GAP = 0.05
"""Holes in a sound track's timestamps above this many seconds become silence; smaller ones are rounding."""

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


# Images


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    The EXIF rotation is applied, transparent parts are laid over white, 16-bit grey is scaled to 8 bits, and CMYK is
    converted without its colour profile. Raises ValueError, naming the file, if it cannot be read, is of a kind without
    a defined range (32-bit floats), or has a side of less than two pixels.
    """
    name = "the given image" if isinstance(source, Image.Image) else str(source)
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        upright = ImageOps.exif_transpose(image)
        upright.load()
    # Pillow's readers raise SyntaxError for broken PNG chunks.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: cannot be read as an image: {error}") from error
    if min(upright.size) < 2:
        raise ValueError(f"{name}: is {upright.height}x{upright.width} pixels; each side needs at least 2")
    return _to_rgb(upright, name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError(f"{name}: holds 32-bit floats of unknown range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"{name}: has grey levels {grey.min()} to {grey.max()}; 16 bits give 0 to 65535")
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def to_unit_range(rgb: torch.Tensor) -> torch.Tensor:
    """RGB bytes 0..255 of any shape -> float32 in [-1, 1]."""
    return rgb.float().div(255).mul(2).sub(1)


def to_video(frames: torch.Tensor) -> torch.Tensor:
    """Frames uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [-1, 1], as the VAE takes them."""
    return to_unit_range(frames).permute(0, 4, 1, 2, 3)


def to_bytes(rgb: torch.Tensor) -> torch.Tensor:
    """RGB in [-1, 1] of any shape and float type -> uint8 0..255, rounded; values outside are clipped."""
    return rgb.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def image_to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image -> float32 tensor [3, height, width] in [-1, 1]."""
    return to_unit_range(torch.from_numpy(np.array(image.convert("RGB")))).permute(2, 0, 1).contiguous()


def tensor_to_image(rgb: torch.Tensor) -> Image.Image:
    """Tensor [3, height, width] in [-1, 1] -> RGB image."""
    return Image.fromarray(to_bytes(rgb.detach().cpu()).permute(1, 2, 0).contiguous().numpy())


def match_size(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The video size of `sizes` whose height/width is nearest to the image's.

    The first of equals wins, unless a later one's longest side is just as far from the image's, as OmniAvatar chooses.
    """

    def ratio_error(size: Size) -> float:
        return abs(size[0] / size[1] - height / width)

    def side_error(size: Size) -> int:
        return abs(max(size) - max(height, width))

    best = sizes[0]
    for size in sizes[1:]:
        error, least = ratio_error(size), ratio_error(best)
        if error < least or (error == least and side_error(size) == side_error(best)):
            best = size
    return best


def fit_layout(height: int, width: int, size: Size) -> tuple[Size, tuple[int, int, int, int]]:
    """How `fit_image` brings an image to `size`: the scaled size and the padding left, right, top, bottom.

    Negative padding crops. Each scaled side is cut to an integer, so a side may end one line short and be padded.
    """
    scale = max(size[0] / height, size[1] / width)
    scaled = int(height * scale), int(width * scale)
    rows, columns = size[0] - scaled[0], size[1] - scaled[1]
    left, top = columns // 2, rows // 2
    return scaled, (left, columns - left, top, rows - top)


def fit_image(rgb: torch.Tensor, size: Size) -> torch.Tensor:
    """Scale an image to cover `size` and crop the middle, as OmniAvatar does.

    Args:
        rgb: float tensor [..., 3, height, width] in [-1, 1].
        size: height and width wanted.

    Returns:
        Tensor [..., 3, *size]; bilinear with antialiasing; a missing line is black.
    """
    if not rgb.is_floating_point():
        raise ValueError(f"fit_image got {rgb.dtype}; it takes floats in [-1, 1]: use to_unit_range()")
    fitted = _scale_and_crop(rgb.reshape(-1, *rgb.shape[-3:]), size, black=-1.0)
    return fitted.reshape(*rgb.shape[:-2], *size)


def _scale_and_crop(rgb: torch.Tensor, size: Size, black: float) -> torch.Tensor:
    """`fit_image` for [batch, 3, height, width] in any range."""
    scaled, padding = fit_layout(rgb.shape[-2], rgb.shape[-1], size)
    rgb = torch.nn.functional.interpolate(rgb, scaled, mode="bilinear", antialias=True)
    return torch.nn.functional.pad(rgb, padding, value=black)


# Video in


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


_ANY_TITLE: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Titles in other encodings than UTF-8 are no reason to refuse a file; PyAV 19 takes them as they are."""


@contextmanager
def _open_media(path: str | Path) -> Iterator[InputContainer]:
    """The opened file; libav's errors, also those of the block inside, become ValueErrors with the path."""
    try:
        with av.open(str(path), **_ANY_TITLE) as container:
            yield container
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _picture_stream(container: InputContainer) -> av.VideoStream | None:
    """The first video stream that is not the cover picture of a sound file."""
    streams = container.streams.video
    return next((s for s in streams if not s.disposition & av.stream.Disposition.attached_pic), None)


def _video_stream(container: InputContainer, path: str | Path) -> av.VideoStream:
    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise ValueError(f"{path}: is an image, not a video; use load_image()")
    stream = _picture_stream(container)
    if stream is None:
        raise ValueError(f"{path}: has no video stream")
    return stream


def _first_picture(path: str | Path) -> tuple[Fraction, av.VideoFrame]:
    """The first picture of a video and its time, at which the file's clock starts."""
    # Decoding whole frames in parallel would decode a frame per thread before it gives the first.
    decoded = _decode(path, threads="SLICE")
    first = next(decoded, None)
    decoded.close()
    if first is None:
        raise ValueError(f"{path}: has no video frames")
    return first


def _picture_end(path: str | Path) -> Fraction:
    """Time at which the last picture of a video ends, from all its packets.

    The durations that headers state are absent from some containers and include the sound in others. A last picture
    without a duration of its own is taken to last as long as the others on average.
    """
    with _open_media(path) as container:
        stream = _video_stream(container, path)
        packets = (packet for packet in container.demux(stream) if not packet.is_discard)
        times = [(packet.pts, packet.duration or 0) for packet in packets if packet.pts is not None]
        if not times or stream.time_base is None:
            raise ValueError(f"{path}: has no timestamps; encode the video again, with mp4 as its format")
        (first, _), (last, duration) = min(times), max(times)
        if duration == 0 and len(times) > 1:
            return (last + Fraction(last - first, len(times) - 1)) * stream.time_base
        return (last + duration) * stream.time_base


def probe_video(path: str | Path) -> VideoInfo:
    """Look at a video file. All its packets are read, none but the first picture decoded.

    Raises ValueError, naming the path, if the file cannot be read, is not a video, or has no picture.
    """
    return _probe(path)[0]


def _probe(path: str | Path) -> tuple[VideoInfo, Fraction]:
    """What `probe_video` gives, and the time of the first picture on the file's own clock."""
    start_time, first = _first_picture(path)
    duration = _picture_end(path) - start_time
    height, width = _upright(first, path).shape[:2]
    with _open_media(path) as container:
        info = VideoInfo(
            height=height,
            width=width,
            frame_rate=float(_video_stream(container, path).average_rate or 0),
            duration=float(duration),
            frames=max(1, math.ceil((duration - _TIMESTAMP_ERROR) * FRAME_RATE)),
            has_sound=bool(container.streams.audio),
        )
    return info, start_time


def _decode(
    path: str | Path, seek_to: Fraction | None = None, threads: Literal["AUTO", "SLICE"] = "AUTO"
) -> Generator[tuple[Fraction, av.VideoFrame], None, None]:
    """Decoded frames with their seconds on the file's own clock, from the key frame before `seek_to` on."""
    with _open_media(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = threads
        if seek_to is not None and stream.time_base is not None:
            container.seek(math.floor(seek_to / stream.time_base), stream=stream)
        last: Fraction | None = None
        for frame in container.decode(stream):
            if frame.pts is None or frame.time_base is None:
                raise ValueError(f"{path}: has no timestamps; encode the video again, with mp4 as its format")
            time = frame.pts * frame.time_base
            if last is not None and time < last:
                raise ValueError(
                    f"{path}: timestamps go backward, from {float(last):.3f} to {float(time):.3f} s; "
                    "encode the video again, with mp4 as its format"
                )
            last = time
            yield time, frame


def _decode_from(path: str | Path, time: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """What `_decode` gives, beginning at or before `time`."""
    decoded = _decode(path, time)
    first = next(decoded, None)
    if first is not None and first[0] <= time:
        yield first
        yield from decoded
        return
    # In files without an index the search may end too far on: those are decoded from the beginning.
    decoded.close()
    yield from _decode(path)


def _upright(frame: av.VideoFrame, path: str | Path) -> np.ndarray:
    """RGB bytes [height, width, 3] of a decoded frame, turned as the file says."""
    turns, rest = divmod(frame.rotation, 90)
    if rest:
        raise ValueError(f"{path}: asks for a rotation by {frame.rotation} degrees; only multiples of 90 can be done")
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _fit_frame(frame: torch.Tensor, size: Size | None) -> torch.Tensor:
    if size is None or tuple(frame.shape[:2]) == size:
        return frame
    fitted = _scale_and_crop(frame.permute(2, 0, 1)[None].float(), size, black=0.0)
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
        decoded: Iterator[tuple[Fraction, av.VideoFrame]] = _decode(path)
    else:
        decoded = _decode_from(path, start_time + Fraction(wanted.start, FRAME_RATE))
    shown, following = next(decoded)[1], next(decoded, None)
    shape, image = None, None
    for index in wanted:
        due = start_time + Fraction(index, FRAME_RATE) + _TIMESTAMP_ERROR
        while following is not None and following[0] < due:
            shown, following, image = following[1], next(decoded, None), None
        if image is None:
            image = _fit_frame(torch.from_numpy(_upright(shown, path)), size)
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


# Sound


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples of a sound, full scale being 1."""

    samples: np.ndarray
    """float32 array [channels, n]."""

    rate: int
    """Samples per second."""

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.dtype != np.float32:
            raise ValueError(
                f"Sound takes float32 samples [channels, n], got {self.samples.dtype} {list(self.samples.shape)}: "
                "use load_sound()"
            )
        if self.rate < 1:
            raise ValueError(f"a sound with {self.rate} samples per second; the rate must be positive")

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples.shape[1] / self.rate


def load_sound(
    source: str | Path | np.ndarray | torch.Tensor, rate: int | None = None, *, allow_silent: bool = False
) -> Sound:
    """Read a sound.

    Args:
        source: a sound file (wav, flac, mp3, m4a, ...), a video file, whose sound track is taken from its first picture
            on, or an array [n], [channels, n] or [n, channels]: floats of full scale 1, int16 or int32.
        rate: samples per second of an array; a file has its own.
        allow_silent: take also a sound that is all silence.

    Raises:
        ValueError: the source has no sound, cannot be read, is shorter than one video frame (40 ms), silent, or has
            values that are not finite.
    """
    if isinstance(source, (str, Path)):
        if rate is not None:
            raise ValueError(f"{source}: rate={rate} given for a file, which has its own; leave it out")
        name, sound = str(source), _read_sound(source)
    else:
        if rate is None:
            raise ValueError("an array of samples needs its rate: load_sound(array, rate=...)")
        name, sound = "the given sound", Sound(_array_samples(source), rate)
    _check_sound(sound, name, allow_silent)
    return sound


def _array_samples(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """float32 samples [channels, n] of an array; the shorter side of two is the channels."""
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    if source.dtype in (np.int16, np.int32):
        samples = (source / -float(np.iinfo(source.dtype).min)).astype(np.float32)
    elif np.issubdtype(source.dtype, np.floating):
        samples = source.astype(np.float32)
    else:
        raise ValueError(f"samples of {source.dtype}; give floats of full scale 1, int16 or int32")
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or min(samples.shape) > MAX_CHANNELS:
        raise ValueError(f"samples of shape {list(source.shape)}; give [n], [channels, n] or [n, channels]")
    return samples.T if samples.shape[0] > samples.shape[1] else samples


def _read_sound(path: str | Path) -> Sound:
    if not Path(path).is_file():
        raise ValueError(f"{path}: is not a file")
    try:
        # OmniAvatar reads sound through this library too; it knows wav, flac, ogg and mp3 but no video.
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return _decode_sound(path)
    return Sound(np.ascontiguousarray(samples.T), rate)


def _decode_sound(path: str | Path) -> Sound:
    """The sound track of a file on the file's clock: silence for what is missing, cut if it starts before."""
    with _open_media(path) as container:
        if not container.streams.audio:
            raise ValueError(f"{path}: has no sound track")
        stream = container.streams.audio[0]
        rate, time_base = stream.rate, stream.time_base or Fraction(0)
        start_time = None if _picture_stream(container) is None else _first_picture(path)[0]
        resampler = av.AudioResampler(format="fltp")
        blocks = [np.zeros((stream.channels, 0), np.float32)]
        filled = 0
        for frame in container.decode(stream):
            block = np.concatenate([part.to_ndarray() for part in resampler.resample(frame)], axis=1)
            ahead = 0
            if frame.pts is not None:
                time = frame.pts * time_base
                start_time = time if start_time is None else start_time
                ahead = round((time - start_time) * rate) - filled
            if ahead > _SOUND_GAP * rate or (ahead > 0 and not filled):
                block = np.pad(block, ((0, 0), (ahead, 0)))
            elif ahead < 0 and not filled:
                block = block[:, -ahead:]
            blocks.append(block)
            filled += block.shape[1]
        samples = np.concatenate(blocks, axis=1)
        # An encoder fills up its last block; the header, where there is one, tells where the sound ended.
        if stream.start_time is not None and stream.duration is not None:
            end = round(((stream.start_time + stream.duration) * time_base - (start_time or 0)) * rate)
            if 0 < filled - end < blocks[-1].shape[1]:
                samples = samples[:, :end]
    return Sound(samples, rate)


def _check_sound(sound: Sound, name: str, allow_silent: bool) -> None:
    if sound.samples.size == 0:
        raise ValueError(f"{name}: the sound is empty")
    if not np.isfinite(sound.samples).all():
        raise ValueError(f"{name}: the sound has values that are not finite (NaN or infinity)")
    if sound.duration * FRAME_RATE < 1:
        raise ValueError(f"{name}: the sound lasts {1000 * sound.duration:.1f} ms; one video frame takes 40 ms")
    peak = float(np.abs(sound.samples).max())
    if peak < SILENCE and not allow_silent:
        raise ValueError(
            f"{name}: the sound is silent (peak {peak:.1e} of full scale); pass allow_silent=True if that is meant"
        )


def speech_waveform(sound: Sound) -> torch.Tensor:
    """float32 tensor [n], mono at 16 kHz, which the speech encoder takes.

    Mean of the channels, then soxr "HQ", cut or padded to ceil(n * ratio) samples: the very samples that
    `librosa.load(path, sr=16000)` gives, which OmniAvatar uses.
    """
    mono = sound.samples.mean(axis=0)
    if sound.rate == SAMPLE_RATE:
        return torch.from_numpy(mono)
    resampled = soxr.resample(mono, sound.rate, SAMPLE_RATE, quality="HQ")
    wanted = math.ceil(len(mono) * (SAMPLE_RATE / sound.rate))
    return torch.from_numpy(np.pad(resampled[:wanted], (0, max(0, wanted - len(resampled)))))


def add_silence(sound: Sound, seconds: float) -> Sound:
    """`sound` with `seconds` of silence in front, rounded to whole samples; ValueError if negative."""
    if seconds < 0:
        raise ValueError(f"{seconds} s of silence; give 0 or more")
    return Sound(np.pad(sound.samples, ((0, 0), (round(seconds * sound.rate), 0))), sound.rate)


# Video out


class VideoWriter:
    """Context manager that writes frames and their sound to an mp4, mov or mkv file as the frames come.

    H.264 (yuv420p, BT.709) and AAC, without any resizing, in bounded memory. The file is written beside its final place
    and renamed at the end. If an exception or an interrupt ends the block, what was written so far becomes a playable
    file under the final name, which a log line tells; if nothing was written, nothing is left.

    Args:
        path: file to write; its folder must exist.
        height, width: pixels, even numbers.
        frame_rate: frames per second.
        sound: sound to put beside the picture, cut to its length; more than two channels become one.
        sound_delay: seconds by which the sound starts after the picture.
        crf: quality of x264, 0 (lossless) to 51; 13 to 18 look like the original.

    Raises:
        ValueError: odd size, other file type, no such folder, or (at the end) no frame written.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        frame_rate: float | Fraction = FRAME_RATE,
        sound: Sound | None = None,
        sound_delay: float = 0.0,
        crf: int = 15,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in (".mp4", ".mov", ".mkv"):
            raise ValueError(f"{path}: cannot be written; give a name that ends in .mp4, .mov or .mkv")
        if not self.path.parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist; make it first")
        if height < 2 or width < 2 or height % 2 or width % 2:
            raise ValueError(f"{path}: frames of {height}x{width}; H.264 needs an even height and width")
        self.height, self.width = height, width
        self.frame_rate = Fraction(frame_rate).limit_denominator(1001)
        self.crf = crf
        self.frames_written = 0
        self._sound = None if sound is None else add_silence(_encodable(sound), sound_delay)
        self._samples_written = 0
        self._temporary = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex[:8]}{self.path.suffix}")

    def __enter__(self) -> "VideoWriter":
        self._container = av.open(str(self._temporary), "w")
        self._video = self._container.add_stream(
            "libx264", rate=self.frame_rate, options={"crf": str(self.crf), "preset": "medium"}
        )
        self._video.height, self._video.width, self._video.pix_fmt = self.height, self.width, "yuv420p"
        # Untagged files are shown in one of two matrices, as the player thinks fit.
        context = self._video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        if self._sound is not None:
            channels, rate = len(self._sound.samples), self._sound.rate
            self._audio = self._container.add_stream("aac", rate=rate, layout="mono" if channels == 1 else "stereo")
            # AAC takes at most 6 bits per sample and channel.
            self._audio.bit_rate = min(96_000, 6 * rate) * channels
        return self

    def write(self, frames: torch.Tensor) -> None:
        """Append frames [count, height, width, 3], RGB: uint8, or floats in [-1, 1]; and the sound beside them."""
        if frames.ndim != 4 or tuple(frames.shape[1:]) != (self.height, self.width, 3):
            raise ValueError(
                f"{self.path}: got frames {list(frames.shape)}, wanted [count, {self.height}, {self.width}, 3]"
            )
        if frames.is_floating_point():
            if not torch.isfinite(frames).all():
                raise ValueError(f"{self.path}: frames have values that are not finite (NaN or infinity)")
        elif frames.dtype != torch.uint8:
            raise ValueError(f"{self.path}: got frames of {frames.dtype}; give uint8, or floats in [-1, 1]")
        for frame in frames:
            pixels = to_bytes(frame) if frame.is_floating_point() else frame
            self._write_frame(pixels.detach().cpu().contiguous().numpy())

    def _write_frame(self, pixels: np.ndarray) -> None:
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        picture.pts, picture.time_base = self.frames_written, 1 / self.frame_rate
        self._container.mux(self._video.encode(picture))
        self.frames_written += 1
        self._write_sound()

    def _write_sound(self) -> None:
        """Append the sound up to the end of the last frame."""
        if self._sound is None:
            return
        end = round(self.frames_written / self.frame_rate * self._sound.rate)
        block = self._sound.samples[:, self._samples_written : end]
        if block.shape[1] == 0:
            return
        layout = "mono" if len(block) == 1 else "stereo"
        part = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
        part.sample_rate, part.pts = self._sound.rate, self._samples_written
        part.time_base = Fraction(1, self._sound.rate)
        self._container.mux(self._audio.encode(part))
        self._samples_written += block.shape[1]

    def _finish(self) -> None:
        self._write_sound()
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._audio.encode(None))
        self._container.close()
        os.replace(self._temporary, self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.frames_written:
                self._finish()
            elif error is None:
                raise ValueError(f"{self.path}: no frame was written")
        except (OSError, av.FFmpegError) as second:
            if error is None:
                raise
            logger.error("%s: stopped by %r, and the part written so far is lost: %s", self.path, error, second)
        else:
            if error is not None and self.frames_written:
                seconds = float(self.frames_written / self.frame_rate)
                logger.warning(
                    "%s: stopped by %r; the file has the %d frames (%.2f s) written so far",
                    self.path,
                    error,
                    self.frames_written,
                    seconds,
                )
        finally:
            self._container.close()
            self._temporary.unlink(missing_ok=True)


def _encodable(sound: Sound) -> Sound:
    """`sound` with the channels and the rate that AAC can take."""
    samples, rate = sound.samples, sound.rate
    if len(samples) > 2:
        samples = samples.mean(axis=0, keepdims=True)
    if rate not in _AAC_RATES:
        samples, rate = soxr.resample(samples.T, rate, 48000, quality="HQ").T, 48000
    return Sound(np.ascontiguousarray(samples), rate)
