"""Figures tell a perfect video from another's."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.metrics.picture import psnr
from diffsynth_omniavatar.metrics.sync import best_lag, correlation
from diffsynth_omniavatar.nano import evaluate, figures, stage
from diffsynth_omniavatar.nano.batch import Sampling, encode_videos, pixels
from diffsynth_omniavatar.nano.measure import measure_mouth
from diffsynth_omniavatar.nano.regions import MOUTH_SIDE, background, mouth_region, static_region
from diffsynth_omniavatar.nano.speaker.clips import draw_clip
from diffsynth_omniavatar.nano.speaker.drawing import FACE, MOUTH, render
from diffsynth_omniavatar.nano.speaker.motion import still
from diffsynth_omniavatar.nano.validation import validation_loss

pytestmark = pytest.mark.one_host("figures of videos; that both hosts make the same videos is tested elsewhere")


def test_the_speakers_own_frames_are_perfect_and_anothers_are_not(clips):
    clip = clips[0]
    openness, width = measure_mouth(clip.frames)
    assert correlation(openness, clip.openness) > 0.98 and correlation(width, clip.width) > 0.98
    assert best_lag(openness, clip.openness) == 0
    others = [correlation(measure_mouth(other.frames)[0], clip.openness) for other in clips[1:]]
    assert max(others) < 0.75 and np.mean(others) < 0.5


def test_static_regions_stay_while_a_person_speaks_and_cover_much_of_the_picture(clips):
    lively = draw_clip(2, 40, split="evaluation", sways=False, lively=True)
    for clip in (*clips, lively):
        where = static_region(clip.identity)
        assert 0.4 - 0.15 * (clip is lively) < where.mean() < 0.9
        assert psnr(clip.frames, clip.frames[0], where) > 37
        assert psnr(clip.frames, clip.frames[0], ~where) < 30
        wall = background()
        assert psnr(clip.frames, clip.frames[0], wall) > 60


@pytest.mark.parametrize("drop", [0.0, 8.0])
def test_the_mouth_region_holds_the_mouth_wherever_it_is(clips, drop):
    identity = replace(clips[0].identity, mouth_drop=drop)
    spread = np.ones(2, np.float32)
    closed, opened = render(identity, np.array([0.0, 1.0]), spread, still(2)).astype(int)
    changed = np.abs(opened - closed).max(axis=-1) > 60
    where = mouth_region(identity)
    assert not (changed & ~where).any() and where.sum() == MOUTH_SIDE**2
    rows = np.nonzero(changed & where)[0]
    assert abs(rows.mean() - (FACE[1] + MOUTH + drop + 5)) < 2  # of 26 pixels, 70 % open downwards


def test_validation_loss_is_repeatable_and_falls_towards_the_truth(pipe, clips):
    short = [replace(clip, frames=clip.frames[:5], waveform=clip.waveform[: 5 * 640]) for clip in clips[:3]]
    draws = {"draws": 2}
    loss = validation_loss(pipe, short, **draws)
    assert loss == validation_loss(pipe, short, **draws)
    assert loss != validation_loss(pipe, short, seed=1, **draws)

    model_fn = pipe.model_fn
    latents = {}

    def perfect(latents, timestep, **_):
        sigma = timestep / 1000
        return (latents - perfect.clean) / sigma

    perfect.clean = encode_videos(pipe, pixels([clip.frames for clip in short]))
    pipe.model_fn = lambda dit, **inputs: perfect(**{**latents, **inputs})
    try:
        assert validation_loss(pipe, short, **draws) < 1e-8 < loss
    finally:
        pipe.model_fn = model_fn


@pytest.mark.slow
def test_the_table_of_random_weights_has_every_figure(folder, tmp_path, monkeypatch, capsys, quick_decoder):
    monkeypatch.setattr(figures, "FRAMES", 9)
    monkeypatch.setattr(figures, "GUIDANCE", (1.0, 2.0))
    taken = figures.evaluate_nano(
        tmp_path, family=folder, clips=2, sampling=Sampling(steps=1, cfg_scale=2.0), device="cpu", lively=True,
        long_seconds=1,
        groups=[name for name in figures.GROUPS if name != "speed"],
    )  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == len(taken) >= 30
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [figure["name"] for figure in written["figures"]] == [figure.name for figure in taken]
    assert not all(figure.ok for figure in taken)
    for plot in tmp_path.glob("*.svg"):
        ElementTree.parse(plot)
    assert (tmp_path / "v2v_1.mp4").is_file()


def test_real_frames_in_place_of_generated_ones_reach_the_goals(folder, tmp_path, monkeypatch):
    """The figures of sync and swap are right in their alignment: what the sounds' own clips show passes."""
    shown = {}

    def perfect(pipe, takes, sampling, *, batch, mute=False):
        leading = pipe.conventions.leading_audio_rows
        return [np.concatenate([take.portrait[None]] * leading + [shown[take.waveform.tobytes()]]) for take in takes]

    monkeypatch.setattr(stage, "generate_takes", perfect)
    drawn = figures.draw_clip

    def draw(seed, frames, **options):
        clip = drawn(seed, frames, **options)
        shown[clip.waveform.tobytes()] = clip.frames
        return clip

    monkeypatch.setattr(figures, "draw_clip", draw)
    taken = figures.evaluate_nano(tmp_path, family=folder, clips=6, groups=["sync", "swap"], device="cpu")
    assert all(figure.ok for figure in taken), [figure for figure in taken if not figure.ok]
    assert (tmp_path / "openness.svg").is_file()


