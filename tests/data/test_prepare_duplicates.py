"""Clips that show the same are told from others."""

import numpy as np
import pytest

from diffsynth_omniavatar.data.prepare.duplicates import reject_duplicates
from diffsynth_omniavatar.data.prepare.records import ClipRecord

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

RNG = np.random.default_rng(0)
BITS = RNG.integers(0, 2, (8, 8))
OTHER = RNG.integers(0, 2, (8, 8))
POWER = 10 ** (RNG.integers(-60, -10, 300) / 10)
"""Of a recording, by frame."""


def loudness(power: np.ndarray) -> list[int]:
    return (10 * np.log10(power)).round().astype(int).tolist()


def rejected(*clips: tuple[list[np.ndarray], np.ndarray]) -> list[str]:
    """Why each of clips of these pictures and this power by frame is rejected; "" if it is kept."""
    records = [
        ClipRecord(
            name=f"{number}/0",
            source=f"{number}.mp4",
            start=100,
            frames=len(power),
            fingerprint={
                "pictures": [np.packbits(picture, axis=1).tobytes().hex() for picture in pictures],
                "loudness": loudness(power),
            },
        )
        for number, (pictures, power) in enumerate(clips)
    ]
    return [clip.reasons.get("duplicate", "") for clip in reject_duplicates(records)]


@pytest.mark.parametrize("picture", [BITS, 1 - BITS[:, ::-1]])
@pytest.mark.parametrize("start", [0, 8, 20, 60, 110])
def test_copies_are_found_wherever_they_begin(picture: np.ndarray, start: int) -> None:
    said = f"it shows the same as 0.mp4 from {(100 + start) / 25:.1f} s on"
    original = ([BITS] * 3, POWER[:150])
    assert rejected(original, ([picture] * 3, POWER[start : start + 120])) == ["", said]


def test_a_piece_that_begins_before_the_original_is_found() -> None:
    assert rejected(([BITS] * 3, POWER[80:200]), ([BITS] * 3, POWER[:130]))[1].endswith("from 4.0 s on")


def test_a_copy_that_begins_between_two_frames_is_found() -> None:
    smooth = np.convolve(POWER, np.ones(3), "valid")
    shifted = (smooth[10:150] + smooth[11:151]) / 2
    assert rejected(([BITS] * 3, smooth[:150]), ([BITS] * 3, shifted))[1]


def test_one_picture_in_common_is_enough() -> None:
    assert rejected(([OTHER, OTHER, BITS], POWER[:150]), ([BITS, 1 - OTHER, 1 - OTHER], POWER[90:200]))[1]


@pytest.mark.parametrize(
    ("pictures", "power"),
    [
        ([BITS] * 3, POWER[149::-1]),
        ([BITS] * 3, POWER[120:250]),  # 1.2 s in common
        ([1 - BITS] * 3, POWER[:150]),
        ([BITS] * 3, np.full(150, 1e-3)),
    ],
)
def test_another_sound_or_picture_is_no_copy(pictures: list[np.ndarray], power: np.ndarray) -> None:
    assert rejected(([BITS] * 3, POWER[:150]), (pictures, power)) == ["", ""]


def test_of_three_pieces_that_overlap_in_turn_the_outer_two_stay() -> None:
    pieces = [([BITS] * 3, POWER[start : start + 100]) for start in (0, 60, 120)]
    assert [bool(reason) for reason in rejected(*pieces)] == [False, True, False]
