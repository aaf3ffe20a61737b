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
from diffsynth_omniavatar.metrics.measure import ClipResult, Measuring, Seen
from diffsynth_omniavatar.metrics.networks import Networks
from diffsynth_omniavatar.training import validation, validation_metrics
from diffsynth_omniavatar.training.module import ENCODERS
from diffsynth_omniavatar.training.validation import Validation
from diffsynth_omniavatar.training.validation_metrics import GroupFigures, load_metrics
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

    def measure(self: Measuring, files: ClipFiles) -> Seen:
        asked.append(files)
        values = {"frozen_share": 0.5, "csim": float("nan")}
        lacks = dict.fromkeys(("lips", "motion"), "there is no face in any frame")
        return Seen(result=ClipResult(files=files, values=values, curves={}, missing=lacks))

    monkeypatch.setattr(Measuring, "__call__", measure)
    (metric,) = load_metrics("stability,lips", Networks(), is_v2v=is_v2v)
    sample = ValidationSample("x", tmp_path / "face.png", tmp_path / "a.wav", tmp_path / "real.mp4")
    video = SimpleNamespace(path=tmp_path / "000.mp4")
    assert [metric(video, sample) for _ in range(2)] == [{"frozen_share": 0.5}] * 2
    portrait = None if is_v2v else sample.picture
    assert asked[0] == ClipFiles(generated=video.path, reference=sample.reference, portrait=portrait)
    assert caplog.text.count("has no figures of lips, motion: there is no face in any frame") == 1


def test_distances_are_of_the_videos_of_all_processes_in_order(tmp_path, monkeypatch):
    """They see the videos of process 1 (here) and of process 0, which has the first sample."""
    taken = []
    together = SimpleNamespace(
        take=lambda seen: taken.append(seen["fid"]), results=lambda: [("fid", float(len(taken)))]
    )
    monkeypatch.setattr(validation_metrics, "load_networks", lambda *_: None)
    monkeypatch.setattr(validation_metrics, "Together", lambda names, networks: together if names == ["fid"] else None)
    monkeypatch.setattr(
        Validation, "generate", lambda self, sample, out: SimpleNamespace(path=out, frames=5, seconds=1)
    )
    result = ClipResult(files=ClipFiles(generated=tmp_path), values={"psnr": 20.0}, curves={}, missing={})
    monkeypatch.setattr(Measuring, "__call__", lambda self, files: Seen(result=result, together={"fid": "b"}))
    other = validation._Made(tmp_path / "other.mp4", {"psnr": 30.0}, {"fid": "a"})
    monkeypatch.setattr(validation, "gather_object", lambda made: [*made, {0: other}])
    validate = make_validation(tmp_path, sharded=False)
    validate.accelerator.share = lambda count: [1]
    validate.metrics = [*validate.metrics, GroupFigures(["fid", "picture"], Networks(), is_v2v=False)]
    metrics = validate(1).metrics
    assert taken == ["a", "b"] and metrics["validation_psnr"] == 25
    assert metrics["validation_fid"] == 2 and "validation_fid_face" not in metrics
