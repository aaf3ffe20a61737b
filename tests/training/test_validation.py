"""Validation data is read before training; a video that fails later costs nothing but itself."""

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

from diffsynth_omniavatar.generation.samples import Sample, read_sample
from diffsynth_omniavatar.metrics.clip import ClipFiles
from diffsynth_omniavatar.metrics.evaluate import ClipResult, Evaluation
from diffsynth_omniavatar.metrics.networks import Networks
from diffsynth_omniavatar.training import validation, validation_metrics
from diffsynth_omniavatar.training.module import ENCODERS
from diffsynth_omniavatar.training.validation import Validation
from diffsynth_omniavatar.training.validation_metrics import load_metrics
from diffsynth_omniavatar.training.validation_samples import ValidationSample, read_validation_samples


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "face.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "face.png").read_bytes()[:40])
    soundfile.write(tmp_path / "speech.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    return tmp_path


def test_spaces_around_fields_do_not_count(inputs):
    line = f" a man. @@ {inputs / 'face.png'} @@ {inputs / 'speech.wav'} "
    assert read_sample(line) == Sample("a man.", inputs / "face.png", inputs / "speech.wav")
    (inputs / "val.txt").write_text(f"\n{line}\n")
    assert read_validation_samples(inputs / "val.txt", is_v2v=False) == [
        ValidationSample("a man.", inputs / "face.png", inputs / "speech.wav")
    ]


def test_all_faults_are_listed_by_line(inputs):
    names = [("face", "silent"), ("broken", "speech"), ("face", "speech"), ("broken", "gone")]
    lines = [f"x@@{inputs / image}.png@@{inputs / sound}.wav" for image, sound in names]
    (inputs / "val.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError) as caught:
        read_validation_samples(inputs / "val.txt", is_v2v=False)
    told = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in told] == ["line 1", "line 2", "line 4"]
    assert "silent" in told[0] and "cannot be read as an image" in told[1] and "gone.wav is not there" in told[2]
    with pytest.raises(ValueError, match=r"face\.png"):
        (inputs / "val.txt").write_text(lines[2])
        read_validation_samples(inputs / "val.txt", is_v2v=True)  # it is no video


def make_validation(tmp_path: Path, *, sharded: bool) -> Validation:
    pipe = SimpleNamespace(**dict.fromkeys(ENCODERS, True))
    return Validation(
        module=SimpleNamespace(pipe=pipe, encoders_on_device=nullcontext),
        accelerator=SimpleNamespace(share=range, is_main_process=True, is_sharded=sharded),
        samples=[ValidationSample(prompt, tmp_path, tmp_path) for prompt in ("bad", "good")],
        folder=tmp_path,
        steps=1,
        metrics=[lambda video, sample: {"letters": len(sample.prompt)}],
    )


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("out of memory"), OSError("disk full")])
def test_a_video_that_fails_is_logged_and_the_others_are_made(tmp_path, monkeypatch, caplog, error):
    def generate(_: Validation, sample: ValidationSample, out: Path) -> SimpleNamespace:
        if sample.prompt == "bad":
            raise error
        return SimpleNamespace(path=out, frames=5, seconds=1.0)

    monkeypatch.setattr(Validation, "generate", generate)
    monkeypatch.setattr(validation, "gather_object", lambda made: made)
    with caplog.at_level(logging.INFO):
        result = make_validation(tmp_path, sharded=False)(3)
    assert result.videos == [tmp_path / "step-3" / "001.mp4"] and result.metrics["validation_letters"] == 4
    assert f"step-3/000.mp4 failed, training goes on: {type(error).__name__}: {error}" in caplog.text
    with pytest.raises(type(error)):
        make_validation(tmp_path, sharded=True)(3)


@pytest.mark.parametrize("is_v2v", [False, True])
def test_groups_of_figures_tell_once_what_a_video_lacks(tmp_path, monkeypatch, caplog, is_v2v):
    """The portrait and the reference are the sample's; what is not a number is left out."""
    asked = []

    def evaluate(clips: list[ClipFiles], groups: list[str], networks: Networks) -> Evaluation:
        asked.extend(clips)
        values = {"frozen_share": 0.5, "csim": float("nan")}
        lacks = {"lips": "there is no face in any frame"}
        return Evaluation(clips=[ClipResult(files=clips[0], values=values, curves={}, missing=lacks)])

    monkeypatch.setattr(validation_metrics, "evaluate", evaluate)
    (metric,) = load_metrics("stability,lips", Networks(), is_v2v=is_v2v)
    sample = ValidationSample("x", tmp_path / "face.png", tmp_path / "a.wav", tmp_path / "real.mp4")
    video = SimpleNamespace(path=tmp_path / "000.mp4")
    assert [metric(video, sample) for _ in range(2)] == [{"frozen_share": 0.5}] * 2
    portrait = None if is_v2v else sample.picture
    assert asked[0] == ClipFiles(generated=video.path, reference=sample.reference, portrait=portrait)
    assert caplog.text.count("has no figures of lips: there is no face in any frame") == 1
