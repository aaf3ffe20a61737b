"""What a model makes of speech, in figures.

    omniavatar evaluate --nano --out evaluation

The figures of the small model are taken on clips of people, voices and words that it has not seen, whose mouths are
known exactly. The functions under "Figures" take frames and truth alone, whatever model the frames are from.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..generation.conditioning import ConditionUnit, load_mouth_mask
from ..generation.generate import GeneratedVideo, generate
from ..generation.loading import load_pipeline
from ..generation.pipeline import OmniAvatarPipeline
from ..media.clip import Sound, VideoWriter, read_frames
from ..media.timeline import FRAME_RATE, SAMPLE_RATE
from ..metrics.plots import Series, line_plot
from ..model.files import NANO_FOLDER, NANO_I2V, NANO_V2V
from .batch import Sampling, Take, encode_videos, generate_takes, pixels
from .measure import correlation, measure_mouth, measure_sway
from .speaker.clips import SpeakerClip, draw_clip
from .speaker.drawing import SIZE, render
from .speaker.identity import Identity
from .speaker.motion import Motion

# -------------------------------------------------------------------------------------------------------------- figures

LAGS = range(-5, 6)
"""Frames by which a mouth may be late (early below zero) in the search for the best fit."""


def best_lag(measured: np.ndarray, truth: np.ndarray) -> int:
    """Frames by which the measured curve [F] is later than the true one [F], where the two correlate most."""

    def fit(lag: int) -> float:
        frames = len(truth)
        return correlation(measured[max(0, lag) : frames + min(0, lag)], truth[max(0, -lag) : frames - max(0, lag)])

    return max(sorted(LAGS, key=abs), key=fit)


def psnr(frames: np.ndarray, reference: np.ndarray, where: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of frames uint8 [F, H, W, 3] at the places `where`, bool [H, W].

    Args:
        reference: uint8 [F, H, W, 3], or one picture [H, W, 3].
    """
    difference = frames[:, where].astype(np.float64) - reference[..., where, :].astype(np.float64)
    return float(10 * np.log10(255**2 / max((difference**2).mean(), 1e-9)))