class DrawnStage:
    """A stage whose VAE changes nothing, and that shows what it is given in place of generated videos."""

    leading, lively, seeds = 0, True, (1, 3, 5)
    workers = staticmethod(lambda work, items: [work(item) for item in items])

    def __init__(self, clips, shown):
        self.clips, self.shown = clips, shown

    def generate(self, name, takes):
        return self.shown

    def plot(self, name, series, **labels):
        assert all(sum(shares) == pytest.approx(1, abs=0.1) for shares in series.values())

    def encode(self, videos):
        """Each channel is a latent frame's every eighth pixel, of every fourth frame."""
        return torch.from_numpy(np.stack(videos))[:, ::4, ::8, ::8, :1].permute(0, 4, 1, 2, 3).repeat(1, 16, 1, 1, 1)

    def decode(self, latents):
        return self.kept.pop(0)


@pytest.mark.slow
def test_other_futures_are_near_the_floor_and_stills_and_means_are_not(monkeypatch, futures):
    monkeypatch.setattr(figures, "FRAMES", 33)
    drawn = dict(zip(DrawnStage.seeds, futures, strict=True))
    monkeypatch.setattr(figures, "_draw", lambda seed, lively, future: drawn[seed][future])
    frames = [[clip.frames[:33] for clip in clips] for clips in zip(*futures, strict=True)]
    mean = [np.mean(clip, axis=0).round().astype(np.uint8) for clip in zip(*frames, strict=True)]
    still = [np.repeat(clip[:1], len(clip), axis=0) for clip in frames[0]]
    met = {}
    for name, shown in (("future", frames[4]), ("mean", mean), ("still", still)):
        stage = DrawnStage([of_seed[0] for of_seed in futures], shown)
        stage.kept = [list(clips) for clips in frames[:4]]
        taken = list(figures.figures_distributions(stage))
        met[name] = {figure.name.split(":")[0]: bool(figure.ok) for figure in taken}
    assert np.mean(list(met["future"].values())) > 0.85
    assert not met["mean"]["sharpness of the eyes"] and not met["mean"]["share of gaze between targets"]
    assert not met["still"]["head's speed (pixels a second)"] and not met["still"][figures.LATENTS]


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"figures \['distributions'\]; .* with --lively also distributions"):
        figures.evaluate_nano(tmp_path, clips=2, groups=["distributions"])
    with pytest.raises(ValueError, match=r"1 clips and figures \['lips'\]; wanted at least 2, and some of sync"):
        figures.evaluate_nano(tmp_path, clips=1, groups=["lips"])


def test_the_flags_of_sampling_arrive(tmp_path, monkeypatch):
    """Those of a preset, those given beside it, and else the shipped weights' own."""
    taken = []
    monkeypatch.setattr(evaluate, "evaluate_nano", lambda *_, sampling, **__: taken.append(sampling) or [])
    for flags in ([], ["--sampler", "fastwan", "--cfg_scale", "2"], ["--steps", "4", "--solver", "renoise"]):
        assert cli.main(["evaluate", "--nano", "--out", str(tmp_path), "--seed", "5", *flags]) == 0
    settings = [(sampling.steps, sampling.solver, sampling.cfg_scale, sampling.seed) for sampling in taken]
    assert settings == [(10, "euler", 1.0, 5), (3, "renoise", 2.0, 5), (4, "renoise", 1.0, 5)]
    assert [sampling.match_colours for sampling in taken] == [True] * 3
