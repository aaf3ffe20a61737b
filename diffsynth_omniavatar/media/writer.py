"""Video out: mp4, mov and mkv files with sound, written as the frames come."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import soxr
import torch
from av.video.reformatter import ColorRange, Colorspace

from ..system import atomic
from ..system.output_folder import locked
from .files import libav_name
from .images import to_bytes
from .sound import Sound, add_silence
from .timeline import FRAME_RATE

logger = logging.getLogger(__name__)

_FRAGMENTS = {
    "movflags": "hybrid_fragmented+delay_moov+default_base_moof",
    "frag_duration": "100000",
    "flush_packets": "1",
}
_WHILE_GROWING = {".mp4": _FRAGMENTS, ".mov": _FRAGMENTS, ".mkv": {"cluster_time_limit": "100", "flush_packets": "1"}}
"""Settings by which a file can be played while it grows; at its end it is an ordinary one."""
SUFFIXES = tuple(_WHILE_GROWING)

_ENCODER = {
    "preset": "medium",
    # With B-frames, a fragment may end between frames that are shown in another order than they are stored; libav
    # then takes the video to be a frame shorter, and players leave the last one out.
    "bf": "0",
    # Frames that x264 looks ahead are not in the file yet. With none it spends half as much again on the same quality.
    "rc-lookahead": "10",
}

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


class VideoWriter:
    """Context manager that writes frames and their sound to an mp4, mov or mkv file as the frames come.

    H.264 (yuv420p, BT.709) and AAC, without any resizing, in bounded memory. From the start on, `talk.part.mp4` grows
    beside `talk.mp4`, and gets its name at the end. If an exception or an interrupt ends the block, what was
    written so far becomes a playable file under the final name, which a log line tells; if nothing was written, nothing
    is left. If the process is killed outright, `talk.part.mp4` stays and can be played but for at most its last 10
    frames and a quarter of a second (half a second with sound of 8 kHz); the next writer of `talk.mp4` starts it again.

    Args:
        path: file to write; its folder must exist.
        height, width: pixels, even numbers.
        frame_rate: frames per second; with `tick`, their mean.
        sound: sound to put beside the picture, cut to its length; more than two channels become one.
        sound_delay: seconds by which the sound starts after the picture.
        crf: quality of x264, 0 (lossless) to 51; 13 to 18 look like the original.
        tick: for frames at times of their own, the unit of these times in seconds: see `write`. mkv rounds times to
            milliseconds.

    Raises:
        ValueError: odd size, other file type, a place where no file can be written, a file that another process is
            writing, or (at the end) no frame written.
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
        tick: Fraction | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path}: cannot be written; give a name that ends in .mp4, .mov or .mkv")
        if not self.path.parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist; make it first")
        if height < 2 or width < 2 or height % 2 or width % 2:
            raise ValueError(f"{path}: frames of {height}x{width}; H.264 needs an even height and width")
        self.height, self.width = height, width
        self.frame_rate = Fraction(frame_rate).limit_denominator(1001)
        self.tick = 1 / self.frame_rate if tick is None else tick
        self.crf = crf
        self.frames_written = 0
        self._stop = 0
        """Ticks at which the last written frame leaves the screen."""
        self._durations: dict[int, int] = {}
        """Ticks that each frame that is still in the encoder is on screen, by its start."""
        self._sound = None if sound is None else add_silence(_encodable(sound), sound_delay)
        self._samples_written = 0
        self._part = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        self._try_to_write()

    def _try_to_write(self) -> None:
        """A wrong place is told now, not after minutes of computing the first frames."""
        try:
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
            left = self._part.exists()
            with open(self._part, "ab"):
                pass
            if not left:
                self._part.unlink()
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written: {error.strerror}; give another place") from error

    def __enter__(self) -> VideoWriter:
        try:
            self._lock = locked(self._part)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path}: another run is writing it; wait until that has ended, or give another name"
            ) from error
        self._container = av.open(
            libav_name(self._part), "w", container_options=_WHILE_GROWING[self.path.suffix.lower()]
        )
        self._video = self._container.add_stream(
            "libx264", rate=self.frame_rate, options={"crf": str(self.crf), **_ENCODER}
        )
        self._video.height, self._video.width, self._video.pix_fmt = self.height, self.width, "yuv420p"
        # Untagged files are shown in one of two matrices, as the player thinks fit.
        context = self._video.codec_context
        context.time_base = self.tick
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        if self._sound is not None:
            channels, rate = len(self._sound.samples), self._sound.rate
            self._audio = self._container.add_stream("aac", rate=rate, layout="mono" if channels == 1 else "stereo")
            # AAC takes at most 6 bits per sample and channel.
            self._audio.bit_rate = min(96_000, 6 * rate) * channels
        return self

    @property
    def seconds_written(self) -> float:
        """From the start of the first written frame to the end of the last."""
        return float(self._stop * self.tick)

    def write(self, frames: torch.Tensor, times: Sequence[tuple[int, int]] | None = None) -> None:
        """Append frames and the sound beside them.

        Args:
            frames: [count, height, width, 3], RGB: uint8, or floats in [-1, 1].
            times: ticks at which each frame comes on screen and leaves it. The first comes at 0, each other one when
                the one before leaves. None for one tick each.
        """
        if frames.ndim != 4 or tuple(frames.shape[1:]) != (self.height, self.width, 3):
            raise ValueError(
                f"{self.path}: got frames {list(frames.shape)}, wanted [count, {self.height}, {self.width}, 3]"
            )
        if frames.is_floating_point():
            if not torch.isfinite(frames).all():
                raise not_finite(self.path)
        elif frames.dtype != torch.uint8:
            raise ValueError(f"{self.path}: got frames of {frames.dtype}; give uint8, or floats in [-1, 1]")
        if times is None:
            times = [(start, start + 1) for start in range(self._stop, self._stop + len(frames))]
        for frame, (start, stop) in zip(frames, times, strict=True):
            if start != self._stop or stop <= start:
                raise ValueError(
                    f"{self.path}: a frame from tick {start} to {stop}, wanted it to start at {self._stop}"
                )
            pixels = to_bytes(frame) if frame.is_floating_point() else frame
            self._write_frame(pixels.detach().cpu().contiguous().numpy(), stop)

    def _write_frame(self, pixels: np.ndarray, stop: int) -> None:
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, threads=1
        )
        picture.pts, picture.time_base = self._stop, self.tick
        self._durations[self._stop] = stop - self._stop
        self._stop = stop
        self._mux(self._video.encode(picture))
        self.frames_written += 1
        self._write_sound()

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        """Pass encoded frames on, each with how long it stays; the last one's could not be known otherwise."""
        for packet in packets:
            assert packet.pts is not None  # they are the frames' own
            packet.duration = self._durations.pop(packet.pts)
            self._container.mux(packet)

    def _write_sound(self) -> None:
        """Append the sound up to the end of the last frame."""
        if self._sound is None:
            return
        end = round(self._stop * self.tick * self._sound.rate)
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
        self._mux(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._audio.encode(None))
        self._container.close()
        atomic.flush(self._part)
        os.replace(self._part, self.path)
        atomic.flush(self.path.parent)

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
                logger.warning(
                    "%s: stopped by %r; the file has the %d frames (%.2f s) written so far",
                    self.path,
                    error,
                    self.frames_written,
                    self.seconds_written,
                )
        finally:
            self._container.close()
            self._part.unlink(missing_ok=True)
            os.close(self._lock)


def not_finite(path: Path | str) -> ValueError:
    """The error of frames that are no pictures."""
    return ValueError(f"{path}: frames have values that are not finite (NaN or infinity)")


def _encodable(sound: Sound) -> Sound:
    """`sound` with the channels and the rate that AAC can take."""
    samples, rate = sound.samples, sound.rate
    if len(samples) > 2:
        samples = samples.mean(axis=0, keepdims=True)
    if rate not in _AAC_RATES:
        samples, rate = soxr.resample(samples.T, rate, 48000, quality="HQ").T, 48000
    return Sound(np.ascontiguousarray(samples), rate)
