"""Long videos are measured chunk by chunk, and what drifts in them is told."""

import json
import weakref

import numpy as np
import pytest

from diffsynth_omniavatar.nano import figures, long_videos
from diffsynth_omniavatar.nano.long_videos import WINDOW, windows
from diffsynth_omniavatar.nano.speaker.clips import draw_clip

pytestmark = pytest.mark.one_host("figures of videos; that both hosts make the same videos is tested elsewhere")

SECONDS, CLIPS = 2, 2


def test_a_clip_of_which_little_is_drawn_is_the_same_clip():
    whole, first = (draw_clip(3, 6, split="evaluation", lively=True, shown=shown) for shown in (None, 1))
    assert np.array_equal(first.frames, whole.frames[:1])
    for name in ("waveform", "openness", "width"):
        assert np.array_equal(getattr(first, name), getattr(whole, name))


@pytest.mark.parametrize(("seconds", "count", "length"), [(300, 10, 750), (310, 10, 750), (20, 4, 125), (1, 4, 6)])
def test_windows_are_half_a_minute_or_a_quarter_and_end_with_the_video(seconds, count, length):
    places = windows(25 * seconds)
    assert WINDOW == 30 and len(places) == count
    assert {place.stop - place.start for place in places} == {length}
    assert places[-1].stop == 25 * seconds and places[0].start == 25 * seconds - count * length


@pytest.fixture(scope="module")
def drawn():
    """The frames of the clips by their sound."""
    seeds = range(figures.LONG_SEED, figures.LONG_SEED + CLIPS)
    clips = [draw_clip(seed, 25 * SECONDS, split="evaluation", sways=False) for seed in seeds]
    return {clip.waveform.tobytes(): clip.frames for clip in clips}


def measured(folder, out, drawn, monkeypatch, spoil):
    """The figures of the drawn clips themselves, in chunks of 20 frames, spoilt by a function of place and frames."""
    alive = []

    def chunks(pipe, takes, sampling):
        shown = np.stack([drawn[take.waveform.tobytes()] for take in takes])
        leading = pipe.conventions.leading_audio_rows
        shown = np.concatenate([np.repeat(shown[:, :1], leading, axis=1), shown], axis=1)
        for start in range(0, shown.shape[1], 20):
            chunk = spoil(start, shown[:, start : start + 20].copy())
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk
            assert sum(one() is not None for one in alive) <= 1  # memory does not grow with the length

    monkeypatch.setattr(long_videos, "generate_chunks", chunks)
    taken = figures.evaluate_nano(
        out, family=folder, clips=CLIPS, groups=["long"], device="cpu", long_seconds=SECONDS, batch=2
    )
    return {figure.name.partition(": ")[2]: figure for figure in taken}


def fading(start, frames):
    """Frames after the first second are 3 of 255 darker, with half the contrast."""
    return frames if start < 20 else (frames.astype(np.float32) / 2 + frames.mean() / 2 - 3).astype(np.uint8)


def test_true_frames_reach_all_goals_and_fading_ones_miss_them(folder, tmp_path, drawn, monkeypatch):
    true = measured(folder, tmp_path / "true", drawn, monkeypatch, lambda _, frames: frames)
    assert len(true) == 5 and all(figure.ok for figure in true.values()), true
    assert true["colour drift of the wall (of 255)"].value < 0.01
    faded = measured(folder, tmp_path / "faded", drawn, monkeypatch, fading)
    missed = [name for name, figure in faded.items() if not figure.ok]
    assert {name.partition(" ")[0] for name in missed} >= {"colour", "static", "sharpness"}
    (sharp,) = (name for name in true if name.startswith("sharpness"))
    assert faded[sharp].value / true[sharp].value == pytest.approx(0.5, abs=0.02)
    assert json.loads((tmp_path / "true" / "figures.json").read_text())["settings"]["long_seconds"] == SECONDS
    assert (tmp_path / "true" / "long_1.mp4").is_file()
