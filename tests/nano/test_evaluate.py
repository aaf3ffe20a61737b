"""Figures tell a perfect video from another's; clips made together equal clips made one by one."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from stand_in import write_nano_like_family

from diffsynth_omniavatar.generation.generate import generate
from diffsynth_omniavatar.media.clip import Sound, VideoWriter
from diffsynth_omniavatar.metrics.plots import line_plot
from diffsynth_omniavatar.nano import evaluate
from diffsynth_omniavatar.nano.batch import Sampling, Take, generate_batch
from diffsynth_omniavatar.nano.evaluate import best_lag, colour_drift, correlation, drift_at_end, psnr, static_region
from diffsynth_omniavatar.nano.measure import measure_mouth
from diffsynth_omniavatar.nano.speaker.clips import draw_clip
from diffsynth_omniavatar.nano.speaker.drawing import SIZE


@pytest.fixture(scope="module")
def clips():
    return [draw_clip(seed, 40, split="evaluation", sways=False) for seed in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_nano_like_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def pipe(folder):
    return evaluate.load_family(folder, "i2v", "cpu")


# Figures


@pytest.mark.parametrize("lag", [-4, -1, 0, 1, 3])
def test_the_lag_of_a_shifted_curve_is_found(clips, lag):
    truth = draw_clip(0, 90, split="evaluation").openness
    shifted = np.roll(truth, lag)[8:-8]
    assert best_lag(shifted, truth[8:-8]) == lag
    assert correlation(shifted, truth[8:-8]) < 0.999 or lag == 0


def test_a_correlation_is_that_of_numpy_and_zero_where_nothing_moves(clips):
    one, other = clips[0].openness, clips[1].openness
    assert correlation(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1], abs=1e-6)
    assert correlation(np.full(40, 0.3), one) == 0 and correlation(np.full(40, np.nan), one) == 0
    gaps = np.where(np.arange(40) % 4 == 0, np.nan, one)
    assert 0.3 < correlation(gaps, one) < 0.99


def test_the_speakers_own_frames_are_perfect_and_anothers_are_not(clips):
    clip = clips[0]
    openness, width = measure_mouth(clip.frames)
    assert correlation(openness, clip.openness) > 0.98 and correlation(width, clip.width) > 0.98
    assert best_lag(openness, clip.openness) == 0
    others = [correlation(measure_mouth(other.frames)[0], clip.openness) for other in clips[1:]]
    assert max(others) < 0.75 and np.mean(others) < 0.5


def test_static_regions_stay_while_a_person_speaks_and_cover_much_of_the_picture(clips):
    for clip in clips:
        where = static_region(clip.identity)
        assert 0.4 < where.mean() < 0.9
        assert psnr(clip.frames, clip.frames[0], where) > 37
        assert psnr(clip.frames, clip.frames[0], ~where) < 30
        wall = evaluate.background()
        assert psnr(clip.frames, clip.frames[0], wall) > 60


def test_psnr_is_that_of_known_noise():
    reference = np.full((2, 8, 8, 3), 100, np.uint8)
    everywhere = np.ones((8, 8), bool)
    assert psnr(reference + 5, reference, everywhere) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(reference + 5, reference[0], everywhere) == pytest.approx(20 * np.log10(255 / 5))


def test_the_drift_of_a_constant_is_found():
    frames = np.full((100, 8, 8, 3), 50, np.uint8)
    frames[..., 1] += (np.arange(100) // 10).astype(np.uint8)[:, None, None]
    frames[:, :4] = np.random.default_rng(0).integers(0, 255, (100, 4, 8, 3))
    where = np.zeros((8, 8), bool)
    where[4:] = True
    drift = colour_drift(frames, where)
    assert np.allclose(drift[:, [0, 2]], 0) and drift[-1, 1] == pytest.approx(9 - 0.8, abs=0.2)
    assert drift_at_end(frames, where) == pytest.approx(drift[-25:, 1].mean())


def test_validation_loss_is_repeatable_and_falls_towards_the_truth(pipe, clips):
    short = [replace(clip, frames=clip.frames[:5], waveform=clip.waveform[: 5 * 640]) for clip in clips[:3]]
    draws = {"draws": 2}
    loss = evaluate.validation_loss(pipe, short, **draws)
    assert loss == evaluate.validation_loss(pipe, short, **draws)
    assert loss != evaluate.validation_loss(pipe, short, seed=1, **draws)

    model_fn = pipe.model_fn
    latents = {}

    def perfect(latents, timestep, **_):
        sigma = timestep / 1000
        return (latents - perfect.clean) / sigma

    perfect.clean = evaluate.encode_videos(pipe, evaluate.pixels([clip.frames for clip in short]))
    pipe.model_fn = lambda dit, **inputs: perfect(**{**latents, **inputs})
    try:
        assert evaluate.validation_loss(pipe, short, **draws) < 1e-8 < loss
    finally:
        pipe.model_fn = model_fn


# Clips made together


def takes_of(clips, frames, **more):
    return [
        Take(prompt=clip.prompt, portrait=clip.frames[0], waveform=clip.waveform[: frames * 640], **more)
        for clip in clips
    ]


def one_by_one(pipe, take, sampling, seed, out, **more):
    """The frames that `generate` gives to its writer."""
    written = []

    class Writer(VideoWriter):
        def write(self, frames):
            written.append(evaluate_bytes(frames))
            super().write(frames)

    before = generate.__globals__["VideoWriter"]
    generate.__globals__["VideoWriter"] = Writer
    try:
        generate(
            pipe, prompt=take.prompt, image=Image.fromarray(take.portrait), audio=Sound(take.waveform[None], 16000),
            out=out, silence=0.0, seed=seed, negative_prompt=sampling.negative_prompt, steps=sampling.steps,
            cfg_scale=sampling.cfg_scale, audio_cfg_scale=sampling.audio_cfg_scale,
            match_colours=sampling.match_colours, show_progress=False, **more,
        )  # fmt: skip
    finally:
        generate.__globals__["VideoWriter"] = before
    return np.concatenate(written)


def evaluate_bytes(frames):
    return (frames.float().add(1).mul(127.5).round().clamp(0, 255)).to(torch.uint8).numpy()


@pytest.mark.parametrize("leading", [0, 1])
def test_two_clips_at_once_equal_each_alone(pipe, clips, tmp_path, monkeypatch, leading):
    monkeypatch.setattr(pipe, "conventions", replace(pipe.conventions, leading_audio_rows=leading))
    sampling = Sampling(steps=1, cfg_scale=2.0, audio_cfg_scale=3.0, seed=5)
    takes = takes_of(clips[:2], 12)  # two chunks
    together = generate_batch(pipe, takes, sampling)
    assert together.shape == (2, 12 + leading, SIZE, SIZE, 3)
    alone = one_by_one(pipe, takes[1], sampling, 1005, tmp_path / "v.mp4")
    # float32 sums in another order move a value over the edge of a byte, in few places and by one
    assert np.abs(together[1].astype(int) - alone).max() <= 1
    assert np.abs(together[0].astype(int) - alone).max() > 20


def test_v2v_clips_at_once_equal_each_alone(folder, clips, tmp_path):
    pipe = evaluate.load_family(folder, "v2v", "cpu")
    with VideoWriter(tmp_path / "source.mp4", SIZE, SIZE, crf=0) as writer:
        writer.write(torch.from_numpy(clips[0].frames[:12]))
    source = evaluate.read_frames(tmp_path / "source.mp4").numpy()
    sampling = Sampling(steps=1, cfg_scale=1.0)
    take = replace(takes_of(clips[:1], 13)[0], video=source)
    together = generate_batch(pipe, [take], sampling)[0]
    alone = one_by_one(pipe, take, sampling, 0, tmp_path / "v.mp4", video=tmp_path / "source.mp4")
    assert np.abs(together.astype(int) - alone).max() <= 1


def test_without_features_the_sound_changes_nothing(pipe, clips):
    sampling = Sampling(steps=1, cfg_scale=1.0)
    takes = takes_of(clips[:1], 9), takes_of([replace(clips[0], waveform=clips[1].waveform)], 9)
    quiet = [generate_batch(pipe, take, sampling, mute=True) for take in takes]
    loud = [generate_batch(pipe, take, sampling) for take in takes]
    assert np.array_equal(*quiet) and not np.array_equal(*loud)


# The whole table


def test_the_table_of_random_weights_has_every_figure(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "FRAMES", 9)
    monkeypatch.setattr(evaluate, "LONG_FRAMES", 13)
    monkeypatch.setattr(evaluate, "GUIDANCE", (1.0, 2.0))
    figures = evaluate.evaluate_nano(
        tmp_path, family=folder, clips=2, sampling=Sampling(steps=1, cfg_scale=2.0), device="cpu",
        groups=[name for name in evaluate.GROUPS if name != "speed"],
    )  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == len(figures) >= 17
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [figure["name"] for figure in written["figures"]] == [figure.name for figure in figures]
    assert not all(figure.ok for figure in figures)
    for plot in tmp_path.glob("*.svg"):
        ElementTree.parse(plot)
    assert (tmp_path / "v2v_1.mp4").is_file()


def test_real_frames_in_place_of_generated_ones_reach_the_goals(folder, tmp_path, monkeypatch):
    """The figures of sync and swap are right in their alignment: what the sounds' own clips show passes."""
    shown = {}

    def perfect(pipe, takes, sampling, *, batch, mute=False):
        leading = pipe.conventions.leading_audio_rows
        return [np.concatenate([take.portrait[None]] * leading + [shown[take.waveform.tobytes()]]) for take in takes]

    monkeypatch.setattr(evaluate, "generate_takes", perfect)
    drawn = evaluate.draw_clip

    def draw(seed, frames, **options):
        clip = drawn(seed, frames, **options)
        shown[clip.waveform.tobytes()] = clip.frames
        return clip

    monkeypatch.setattr(evaluate, "draw_clip", draw)
    figures = evaluate.evaluate_nano(tmp_path, family=folder, clips=6, groups=["sync", "swap"], device="cpu")
    assert all(figure.ok for figure in figures), [figure for figure in figures if not figure.ok]
    assert (tmp_path / "openness.svg").is_file()


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1 clips and figures \['lips'\]; wanted at least 2, and some of sync"):
        evaluate.evaluate_nano(tmp_path, clips=1, groups=["lips"])


def test_a_plot_has_a_path_for_each_curve_and_gaps():
    svg = line_plot({"a": [0, 1, float("nan"), 2], "b<": [3, 3, 3, 3]}, title="t", x_label="x", y_label="y", level=2.5)
    root = ElementTree.fromstring(svg)
    paths = [element.get("d") for element in root.iter("{http://www.w3.org/2000/svg}path")]
    curves = [path for path in paths if "L" in path]
    assert len(curves) == 2 and curves[0].count("M") == 2
    with pytest.raises(ValueError, match="no finite value"):
        line_plot({"a": [float("nan")]}, title="t", x_label="x", y_label="y")
    with pytest.raises(ValueError, match=r"curves of \[1, 2\] values"):
        line_plot({"a": [1], "b": [1, 2]}, title="t", x_label="x", y_label="y")
