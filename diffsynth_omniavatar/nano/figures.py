"""Figures of the small model, on clips of people, voices and words that it has not seen.

The mouths of the clips are known exactly.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..generation.masks import load_mouth_mask
from ..generation.pipeline import OmniAvatarPipeline
from ..media.timeline import FRAME_RATE
from ..media.video import read_frames
from ..metrics.picture import psnr
from ..metrics.sync import best_lag, correlation
from ..model.files import NANO_FOLDER
from ..system.output_folder import check_output_folder
from .batch import Sampling
from .distributions import LEAST_FLOOR, distances, frechet, latent_features, samples
from .long_videos import Track, follow, windows
from .measure import measure_mouth, measure_sway
from .measure_face import measure_face
from .processes import process_map
from .regions import static_region
from .speaker.canvas import SIZE
from .speaker.clips import SpeakerClip, draw_clip
from .stage import Mouth, Stage, generate_file, load_family, take_of

FRAMES = 72
"""Of a clip: three chunks of the small model, with one leading row of zeros or without."""
PAUSE = 0.02
"""True openness below which a mouth is closed."""
HISS = 1e-3
"""Effective value of the noise of a recording in which nobody speaks."""
LONG_SECONDS = 20.0
LONG_CLIPS = 6
GUIDANCE_CLIPS = 16
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0)
FLOOR_FUTURES = 3
"""Other futures of the clips, whose mean distance from the true ones is the floor."""
NEAR = 3.0
"""Multiples of the floor that are still near it."""
LATENTS = "latents (Frechet)"
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
        options = {"audio_cfg_scale": scale}
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


def figures_long(stage: Stage) -> Iterator[Figure]:
    """A long speech: the last window against the first, in lips, colours of the wall, identity and sharpness."""
    rows = round(stage.long_seconds * FRAME_RATE)
    seeds = [LONG_SEED + index for index in range(min(LONG_CLIPS, len(stage.clips)))]
    clips = stage.workers(partial(_draw_still, frames=rows, lively=stage.lively), seeds)
    tracks = follow(stage, clips, "long")
    places = windows(rows)
    length, last = f"{stage.long_seconds:g} s", f"the last {(places[0].stop - places[0].start) / FRAME_RATE:g} s"
    pairs = [*zip(tracks, clips, strict=True)]
    rs = np.array([[track.mouth_r(clip, place, stage.leading) for place in places] for track, clip in pairs])
    by_window = np.round(rs.mean(axis=0), 3)
    yield _at_least(
        f"{length}: openness r in {last}", rs[:, -1, 0].tolist(), 0.97, note=f"by window: {by_window[:, 0].tolist()}"
    )
    yield _at_least(
        f"{length}: width r in {last}", rs[:, -1, 1].tolist(), 0.8, note=f"by window: {by_window[:, 1].tolist()}"
    )
    yield _wall_drift(stage, length, tracks)
    at = [slice(place.start + stage.leading, place.stop + stage.leading) for place in places]
    dbs = np.array([[track.part(place).psnr for place in at] for track in tracks])
    note = f"by window: {np.round(dbs.mean(axis=0), 1).tolist()}"
    yield _at_least(f"{length}: static regions, PSNR in {last} (dB)", dbs[:, -1].tolist(), 28, note=note)
    sharp = np.array([[track.part(place).sharpness.mean() for place in at] for track in tracks])
    note = f"by window: {np.round(sharp.mean(axis=0), 2).tolist()}"
    kept = (100 * sharp[:, -1] / np.maximum(sharp[:, 0], 1e-9)).tolist()
    yield _at_least(f"{length}: sharpness of {last} (% of the first)", kept, 95, note=note)


def _wall_drift(stage: Stage, length: str, tracks: Sequence[Track]) -> Figure:
    """From the first second to the last."""
    drifts = [track.wall - track.wall[:FRAME_RATE].mean(axis=0) for track in tracks]
    ends = [float(np.abs(drift[-FRAME_RATE:].mean(axis=0)).max()) for drift in drifts]
    mean = np.mean(drifts, axis=0)
    seconds = (np.arange(len(mean)) / FRAME_RATE).tolist()
    in_plot_colours = {"blue": 2, "red": 0, "green": 1}
    series = {name: mean[:, channel].tolist() for name, channel in in_plot_colours.items()}
    stage.plot("colour drift of the wall", series, x=seconds, x_label="seconds", y_label="of 255", level=0.0)
    name = f"{length}: colour drift of the wall (of 255)"
    return Figure(name=name, value=max(ends), goal="< 2", ok=max(ends) < 2, values=ends)


def _draw_still(seed: int, *, frames: int, lively: bool) -> SpeakerClip:
    return draw_clip(seed, frames, split="evaluation", sways=False, lively=lively, shown=1)


def figures_prompts(stage: Stage) -> Iterator[Figure]:
    """The prompt says whether the head sways."""
    sway = {}
    for sways in (False, True):
        takes = [take_of(clip, prompt=clip.identity.describe(sways)) for clip in stage.clips]
        videos = stage.generate("sways" if sways else "still", takes)
        sway[sways] = stage.workers(_lively_sway if stage.lively else measure_sway, videos)
    yield _below('sway in pixels, prompt "keeps the head still"', sway[False], 4)
    yield _at_least('sway in pixels, prompt "sways from side to side"', sway[True], 8)
    more = [float(b > a + 3) for a, b in zip(sway[False], sway[True], strict=True)]
    yield _at_least("clips whose prompt made 3 pixels of sway", more, 0.9)


def _lively_sway(video: np.ndarray) -> float:
    return measure_face(video).sway


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
    clip = draw_clip(LONG_SEED - 1, 3 * FRAME_RATE, split="evaluation", lively=stage.lively)
    pipe = load_family(stage.family, "i2v", "cpu")
    pipe.conventions = replace(pipe.conventions, leading_audio_rows=stage.leading)
    threads, out = torch.get_num_threads(), stage.out / "generate.mp4"
    torch.set_num_threads(2)
    try:
        made = generate_file(pipe, clip, out, stage.sampling)
    finally:
        torch.set_num_threads(threads)
    note = f"{os.cpu_count()} cores in all; {stage.sampling.steps} steps"
    yield _below("3 s on two cores: seconds", [made.seconds], 60, note=note)
    mouth = measure_mouth(read_frames(out).numpy()[stage.leading :])
    yield _at_least("openness r of that file", [correlation(mouth[0], clip.openness)], 0.9)


def figures_distributions(stage: Stage) -> Iterator[Figure]:
    """What nothing decides, of all clips together, against true clips that went through the VAE.

    The floor is what other futures of the same clips are away from them.
    """
    videos = stage.generate("distributions", [take_of(clip) for clip in stage.clips])
    drawn = [[clip.frames for clip in stage.clips]]
    for future in range(1, FLOOR_FUTURES + 1):
        draw = partial(_draw, lively=True, future=future)
        drawn.append([clip.frames for clip in stage.workers(draw, stage.seeds)])
    frames = (FRAMES - 1) // 4 * 4 + 1
    true, *others = (_seen(stage, stage.decode(stage.encode([clip[:frames] for clip in clips]))) for clips in drawn)
    generated = _seen(stage, [video[stage.leading :][:frames] for video in videos])
    _plot_gaze(stage, true, generated)
    floors = [_away(other, true) for other in others]
    for name, distance in _away(generated, true).items():
        floor = max(float(np.mean([found[name] for found in floors])), LEAST_FLOOR.get(name, 1e-9))
        means = "" if name == LATENTS else f"; mean {generated[0][name].mean():.4g}, of true {true[0][name].mean():.4g}"
        yield Figure(
            name=f"{name}: distance / floor",
            value=distance / floor,
            goal=f"<= {NEAR:g}",
            ok=distance <= NEAR * floor,
            values=(distance, floor),
            note=f"distance {distance:.4g}, floor {floor:.4g}{means}",
        )


Seen = tuple[Mapping[str, np.ndarray], np.ndarray]
"""`distributions.samples` and `latent_features` of many clips."""


def _seen(stage: Stage, videos: Sequence[np.ndarray]) -> Seen:
    latents = stage.encode(videos).float().cpu().numpy()
    return samples(stage.workers(measure_face, videos)), latent_features(latents)


def _plot_gaze(stage: Stage, true: Seen, generated: Seen) -> None:
    edges = np.linspace(-6.25, 6.25, 26)
    shares = {
        name: (np.histogram(found[0]["gaze (pixels)"], edges)[0] / len(found[0]["gaze (pixels)"])).tolist()
        for name, found in (("true", true), ("generated", generated))
    }
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    stage.plot("where eyes look", shares, x=middles, x_label="pixels right of the middle", y_label="share of frames")


def _away(one: Seen, other: Seen) -> dict[str, float]:
    return {**distances(one[0], other[0]), LATENTS: frechet(one[1], other[1])}


GROUPS: Mapping[str, Callable[[Stage], Iterator[Figure]]] = {
    "sync": figures_sync,
    "swap": figures_swap,
    "silence": figures_silence,
    "guidance": figures_guidance,
    "long": figures_long,
    "prompts": figures_prompts,
    "v2v": figures_v2v,
    "speed": figures_speed,
    "distributions": figures_distributions,
}
LIVELY_GROUPS = ("distributions",)
"""For lively clips alone: plain ones leave nothing open."""


def _draw(seed: int, *, lively: bool, future: int = 0) -> SpeakerClip:
    return draw_clip(seed, FRAMES, split="evaluation", lively=lively, future=future)


def evaluate_nano(
    out: str | Path,
    *,
    family: str | Path = NANO_FOLDER,
    clips: int = 64,
    sampling: Sampling | None = None,
    groups: Sequence[str] | None = None,
    lively: bool = False,
    long_seconds: float = LONG_SECONDS,
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
        groups: names in `GROUPS`; None for all that the clips allow.
        lively: whether the clips are.
        long_seconds: length of the long speeches.
        seed: of the first clip.
        device: None for the GPU if there is one.
        leading_audio_rows: in place of the checkpoint's convention.
        batch: clips at a time; None for 32 on a GPU and 2 on a CPU.

    Raises:
        ValueError: fewer than two clips, none in a batch, too short speeches, a group that is unknown or not for such
            clips, or a folder that cannot be written; FileNotFoundError: weights are missing.
    """
    allowed = [name for name in GROUPS if lively or name not in LIVELY_GROUPS]
    groups = allowed if groups is None else groups
    unknown = [name for name in groups if name not in allowed]
    if clips < 2 or unknown:
        more = "" if lively else f"; with --lively also {', '.join(LIVELY_GROUPS)}"
        raise ValueError(
            f"{clips} clips and figures {unknown}; wanted at least 2, and some of {', '.join(allowed)}{more}."
        )
    if not 1 <= long_seconds < float("inf"):
        raise ValueError(f"long_seconds is {long_seconds}, wanted at least 1.")
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}, wanted at least 1.")
    check_output_folder(out)
    out, started = Path(out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    pipe = load_family(Path(family), "i2v", device)
    if leading_audio_rows is not None:
        pipe.conventions = replace(pipe.conventions, leading_audio_rows=leading_audio_rows)
    sampling = sampling or Sampling()
    on_cpu = torch.device(pipe.device).type == "cpu"
    figures: list[Figure] = []
    with process_map(1 if clips < 16 else min(16, os.cpu_count() or 1)) as workers:
        stage = Stage(
            pipe=pipe,
            family=Path(family),
            clips=workers(partial(_draw, lively=lively), range(seed, seed + clips)),
            seeds=range(seed, seed + clips),
            lively=lively,
            long_seconds=long_seconds,
            sampling=sampling,
            batch=batch or (2 if on_cpu else 32),
            workers=workers,
            out=out,
        )
        for name in groups:
            for figure in GROUPS[name](stage):
                figures.append(figure)
                print(line_of(figure), flush=True)
    settings = {"clips": clips, "lively": lively, "long_seconds": long_seconds, "seed": seed}
    settings |= {"leading_audio_rows": stage.leading, **asdict(sampling)}
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
