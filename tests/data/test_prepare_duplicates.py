"""Clips that show the same are told from others."""

import numpy as np
import pytest

from diffsynth_omniavatar.data.prepare.duplicates import reject_duplicates
from diffsynth_omniavatar.data.prepare.records import ClipRecord

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

RNG = np.random.default_rng(0)
BITS = RNG.integers(0, 2, (8, 8))
LOUDNESS = RNG.integers(-60, -10, 90).tolist()


def kept_of(bits: np.ndarray, loudness: list[int]) -> list[bool]:
    """Which are kept of a clip and another one."""
    prints = [(BITS, LOUDNESS[10:85]), (bits, loudness)]
    clips = [
        ClipRecord(
            name=f"{number}/0",
            source=f"{number}.mp4",
            start=0,
            frames=100,
            fingerprint={"picture": np.packbits(picture, axis=1).tobytes().hex(), "loudness": sound},
        )
        for number, (picture, sound) in enumerate(prints)
    ]
    return [clip.is_kept for clip in reject_duplicates(clips)]


def test_copies_are_found_also_mirrored_and_cut_elsewhere() -> None:
    mirrored = 1 - BITS[:, ::-1]  # what was brighter on the left is so on the right
    for bits in (BITS, mirrored):
        assert kept_of(bits, LOUDNESS[10:85]) == [True, False]
    for start in (2, 18):
        assert kept_of(BITS, LOUDNESS[start : start + 67]) == [True, False]


def test_another_sound_or_picture_is_no_copy() -> None:
    assert kept_of(BITS, LOUDNESS[84:9:-1]) == [True, True]
    assert kept_of(1 - BITS, LOUDNESS[10:85]) == [True, True]
