"""Clips of the speaker, and data sets of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...media.sound import Sound
from ...media.timeline import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from ...media.writer import VideoWriter
from ..processes import process_map
from .canvas import SIZE
from .drawing import render
from .identity import Identity, detailed, draw_identity
from .lively import liven
from .motion import Motion, draw_motion
from .phonemes import NOTHING, Sentence, draw_sentence, mouth_curves, phoneme_labels
from .splits import Split
from .voice import Voice, draw_voice, synthesise


@dataclass(frozen=True, eq=False, kw_only=True)
class SpeakerClip:
    """A clip of F frames and what it was drawn from."""

    frames: np.ndarray
    """uint8 [F, 128, 128, 3], RGB."""
    waveform: np.ndarray
    """float32 [640 F], mono at 16 kHz."""
    openness: np.ndarray
    """float32 [F], 0 closed to 1."""
    width: np.ndarray
    """float32 [F], 0 rounded to 1 spread."""
    phonemes: np.ndarray
    """int64 [F], places in `PHONEMES`."""
    prompt: str
    sways: bool
    identity: Identity
    voice: Voice
    sentence: Sentence
    motion: Motion


def draw_clip(
    seed: int,
    frames: int,
    *,
    split: Split,
    identity: Identity | None = None,
    voice: Voice | None = None,
    sways: bool | None = None,
    speaks: bool = True,
    lively: bool = False,
    future: int = 0,
    shown: int | None = None,
) -> SpeakerClip:
    """The clip of a seed; what is given replaces what would be drawn and changes nothing else.

    Args:
        seed: 0 or more. Equal seeds give equal clips in one split and unrelated ones in the other.
        frames: number F of frames.
        split: whose words, looks and voices are taken.
        identity, voice: who speaks.
        sways: whether the head sways from side to side, which the prompt tells.
        speaks: else the voice's hiss is all that is heard, and the mouth stays closed.
        lively: with moves that nothing decides (`lively.liven`), and, if no identity is given, textures.
        future: another number gives other such moves after the same first frame.
        shown: how many frames are drawn, from the first on; None for all. The rest of the clip is not changed by it.

    Raises:
        ValueError: no frames, a negative seed, or an unknown split.
    """
    if frames < 1 or seed < 0 or split not in ("train", "evaluation"):
        raise ValueError(
            f"draw_clip got seed {seed}, {frames} frames and split {split!r}; "
            'wanted a seed of 0 or more, at least one frame, and "train" or "evaluation"'
        )
    streams = [np.random.default_rng([split == "evaluation", seed, part]) for part in range(7)]
    if identity is None:
        identity = draw_identity(streams[0], split=split)
        identity = detailed(identity, streams[5]) if lively else identity
    voice = voice or draw_voice(streams[1], split=split)
    sentence = draw_sentence(streams[2], frames / FRAME_RATE, split=split) if speaks else NOTHING
    waveform = synthesise(sentence, voice, streams[3], frames * SAMPLES_PER_FRAME)
    drawn = bool(streams[4].random() < 0.5)
    sways = drawn if sways is None else sways
    motion = draw_motion(streams[4], frames, sways=sways)
    if lively:
        coming = np.random.default_rng([split == "evaluation", seed, 7, future])
        motion = liven(motion, streams[6], coming, sways=sways)
    openness, width = mouth_curves(sentence, frames)
    seen = Motion(**{name: track[:shown] for name, track in vars(motion).items()})
    return SpeakerClip(
        frames=render(identity, openness[:shown], width[:shown], seen),
        waveform=waveform,
        openness=openness,
        width=width,
        phonemes=phoneme_labels(sentence, frames),
        prompt=identity.describe(sways),
        sways=sways,
        identity=identity,
        voice=voice,
        sentence=sentence,
        motion=motion,
    )


def write_clip(clip: SpeakerClip, path: str | Path, crf: int = 10) -> None:
    """Write an mp4 with sound, and beside it an .npz with `openness`, `width` and `phonemes`, [F] each."""
    path = Path(path)
    with VideoWriter(path, SIZE, SIZE, sound=Sound(clip.waveform[None], SAMPLE_RATE), crf=crf) as writer:
        writer.write(torch.from_numpy(clip.frames))
    np.savez(path.with_suffix(".npz"), openness=clip.openness, width=clip.width, phonemes=clip.phonemes)


def cut_start(clip: SpeakerClip, frames: int) -> SpeakerClip:
    """The clip without its first `frames` frames, so that it begins in mid-speech; `sentence` stays the whole one."""
    curves = {name: getattr(clip, name)[frames:] for name in ("frames", "openness", "width", "phonemes")}
    motion = Motion(**{name: value[frames:] for name, value in vars(clip.motion).items()})
    return replace(clip, waveform=clip.waveform[frames * SAMPLES_PER_FRAME :], motion=motion, **curves)


def write_clips(
    folder: str | Path,
    seeds: Sequence[int],
    frames: int,
    *,
    split: Split,
    identity: Identity | None = None,
    lead: int = 0,
    silent: float = 0.0,
    lively: bool = False,
    workers: int = 1,
    crf: int = 10,
) -> Path:
    """Write a data set: metadata.csv (video, prompt), and per seed an .mp4 and its .npz as by `write_clip`.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        seeds, frames, split, identity, lively: as for `draw_clip`; a given identity speaks in all clips.
        lead: up to so many frames, drawn for each clip, are spoken before it begins, so that clips begin in mid-speech.
        silent: share of clips in which nobody speaks.
        workers: processes that draw. With more than one, a script must call this under `if __name__ == "__main__"`.
        crf: quality of x264.

    Returns:
        The path of metadata.csv.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(
        _write_seed,
        folder=folder,
        frames=frames,
        split=split,
        identity=identity,
        lead=lead,
        silent=silent,
        lively=lively,
        crf=crf,
    )
    with process_map(workers) as map_over:
        rows = map_over(work, seeds)
    table = folder / "metadata.csv"
    with open(table.with_suffix(".tmp"), "w", newline="", encoding="utf-8") as content:
        writer = csv.writer(content)
        writer.writerow(("video", "prompt"))
        writer.writerows(rows)
    os.replace(table.with_suffix(".tmp"), table)
    return table


def _write_seed(
    seed: int,
    *,
    folder: Path,
    frames: int,
    split: Split,
    identity: Identity | None,
    lead: int,
    silent: float,
    lively: bool,
    crf: int,
) -> tuple[str, str]:
    rng = np.random.default_rng([seed, frames])
    before, speaks = int(rng.integers(lead + 1)), bool(rng.random() >= silent)
    whole = draw_clip(seed, before + frames, split=split, identity=identity, speaks=speaks, lively=lively)
    clip = cut_start(whole, before)
    name = f"{split}_{seed:06d}.mp4"
    write_clip(clip, folder / name, crf)
    return name, clip.prompt
