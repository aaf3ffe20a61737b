"""What nothing decides: it changes neither sound nor mouth, and the same beginning has many futures."""

import csv

import numpy as np
import pytest

from diffsynth_omniavatar.generation.masks import load_mouth_mask
from diffsynth_omniavatar.media.video import read_frames
from diffsynth_omniavatar.nano.measure import measure_mouth
from diffsynth_omniavatar.nano.measure_face import measure_face
from diffsynth_omniavatar.nano.speaker.canvas import SIZE
from diffsynth_omniavatar.nano.speaker.clips import draw_clip, write_clips
from diffsynth_omniavatar.nano.speaker.drawing import render
from diffsynth_omniavatar.nano.speaker.identity import detailed, draw_identity
from diffsynth_omniavatar.nano.speaker.lively import liven
from diffsynth_omniavatar.nano.speaker.motion import draw_motion, moved

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

UNDECIDED = "roll", "lids", "gaze", "turn", "nod", "left_brow", "right_brow", "smile"
"""Tracks of a motion."""


def motions(count, frames=100, sways=False):
    for seed in range(count):
        plain = draw_motion(np.random.default_rng(seed), frames, sways=sways)
        yield liven(plain, np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2]), sways=sways)


def correlation(one, other):
    return float(np.corrcoef(one, other)[0, 1])


@pytest.fixture(scope="module")
def clips(futures):
    return [row[0] for row in futures]


def test_sound_mouth_and_prompt_are_those_of_the_plain_clip(clips):
    clip, plain = clips[1], draw_clip(3, 34, split="evaluation")
    assert plain.prompt == clip.prompt and plain.identity.look == clip.identity.look
    for name in ("waveform", "openness", "width", "phonemes"):
        assert np.array_equal(getattr(plain, name), getattr(clip, name)), name
    assert np.array_equal(plain.motion.x, clip.motion.x)
    assert plain.identity.texture is None and clip.identity.texture is not None
    for name in ("gaze_down", "turn", "nod", "left_brow", "right_brow", "smile"):
        assert not getattr(plain.motion, name).any(), name


def test_plain_clips_are_what_the_shipped_weights_were_trained_on():
    """Mean brightness in sixteen squares of a clip, as it was before there were lively ones."""
    frames = draw_clip(0, 3, split="train").frames
    recorded = [
        [220.673, 214.333, 214.667, 220.799],
        [208.69, 161.094, 159.397, 208.811],
        [201.524, 140.939, 141.977, 203.863],
        [196.299, 150.837, 152.359, 196.873],
    ]
    assert np.allclose(frames.reshape(3, 4, 32, 4, 32, 3).mean(axis=(0, 2, 4, 5)), recorded, atol=2e-3)


def test_another_future_begins_with_the_same_frame_and_goes_on_in_another_way(futures):
    for clip, other, *_ in futures:
        assert np.array_equal(clip.frames[0], other.frames[0]) and np.array_equal(clip.waveform, other.waveform)
        assert not np.array_equal(clip.frames[-1], other.frames[-1])
    plain = [draw_clip(1, 3, split="train", future=future).frames for future in (0, 1)]
    assert np.array_equal(*plain)


def test_no_move_follows_another_clips_future():
    """Same beginnings, other futures: after 2 s nothing is left of what they had in common."""
    plain = draw_motion(np.random.default_rng(0), 100, sways=False)
    for name in UNDECIDED:
        pairs = []
        for seed in range(60):
            drawn = [
                liven(plain, np.random.default_rng([seed, 1]), np.random.default_rng([seed, future]), sways=False)
                for future in (2, 3)
            ]
            pairs.append([getattr(motion, name)[60:] - getattr(plain, name)[60:] for motion in drawn])
        one, other = np.array(pairs).transpose(1, 0, 2)
        assert one.std() > 0, name
        assert abs(correlation(one.ravel(), other.ravel())) < 0.25, name


def test_eyes_rest_at_the_sides_and_jump():
    gaze = np.stack([motion.gaze for motion in motions(60)])
    assert np.mean(np.abs(gaze) > 3.5) > 0.75 and np.mean((np.abs(gaze) > 0.5) & (np.abs(gaze) < 3.5)) == 0
    jumps = np.abs(np.diff(gaze, axis=1))
    assert 0.03 < np.mean(jumps > 3) < 0.2 and not ((jumps > 0) & (jumps < 3)).any()


def test_lips_are_read_as_well_as_those_of_a_plain_clip(clips):
    for clip in clips:
        openness, width = measure_mouth(clip.frames)
        assert correlation(openness, clip.openness) > 0.99 and correlation(width, clip.width) > 0.99
        assert np.abs(openness - clip.openness).max() < 0.05 and np.abs(width - clip.width).max() < 0.05


def test_what_speech_changes_lies_inside_the_mouth_mask():
    """Wherever the head is, turned and nodding as far as it goes."""
    kept = load_mouth_mask(None, SIZE, SIZE)[0].numpy() == 1
    openness, width = np.array([0, 1, 1], np.float32), np.array([0.5, 0, 1], np.float32)
    limits = {
        name: max(np.abs(getattr(motion, name)).max() for motion in motions(40, sways=True))
        for name in ("x", "y", "roll", "turn", "nod", "smile")
    }
    for seed in range(2):
        identity = detailed(draw_identity(np.random.default_rng(seed), split="train"), np.random.default_rng(seed))
        for side in (-1, 1):
            for way in (-1, 1):
                at = {name: limit * (way if name in ("x", "turn") else side) for name, limit in limits.items()}
                frames = render(identity, openness, width, moved(3, **at)).astype(int)
                changed = (frames != frames[:1]).any(axis=(0, 3))
                assert changed.any() and not (changed & kept).any(), at


def test_written_clips_are_lively(tmp_path):
    table = write_clips(tmp_path, [3], 5, split="train", lively=True)
    with table.open(newline="") as content:
        (row,) = csv.DictReader(content)
    assert row["prompt"] == draw_clip(3, 5, split="train").prompt
    shown = measure_face(read_frames(tmp_path / row["video"]).numpy())
    assert np.allclose(shown.gaze, draw_clip(3, 5, split="train", lively=True).motion.gaze, atol=1)
