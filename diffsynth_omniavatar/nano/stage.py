"""What figures of the small model are taken with: its pipelines, clips, the videos that it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..generation.generate import generate
from ..generation.loading import load_pipeline
from ..generation.pipeline import OmniAvatarPipeline
from ..generation.result import GeneratedVideo
from ..host.output import quiet_host
from ..media.images import to_bytes
from ..media.sound import Sound
from ..media.timeline import FRAME_RATE, SAMPLE_RATE
from ..media.writer import VideoWriter
from ..metrics.plots import Series, line_plot
from .batch import Sampling, Take, encode_videos, generate_takes, pixels
from .measure import measure_mouth
from .speaker.clips import SpeakerClip

Mouth = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the figures are taken with."""

    pipe: OmniAvatarPipeline
    """I2V."""
    family: Path
    clips: Sequence[SpeakerClip]
    """Held-out ones of `FRAMES` frames."""
    seeds: Sequence[int]
    """Of the clips."""
    lively: bool
    """Whether they are."""
    long_seconds: float
    """Length of the long speeches."""
    sampling: Sampling
    batch: int
    workers: Callable[..., list[Any]]
    """`map` over processes."""
    out: Path
    plots: dict[str, str] = field(default_factory=dict)
    """Name -> SVG."""

    @property
    def leading(self) -> int:
        """Frames before the sound."""
        return self.pipe.conventions.leading_audio_rows

    def generate(
        self, name: str, takes: Sequence[Take], pipe: OmniAvatarPipeline | None = None, **options: Any
    ) -> list[np.ndarray]:
        """Videos of takes; those of the first two are kept as files, with their sound."""
        pipe = pipe or self.pipe
        sampling = replace(self.sampling, **options.pop("sampling", {}))
        videos = generate_takes(pipe, takes, sampling, batch=self.batch, **options)
        delay = pipe.conventions.leading_audio_rows / FRAME_RATE
        for index, (take, video) in enumerate(zip(takes[:2], videos, strict=False)):
            write_video(self.out / f"{name}_{index}.mp4", video, take.waveform, delay)
        return videos

    @torch.no_grad()
    def encode(self, videos: Sequence[np.ndarray]) -> Tensor:
        """Latents [clip, 16, T, h, w] of videos uint8 [4 T - 3, H, W, 3]."""
        starts = range(0, len(videos), self.batch)
        return torch.cat([encode_videos(self.pipe, pixels(videos[at : at + self.batch])) for at in starts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[np.ndarray]:
        """Videos uint8 [F, H, W, 3] of latents."""
        decoded = [self.pipe.vae.single_decode(part, self.pipe.device) for part in latents.split(self.batch)]
        return [video for part in decoded for video in to_bytes(part).permute(0, 2, 3, 4, 1).cpu().numpy()]

    def mouths(self, videos: Sequence[np.ndarray], leading: int | None = None) -> list[Mouth]:
        """Openness and width of I2V or V2V videos, frame j being the one that hears row j."""
        first = self.leading if leading is None else leading
        return self.workers(measure_mouth, [video[first:] for video in videos])

    def plot(self, name: str, series: Series, **labels: Any) -> None:
        """Keep a plot."""
        self.plots[name] = line_plot(series, title=name, **labels)

    def partners(self) -> list[SpeakerClip]:
        """For each clip the one whose openness is least like its own: all sentences begin with a pause, which makes
        any two somewhat alike.
        """
        curves = np.array([clip.openness for clip in self.clips])
        likeness = np.abs(np.corrcoef(curves)) + 2 * np.eye(len(curves))
        return [self.clips[index] for index in likeness.argmin(axis=1)]


def write_video(path: Path, frames: np.ndarray, waveform: np.ndarray, delay: float = 0.0) -> None:
    """An mp4 of frames uint8 [F, H, W, 3] with sound [n] at 16 kHz that starts `delay` seconds later."""
    with open_video(path, frames.shape[1:3], waveform, delay) as writer:
        writer.write(torch.from_numpy(frames))


def open_video(path: Path, size: Sequence[int], waveform: np.ndarray, delay: float) -> VideoWriter:
    """An mp4 of this height and width to write frames to; its sound [n] at 16 kHz starts `delay` seconds later."""
    height, width = size
    return VideoWriter(path, height, width, sound=Sound(waveform[None], SAMPLE_RATE), sound_delay=delay)


def generate_file(
    pipe: OmniAvatarPipeline, clip: SpeakerClip, out: Path, sampling: Sampling, *, show_progress: bool = False
) -> GeneratedVideo:
    """What `generate` makes of a clip's own first frame, prompt and sound, with no silence put in front."""
    return generate(
        pipe,
        prompt=clip.prompt,
        image=Image.fromarray(clip.frames[0]),
        audio=Sound(clip.waveform[None], SAMPLE_RATE),
        out=out,
        silence=0.0,
        show_progress=show_progress,
        **asdict(sampling),
    )


def take_of(clip: SpeakerClip, **changes: Any) -> Take:
    """A clip's own first frame, prompt and sound; `changes` are fields of `Take`."""
    return replace(Take(prompt=clip.prompt, portrait=clip.frames[0], waveform=clip.waveform), **changes)


def load_family(folder: Path, mode: str, device: str | None, tuned: Path | None = None) -> OmniAvatarPipeline:
    """The "i2v" or "v2v" model of a folder like the shipped one, float32; or I2V with a LoRA checkpoint `tuned` on it.

    Raises:
        FileNotFoundError: it is not there.
    """
    model = "nano-v2v" if mode == "v2v" else "nano"
    with quiet_host():
        return load_pipeline(model, folder, device=device, dtype="float32", omniavatar=tuned)
