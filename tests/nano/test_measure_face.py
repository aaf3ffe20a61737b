"""Pixels tell where the speaker looks, blinks and turns."""

import numpy as np
import pytest

from diffsynth_omniavatar.nano.measure_face import measure_face
from diffsynth_omniavatar.nano.speaker.canvas import SIZE
from diffsynth_omniavatar.nano.speaker.clips import draw_clip

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


@pytest.fixture(scope="module")
def clips(futures):
    return [clip for row in futures for clip in row[:2]]


def truth(clip):
    """The tracks that a clip was drawn from, as `FaceTracks` means them."""
    motion, height = clip.motion, clip.identity.brow_height
    return {
        "x": 1.15 * motion.x + motion.turn,
        "y": motion.y + motion.nod,
        "roll": motion.roll,
        "turn": motion.turn + 0.3 * motion.x,
        "left_gaze": motion.gaze,
        "right_gaze": motion.gaze,
        "left_lid": motion.lids,
        "right_lid": motion.lids,
        "left_brow": height + motion.left_brow,
        "right_brow": height + motion.right_brow,
    }


def softened(frames):
    """A blur of one pixel, as of an autoencoder, with noise."""
    values = frames.astype(np.float32)
    for axis in (1, 2):
        for _ in range(2):
            values = (np.roll(values, 1, axis) + 2 * values + np.roll(values, -1, axis)) / 4
    values += 3 * np.random.default_rng(0).standard_normal(values.shape)
    return values.round().clip(0, 255).astype(np.uint8)


LEAST = {"roll": 0.03, "lid": 0.5}
"""Range from which on a correlation means something; 1 pixel of the others."""

OFF = {"x": 0.4, "y": 0.8, "roll": 0.01, "gaze": 1.5, "lid": 0.08, "brow": 1.5}
"""How far the median of what is measured may be off: an iris far aside is partly covered, and that of turns depends
on how the hair lies."""


@pytest.mark.parametrize(("seen_as", "least"), [(lambda frames: frames, 0.93), (softened, 0.9)], ids=["clean", "soft"])
def test_the_tracks_are_those_that_the_clip_was_drawn_from(clips, seen_as, least):
    found = {}
    for clip in clips:
        face = measure_face(seen_as(clip.frames))
        for name, true in truth(clip).items():
            part = name.split("_")[-1]
            seen = clip.motion.lids < (0.2 if part == "gaze" else 2)  # closed eyes look nowhere
            measured = getattr(face, name)[seen]
            if np.ptp(true[seen]) > LEAST.get(part, 1.0):
                found.setdefault(name, []).append(np.corrcoef(measured, true[seen])[0, 1])
            if part in OFF:
                assert abs(np.median(measured - true[seen])) < OFF[part], name
    assert set(found) == set(truth(clips[0]))
    assert {name: rs for name, rs in found.items() if np.mean(rs) < 0.95 or min(rs) < least} == {}


def test_a_blur_is_seen_in_the_eyes(clips):
    sharp, soft = (measure_face(frames).sharpness for frames in (clips[0].frames, softened(clips[0].frames)))
    assert (soft < 0.5 * sharp).all()


def test_sway_is_the_heads_not_the_turns():
    for sways in (False, True):
        clip = draw_clip(2, 40, split="evaluation", lively=True, sways=sways)
        assert measure_face(clip.frames).sway == pytest.approx(np.ptp(clip.motion.x), abs=1.6)
        assert np.ptp(clip.motion.turn) > 3


def test_where_nobody_is_nothing_is_measured():
    face = measure_face(np.full((3, SIZE, SIZE, 3), 128, np.uint8))
    assert all(np.isnan(track).all() for track in vars(face).values()) and np.isnan(face.sway)
    with pytest.raises(ValueError, match=r"got frames \[2, 64, 64, 3\]"):
        measure_face(np.zeros((2, 64, 64, 3), np.uint8))
