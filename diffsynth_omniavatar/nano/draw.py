"""The speaker's clips and speech in memory, drawn by all processor cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from ..media.timeline import FRAME_RATE, SAMPLES_PER_FRAME
from .processes import process_map
from .speaker.clips import draw_clip
from .speaker.phonemes import draw_sentence, phoneme_labels
from .speaker.splits import Split
from .speaker.voice import draw_voice, synthesise

T = TypeVar("T")


def draw_frames(seeds: Sequence[int], frames: int, split: Split, lively: bool) -> np.ndarray:
    """Pictures of the clips of the seeds, uint8 [clip, F, 128, 128, 3]."""
    return np.stack(_in_parallel(partial(_frames, frames=frames, split=split, lively=lively), seeds))


def draw_speech(seeds: Sequence[int], frames: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Speech without pictures: waveforms float32 [clip, 640 F] and phonemes int64 [clip, F]."""
    waveforms, phonemes = zip(*_in_parallel(partial(_speech, frames=frames, split=split), seeds), strict=True)
    return np.stack(waveforms), np.stack(phonemes)


def _frames(seed: int, *, frames: int, split: Split, lively: bool) -> np.ndarray:
    return draw_clip(seed, frames, split=split, lively=lively).frames


def _speech(seed: int, *, frames: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([split == "evaluation", seed])
    sentence = draw_sentence(rng, frames / FRAME_RATE, split=split)
    waveform = synthesise(sentence, draw_voice(rng, split=split), rng, frames * SAMPLES_PER_FRAME)
    return waveform, phoneme_labels(sentence, frames)


def _in_parallel(work: Callable[[int], T], seeds: Sequence[int]) -> list[T]:
    cores = os.cpu_count() or 1
    with process_map(cores if len(seeds) >= 4 * cores else 1) as map_over:
        return map_over(work, seeds)
