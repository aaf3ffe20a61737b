"""Which words, looks and numbers belong to training, and which to the evaluation."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np

Split = Literal["train", "evaluation"]

EVALUATION_SHARE = 5
"""One in this many words, looks and bands of numbers belongs to the evaluation split."""


def belongs(thing: object, split: Split) -> bool:
    """Whether a word or a combination belongs to the split."""
    held_out = zlib.crc32(repr(thing).encode()) % EVALUATION_SHARE == 0
    return held_out == (split == "evaluation")


def draw_unit(rng: np.random.Generator, split: Split, bands: int = 20) -> float:
    """A number in [0, 1) from the bands of it that belong to the split."""
    held_out = [band for band in range(bands) if band % EVALUATION_SHARE == 2]
    owned = held_out if split == "evaluation" else [band for band in range(bands) if band not in held_out]
    return float((rng.choice(owned) + rng.random()) / bands)
