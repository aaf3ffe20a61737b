"""Clips made together equal clips made one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth_omniavatar.generation.generate import generate
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.video import read_frames
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.nano.batch import Sampling, Take, generate_batch
from diffsynth_omniavatar.nano.speaker.canvas import SIZE
from diffsynth_omniavatar.nano.stage import load_family


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
            timesteps=sampling.timesteps, solver=sampling.solver, match_colours=sampling.match_colours,
            show_progress=False, **more,
        )  # fmt: skip
    finally:
        generate.__globals__["VideoWriter"] = before
    return np.concatenate(written)


def evaluate_bytes(frames):
    if not frames.is_floating_point():
        return frames.numpy()
    return (frames.float().add(1).mul(127.5).round().clamp(0, 255)).to(torch.uint8).numpy()


@pytest.mark.parametrize(
    ("leading", "settings"),
    [
        (0, {"steps": 1, "cfg_scale": 2.0, "audio_cfg_scale": 3.0}),
        pytest.param(
            1,
            {"steps": 2, "timesteps": (1000, 400), "solver": "renoise", "cfg_scale": 1.0, "audio_cfg_scale": 2.0},
            marks=pytest.mark.one_host("the other case runs on both hosts"),
        ),
    ],
)
@pytest.mark.slow
def test_two_clips_at_once_equal_each_alone(pipe, clips, tmp_path, monkeypatch, leading, settings):
    monkeypatch.setattr(pipe, "conventions", replace(pipe.conventions, leading_audio_rows=leading))
    sampling = Sampling(**settings, seed=5)
    takes = takes_of(clips[:2], 12)  # two chunks
    together = generate_batch(pipe, takes, sampling)
    assert together.shape == (2, 12 + leading, SIZE, SIZE, 3)
    alone = one_by_one(pipe, takes[1], sampling, 1005, tmp_path / "v.mp4")
    # float32 sums in another order move a value over the edge of a byte, in few places and by one
    assert np.abs(together[1].astype(int) - alone).max() <= 1
    assert np.abs(together[0].astype(int) - alone).max() > 20


@pytest.mark.one_host("I2V's batch runs on both hosts, and so does V2V without it")
@pytest.mark.slow
def test_v2v_clips_at_once_equal_each_alone(folder, clips, tmp_path):
    pipe = load_family(folder, "v2v", "cpu")
    with VideoWriter(tmp_path / "source.mp4", SIZE, SIZE, crf=0) as writer:
        writer.write(torch.from_numpy(clips[0].frames[:12]))
    source = read_frames(tmp_path / "source.mp4").numpy()
    sampling = Sampling(steps=1, cfg_scale=1.0)
    take = replace(takes_of(clips[:1], 13)[0], video=source)
    together = generate_batch(pipe, [take], sampling)[0]
    alone = one_by_one(pipe, take, sampling, 0, tmp_path / "v.mp4", video=tmp_path / "source.mp4")
    assert np.abs(together.astype(int) - alone).max() <= 1


@pytest.mark.one_host("of the batch alone; that it equals `generate` is tested on both hosts")
def test_without_features_the_sound_changes_nothing(pipe, clips, quick_decoder):
    sampling = Sampling(steps=1, cfg_scale=1.0)
    takes = takes_of(clips[:1], 9), takes_of([replace(clips[0], waveform=clips[1].waveform)], 9)
    quiet = [generate_batch(pipe, take, sampling, mute=True) for take in takes]
    loud = [generate_batch(pipe, take, sampling) for take in takes]
    assert np.array_equal(*quiet) and not np.array_equal(*loud)