def colour_drift(frames: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean colour at the places `where`, bool [H, W], less that of the first second: float [F, 3], of 255."""
    colours = np.stack([frame[where].mean(axis=0, dtype=np.float64) for frame in frames])
    return colours - colours[:FRAME_RATE].mean(axis=0)


def drift_at_end(frames: np.ndarray, where: np.ndarray) -> float:
    """Greatest drift of a channel, of 255, between the first and the last second."""
    return float(np.abs(colour_drift(frames, where)[-FRAME_RATE:].mean(axis=0)).max())


def static_region(identity: Identity) -> np.ndarray:
    """Where a person that keeps still looks the same whatever they say and however they move: bool [128, 128]."""
    levels = (-1.6, 0, 1.6), (-1.4, 1.4), (0, 0.5, 1), (0, 0.5, 1)
    x, y, openness, lids = np.array(list(itertools.product(*levels)), np.float32).T
    frames = render(identity, openness, 1 - openness, Motion(x=x, y=y, roll=0.0075 * x, lids=lids, gaze=0.75 * x))
    span = (frames.max(axis=0).astype(int) - frames.min(axis=0)).max(axis=-1)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(span, 1, mode="edge"), (3, 3))
    return np.asarray(around.max(axis=(2, 3)) <= 8)


def background() -> np.ndarray:
    """Where a person that keeps still never is: bool [128, 128]."""
    where = np.zeros((SIZE, SIZE), bool)
    where[: 3 * SIZE // 4, :8] = where[: 3 * SIZE // 4, -8:] = True
    return where


@torch.no_grad()
def validation_loss(
    pipe: OmniAvatarPipeline, clips: Sequence[SpeakerClip], *, draws: int = 8, seed: int = 0, batch: int = 8
) -> float:
    """Mean squared error of the predicted flow on clips, at fixed noise levels and fixed noise.

    The levels are (i + 1/2) / draws; the first frame is known and the reference; it is out of the loss. Two models can
    be compared by it far more sharply than by training losses, each of which is at a level drawn for it.

    Args:
        pipe: I2V (33 channels).
        clips: of one length of 4n+1 frames.
        draws: noise levels, each with its own noise.
        batch: clips at a time.
    """
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for start in range(0, len(clips), batch):
        latents, common = _known_inputs(pipe, clips[start : start + batch])
        for index in range(draws):
            sigma = (index + 0.5) / draws
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            flow = pipe.model_fn(
                dit=pipe.dit,
                latents=(1 - sigma) * latents + sigma * noise,
                timestep=torch.tensor([1000 * sigma]).to(latents),
                **common,
            )
            errors = (flow - (noise - latents))[:, :, 1:].float().square().mean(dim=(1, 2, 3, 4))
            losses += errors.tolist()
    return float(np.mean(losses))


def _known_inputs(pipe: OmniAvatarPipeline, clips: Sequence[SpeakerClip]) -> tuple[Tensor, dict[str, Tensor]]:
    """Latents [B, 16, T, h, w] of clips, and all that the model function gets beside them and the time."""
    frames = len(clips[0].frames)
    latents = encode_videos(pipe, pixels([clip.frames for clip in clips]))
    first = latents[:, :, :1]
    features = torch.stack([pipe.encode_speech(torch.from_numpy(clip.waveform), frames)[:frames] for clip in clips])
    condition = ConditionUnit().process(pipe, latents, first, first, None, None, None)
    return latents, {
        "context": torch.cat([pipe.encode_prompt(clip.prompt) for clip in clips]),
        "omni_audio": features.to(latents),
        "omni_prefix_latents": first,
        **condition,
    }


# ---------------------------------------------------------------------------------------------------------------- stage

FRAMES = 72
"""Of a clip: three chunks of the small model, with one leading row of zeros or without."""
PAUSE = 0.02
"""True openness below which a mouth is closed."""
HISS = 1e-3
"""Effective value of the noise of a recording in which nobody speaks."""
LONG_FRAMES = 20 * FRAME_RATE
LONG_CLIPS = 6
GUIDANCE_CLIPS = 16
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0)
LONG_SEED = 100_000
"""Seeds of the long clips, apart from those of the others."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    name: str
    value: float
    goal: str
    ok: bool | None
    """None where the goal is to show."""
    values: Sequence[float] = ()
    """By clip, or by what the note says."""
    note: str = ""


Mouth = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the figures are taken with."""

    pipe: OmniAvatarPipeline
    """I2V."""
    family: Path
    clips: Sequence[SpeakerClip]
    """Held-out ones of `FRAMES` frames."""
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
    sound = Sound(waveform[None], SAMPLE_RATE)
    _, height, width, _ = frames.shape
    with VideoWriter(path, height, width, sound=sound, sound_delay=delay) as writer:
        writer.write(torch.from_numpy(frames))


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


def _at_least(name: str, values: Sequence[float], goal: float, **more: Any) -> Figure:
    value = float(np.mean(values))
    return Figure(name=name, value=value, goal=f">= {goal:g}", ok=value >= goal, values=values, **more)


def _below(name: str, values: Sequence[float], goal: float, **more: Any) -> Figure:
    value = float(np.mean(values))
    return Figure(name=name, value=value, goal=f"< {goal:g}", ok=value < goal, values=values, **more)


def _openness_r(mouths: Sequence[Mouth], clips: Sequence[SpeakerClip]) -> list[float]:
    return [correlation(mouth[0], clip.openness) for mouth, clip in zip(mouths, clips, strict=True)]


def _width_r(mouths: Sequence[Mouth], clips: Sequence[SpeakerClip]) -> list[float]:
    return [correlation(mouth[1], clip.width) for mouth, clip in zip(mouths, clips, strict=True)]


def _no_lag(name: str, mouths: Sequence[Mouth], clips: Sequence[SpeakerClip]) -> Figure:
    lags = [best_lag(mouth[0], clip.openness) for mouth, clip in zip(mouths, clips, strict=True)]
    return _at_least(name, [float(lag == 0) for lag in lags], 0.95, note=f"lags in frames: {lags}")


# --------------------------------------------------------------------------------------------------- groups of figures


def figures_sync(stage: Stage) -> Iterator[Figure]:
    """Mouth against truth with both alignments; identity and background."""
    own = stage.leading
    for leading in (own, 1 - own):
        with _leading_rows(stage.pipe, leading):
            videos = stage.generate(f"sync_leading{leading}", [take_of(clip) for clip in stage.clips])
        mouths = stage.mouths(videos, leading)
        where = f"leading rows {leading}"
        yield _at_least(f"openness r, {where}", _openness_r(mouths, stage.clips), 0.9)
        yield _at_least(f"width r, {where}", _width_r(mouths, stage.clips), 0.8)
        yield _no_lag(f"clips with lag 0, {where}", mouths, stage.clips)
        if leading == own:
            yield _pauses(mouths, stage.clips)
            yield from _identity(stage, videos)
            _plot_mouth(stage, mouths[0], stage.clips[0])


def _pauses(mouths: Sequence[Mouth], clips: Sequence[SpeakerClip]) -> Figure:
    """Openness where the true mouth is closed for a pause between words."""
    pauses = [mouth[0][clip.openness < PAUSE] for mouth, clip in zip(mouths, clips, strict=True)]
    values = [float(np.nan_to_num(openness, nan=1.0).mean()) for openness in pauses if len(openness)]
    return _below("pauses in speech: mean openness", values, 0.1)


def _identity(stage: Stage, videos: Sequence[np.ndarray]) -> Iterator[Figure]:
    pairs = [(clip, video) for clip, video in zip(stage.clips, videos, strict=True) if not clip.sways]
    regions = stage.workers(static_region, [clip.identity for clip, _ in pairs])
    values = [psnr(video, clip.frames[0], where) for (clip, video), where in zip(pairs, regions, strict=True)]
    if values:
        yield _at_least("static regions, PSNR to portrait (dB)", values, 28, note="clips that keep still")


def _plot_mouth(stage: Stage, mouth: Mouth, clip: SpeakerClip) -> None:
    seconds = ((np.arange(FRAMES) + 0.5) / FRAME_RATE).tolist()
    for name, measured, truth in (("openness", mouth[0], clip.openness), ("width", mouth[1], clip.width)):
        series = {"true": truth.tolist(), "generated": measured.tolist()}
        if np.isfinite(measured).any():
            stage.plot(name, series, x=seconds, x_label="seconds", y_label=name)


@contextmanager
def _leading_rows(pipe: OmniAvatarPipeline, leading: int) -> Iterator[None]:
    before = pipe.conventions
    pipe.conventions = replace(before, leading_audio_rows=leading)
    try:
        yield
    finally:
        pipe.conventions = before


def figures_swap(stage: Stage) -> Iterator[Figure]:
    """Another clip's sound."""
    partners = stage.partners()
    takes = [take_of(clip, waveform=other.waveform) for clip, other in zip(stage.clips, partners, strict=True)]
    mouths = stage.mouths(stage.generate("swap", takes))
    alike = [correlation(one.openness, other.openness) for one, other in zip(stage.clips, partners, strict=True)]
    yield _at_least("another's sound: r with that one's openness", _openness_r(mouths, partners), 0.9)
    note = f"r of the two true curves: {np.mean(alike):.2f}"
    yield _below("another's sound: r with the own openness", _openness_r(mouths, stage.clips), 0.2, note=note)


def figures_silence(stage: Stage) -> Iterator[Figure]:
    """A recording in which nobody speaks; a sound of zeros, which the pipeline refuses; no features of sound at all."""
    hiss = HISS * np.random.default_rng(0).standard_normal(len(stage.clips[0].waveform)).astype(np.float32)
    yield _below("silence: mean openness", _mean_openness(stage, "silence", hiss), 0.1)
    zeros = _mean_openness(stage, "zeros", np.zeros_like(hiss))
    note = "what the recipe puts in the place of a sound that it drops"
    yield Figure(
        name="a sound of zeros: mean openness",
        value=float(np.mean(zeros)),
        goal="shown",
        ok=None,
        values=zeros,
        note=note,
    )
    mouths = stage.mouths(stage.generate("mute", [take_of(clip) for clip in stage.clips], mute=True))
    yield _below("no audio features: openness r", _openness_r(mouths, stage.clips), 0.2)


def _mean_openness(stage: Stage, name: str, sound: np.ndarray) -> list[float]:
    mouths = stage.mouths(stage.generate(name, [take_of(clip, waveform=sound) for clip in stage.clips]))
    return [float(np.nan_to_num(mouth[0], nan=1.0).mean()) for mouth in mouths]


def figures_guidance(stage: Stage) -> Iterator[Figure]:
    """Guidance by the sound."""
    clips = stage.clips[:GUIDANCE_CLIPS]
    curve = []
    for scale in GUIDANCE:
        options = {"audio_cfg_scale": scale, "cfg_scale": _not_one(stage.sampling.cfg_scale)}
        videos = stage.generate(f"guidance_{scale:g}", [take_of(clip) for clip in clips], sampling=options)
        curve.append(float(np.mean(_openness_r(stage.mouths(videos), clips))))
    rises = bool((np.diff(curve) > -0.005).all())
    stage.plot("openness r by audio guidance", {"r": curve}, x=GUIDANCE, x_label="audio guidance", y_label="r")
    yield Figure(
        name="audio guidance 1 to 5: gain of r",
        value=curve[-1] - curve[0],
        goal="rises, or shown",
        ok=True if rises else None,
        values=curve,
        note=f"r at {GUIDANCE}",
    )


def _not_one(text_scale: float) -> float:
    """A text guidance with which the audio guidance acts: with 1 the pipeline makes a single pass."""
    return 1.01 if text_scale == 1 else text_scale


def figures_long(stage: Stage) -> Iterator[Figure]:
    """20 s of speech: the last 5 s, and the colours of the wall."""
    seeds = [LONG_SEED + index for index in range(min(LONG_CLIPS, len(stage.clips)))]
    clips = stage.workers(partial(_draw_still, frames=LONG_FRAMES), seeds)
    videos = stage.generate("long", [take_of(clip) for clip in clips])
    window = 5 * FRAME_RATE
    mouths = stage.mouths(videos)
    pairs = [(mouth[0], clip.openness) for mouth, clip in zip(mouths, clips, strict=True)]
    places = [slice(at, at + window) for at in range(0, LONG_FRAMES, window)]
    rs = [[correlation(mouth[place], truth[place]) for mouth, truth in pairs] for place in places]
    by_window = [float(np.mean(r)) for r in rs]
    where = background()
    yield _at_least("20 s: openness r in the last 5 s", rs[-1], 0.85, note=f"in each 5 s: {np.round(by_window, 3)}")
    drifts = [drift_at_end(video, where) for video in videos]
    worst = max(drifts)
    yield Figure(name="20 s: colour drift of the wall (of 255)", value=worst, goal="< 2", ok=worst < 2, values=drifts)
    track = np.mean([colour_drift(video, where) for video in videos], axis=0)
    seconds = (np.arange(len(track)) / FRAME_RATE).tolist()
    in_plot_colours = {"blue": 2, "red": 0, "green": 1}
    series = {name: track[:, channel].tolist() for name, channel in in_plot_colours.items()}
    stage.plot("colour drift of the wall", series, x=seconds, x_label="seconds", y_label="of 255", level=0.0)


def _draw_still(seed: int, *, frames: int) -> SpeakerClip:
    return draw_clip(seed, frames, split="evaluation", sways=False)


def figures_prompts(stage: Stage) -> Iterator[Figure]:
    """The prompt says whether the head sways."""
    sway = {}
    for sways in (False, True):
        takes = [take_of(clip, prompt=clip.identity.describe(sways)) for clip in stage.clips]
        sway[sways] = stage.workers(measure_sway, stage.generate("sways" if sways else "still", takes))
    yield _below('sway in pixels, prompt "keeps the head still"', sway[False], 4)
    yield _at_least('sway in pixels, prompt "sways from side to side"', sway[True], 8)
    more = [float(b > a + 3) for a, b in zip(sway[False], sway[True], strict=True)]
    yield _at_least("clips whose prompt made 3 pixels of sway", more, 0.9)


def figures_v2v(stage: Stage) -> Iterator[Figure]:
    """The mouth of a video that says something else."""
    pipe = load_family(stage.family, "v2v", str(stage.pipe.device))
    pipe.conventions = replace(pipe.conventions, leading_audio_rows=stage.leading)
    partners = stage.partners()
    takes = [
        take_of(clip, waveform=other.waveform, video=clip.frames)
        for clip, other in zip(stage.clips, partners, strict=True)
    ]
    videos = stage.generate("v2v", takes, pipe)
    mouths = stage.mouths(videos)
    yield _at_least("V2V: openness r with the fed sound", _openness_r(mouths, partners), 0.9)
    yield _at_least("V2V: width r with the fed sound", _width_r(mouths, partners), 0.8)
    yield _no_lag("V2V: clips with lag 0", mouths, partners)
    kept = load_mouth_mask(None, SIZE, SIZE)[0].numpy() == 1
    outside = [psnr(video[:FRAMES], clip.frames, kept) for clip, video in zip(stage.clips, videos, strict=True)]
    yield _at_least("V2V: outside the mask, PSNR to source (dB)", outside, 35)


def figures_speed(stage: Stage) -> Iterator[Figure]:
    """3 s by `generate` on two processor cores, into a file, and what the file shows."""
    clip = draw_clip(LONG_SEED - 1, 3 * FRAME_RATE, split="evaluation")
    pipe = load_family(stage.family, "i2v", "cpu")
    pipe.conventions = replace(pipe.conventions, leading_audio_rows=stage.leading)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = generate_file(pipe, clip, stage.out / "generate.mp4", stage.sampling)
    finally:
        torch.set_num_threads(threads)
    note = f"{os.cpu_count()} cores in all; {stage.sampling.steps} steps"
    yield _below("3 s on two cores: seconds", [made.seconds], 60, note=note)
    mouth = measure_mouth(read_frames(made.path).numpy()[stage.leading :])
    yield _at_least("openness r of that file", [correlation(mouth[0], clip.openness)], 0.9)


GROUPS: Mapping[str, Callable[[Stage], Iterator[Figure]]] = {
    "sync": figures_sync,
    "swap": figures_swap,
    "silence": figures_silence,
    "guidance": figures_guidance,
    "long": figures_long,
    "prompts": figures_prompts,
    "v2v": figures_v2v,
    "speed": figures_speed,
}


# ------------------------------------------------------------------------------------------------------------------ run


def load_family(folder: Path, mode: str, device: str | None, tuned: Path | None = None) -> OmniAvatarPipeline:
    """The "i2v" or "v2v" model of a folder like the shipped one, float32; or I2V with a LoRA checkpoint `tuned` on it.

    Raises:
        FileNotFoundError: it is not there.
    """
    i2v, v2v = (folder / path.relative_to(NANO_FOLDER) for path in (NANO_I2V, NANO_V2V))
    on_top = v2v if mode == "v2v" else tuned
    parts: dict[str, Any] = {} if on_top is None else {"dit": i2v, "omniavatar": on_top}
    with redirect_stdout(io.StringIO()):  # the host prints each model that it knows
        return load_pipeline("nano", folder, device=device, dtype="float32", **parts)


def _draw(seed: int) -> SpeakerClip:
    return draw_clip(seed, FRAMES, split="evaluation")


@contextmanager
def _workers(processes: int) -> Iterator[Callable[..., list[Any]]]:
    """`map` over so many processes; over none where one is enough."""
    if processes == 1:
        yield lambda work, items: list(map(work, items))
        return
    # Forking a process in which torch has started threads can hang.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda work, items: list(pool.map(work, items, chunksize=2))


def evaluate_nano(
    out: str | Path,
    *,
    family: str | Path = NANO_FOLDER,
    clips: int = 64,
    sampling: Sampling | None = None,
    groups: Sequence[str] = tuple(GROUPS),
    seed: int = 0,
    device: str | None = None,
    leading_audio_rows: int | None = None,
    batch: int | None = None,
) -> list[Figure]:
    """Take the figures of the small model; table, JSON, plots and some videos go to `out`.

    Args:
        out: folder, made if need be.
        family: folder of weights like the shipped one.
        clips: held-out clips, at least 2.
        sampling: how the model generates.
        groups: names in `GROUPS`.
        seed: of the first clip.
        device: None for the GPU if there is one.
        leading_audio_rows: in place of the checkpoint's convention.
        batch: clips at a time; None for 32 on a GPU and 2 on a CPU.

    Raises:
        ValueError: fewer than two clips or an unknown group; FileNotFoundError: weights are missing.
    """
    unknown = [name for name in groups if name not in GROUPS]
    if clips < 2 or unknown:
        raise ValueError(f"{clips} clips and figures {unknown}; wanted at least 2, and some of {', '.join(GROUPS)}.")
    out, started = Path(out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    pipe = load_family(Path(family), "i2v", device)
    if leading_audio_rows is not None:
        pipe.conventions = replace(pipe.conventions, leading_audio_rows=leading_audio_rows)
    sampling = sampling or Sampling()
    on_cpu = torch.device(pipe.device).type == "cpu"
    figures: list[Figure] = []
    with _workers(1 if clips < 16 else min(16, os.cpu_count() or 1)) as workers:
        stage = Stage(
            pipe=pipe,
            family=Path(family),
            clips=workers(_draw, range(seed, seed + clips)),
            sampling=sampling,
            batch=batch or (2 if on_cpu else 32),
            workers=workers,
            out=out,
        )
        for name in groups:
            for figure in GROUPS[name](stage):
                figures.append(figure)
                print(line_of(figure), flush=True)
    settings = {"clips": clips, "seed": seed, "leading_audio_rows": stage.leading, **asdict(sampling)}
    _write(out, figures, settings | {"seconds": time.monotonic() - started}, stage.plots)
    return figures


def line_of(figure: Figure) -> str:
    """A line of the table."""
    word = {True: "ok", False: "miss", None: "see plot"}[figure.ok]
    return f"{figure.name:<52} {figure.value:>9.3f}  {figure.goal:<16} {word}"


def _write(out: Path, figures: Sequence[Figure], settings: Mapping[str, Any], plots: Mapping[str, str]) -> None:
    content = {"settings": settings, "figures": [asdict(figure) for figure in figures]}
    (out / "figures.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (out / "table.txt").write_text("".join(f"{line_of(figure)}\n" for figure in figures), encoding="utf-8")
    for name, svg in plots.items():
        (out / f"{name.replace(' ', '_')}.svg").write_text(svg, encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar evaluate`."""
    default = Sampling()
    add = parser.add_argument
    add("--nano", action="store_true", required=True, help="the small model, on drawn speakers whose mouth is known")
    add("--out", default="evaluation", help="folder for table, JSON, plots and videos (default: evaluation)")
    add("--family", default=NANO_FOLDER, help="folder of weights like the shipped one, which is the default")
    add("--clips", type=int, default=64, help="held-out clips (default: 64)")
    add("--figures", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)} (default: all)")
    add("--steps", type=int, default=default.steps, help=f"denoising steps a chunk (default: {default.steps})")
    add("--cfg_scale", type=float, default=default.cfg_scale, help=f"by the text (default: {default.cfg_scale})")
    add("--audio_cfg_scale", type=float, help="guidance by the sound (default: that of the text)")
    add("--seed", type=int, default=0, help="of clips and noise (default: 0)")
    add("--leading_audio_rows", type=int, choices=[0, 1], help="in place of what the checkpoint says")
    add("--device", help="cuda, cpu, ...; by default the GPU if there is one")
    add("--batch", type=int, help="clips at a time (default: 32 on a GPU, 2 on a CPU)")


def run(args: argparse.Namespace) -> int:
    """`omniavatar evaluate`: the exit code is 1 if a goal is missed."""
    figures = evaluate_nano(
        args.out,
        family=args.family,
        clips=args.clips,
        sampling=Sampling(
            steps=args.steps, cfg_scale=args.cfg_scale, audio_cfg_scale=args.audio_cfg_scale, seed=args.seed
        ),
        groups=args.figures.split(","),
        seed=args.seed,
        device=args.device,
        leading_audio_rows=args.leading_audio_rows,
        batch=args.batch,
    )
    missed = [figure for figure in figures if figure.ok is False]
    print(f"\n{len(figures) - len(missed)} of {len(figures)} goals are met; all is in {args.out}.")
    return 1 if missed else 0
