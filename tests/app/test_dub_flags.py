"""Every flag of `omniavatar dub` arrives at its request, and what is wrong is told before the model is loaded."""

import argparse
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from drawn_faces import still, write_faces
from synthetic_clips import noise, write_levels

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.app import dub as command
from diffsynth_omniavatar.app.model_flags import MODEL_FLAGS
from diffsynth_omniavatar.generation import dub as making
from diffsynth_omniavatar.generation import loading
from diffsynth_omniavatar.generation.dub_request import DubRequest
from diffsynth_omniavatar.generation.result import DubbedVideo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    soundfile.write(folder / "speech.wav", noise(0.4).samples[0], 16000)
    soundfile.write(folder / "silent.wav", np.zeros(16000, np.float32), 16000)
    write_levels(folder / "film.mp4", 8, 96)
    write_faces(folder / "faces.jsonl", still(0, 8, 30, 50, 36), still(0, 8, 70, 50, 36))
    (folder / "bad.jsonl").write_text("{}\n")
    (folder / "folder.mp4").mkdir()
    return folder


GOOD = {"audio": "speech.wav", "out": "out.mp4", "detections": "faces.jsonl", "model": "nano-v2v"}


def words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def test_the_flags_are_the_requests_own_fields():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    others = {"help", "config", "show_progress", "model", "models_folder", "lora"}
    flags = {action.dest for action in parser._actions} - others
    fields = {field.name for field in dataclasses.fields(DubRequest)}
    assert flags - set(MODEL_FLAGS) == fields


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"model": "nano"}, "animates a portrait (33 channels); --video needs a V2V checkpoint"),
        ({"audio": "silent.wav"}, "--audio: silent.wav: the sound is silent"),
        ({"out": "folder.mp4"}, "--out folder.mp4 is a folder"),
        ({"out": "film.mp4"}, "--out film.mp4 is the file of --video too"),
        ({"face": "3"}, "--face 3 is not there; the video has 1 (left, 36 pixels, 0.0-0.3 s); 2 ("),
        ({"detections": "bad.jsonl"}, "--detections: bad.jsonl, line 1: lacks frame, faces"),
        ({"detections": "none.jsonl"}, "--detections: "),
        ({"extend": "never"}, "--extend is 'never'"),
        ({"keep_audio": "20"}, "--keep_audio is '20'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_before_the_model_is_loaded(folder, monkeypatch, capsys, wrong, told):
    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(loading, "load_pipeline", loaded)
    before = sorted(folder.iterdir())
    assert cli.main(["dub", "film.mp4", *words({**GOOD, **wrong})]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("omniavatar: error: ") and told in said
    assert sorted(folder.iterdir()) == before


def test_flags_arrive_and_the_config_gives_way(folder, monkeypatch, capsys):
    arrived = []

    def fake_dub(pipe, request, inputs, show_progress, on_preview):
        arrived.append((request, inputs, show_progress))
        return DubbedVideo(folder / "out.mp4", 1, 2, 3, 4, 5, 6.0)

    pipe = SimpleNamespace(is_first_process=True, torch_dtype=torch.float32, device="cpu")
    pipe.dit = SimpleNamespace(config=SimpleNamespace(has_masked_video=True))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: pipe)
    monkeypatch.setattr(making, "dub", fake_dub)
    flags = {"keep_audio": "-6dB", "steps": 3, "audio": ["a.wav", "b.wav"], "face": ["left", "right"], "crf": 20}
    (folder / "dub.json").write_text(json.dumps(flags))
    assert cli.parse(["dub", "film.mp4", "--keep_audio", "-20dB"]).keep_audio == "-20dB"
    chosen = ["--face", "1", "--audio", "speech.wav", "--steps", "4", "--no-show_progress"]
    given = words({name: GOOD[name] for name in ("out", "detections", "model")})
    assert cli.main(["dub", "film.mp4", *given, *chosen, "--config", "dub.json"]) == 0
    ((request, inputs, shown),) = arrived
    assert (request.faces, request.sounds, request.steps, request.crf) == (["1"], ["speech.wav"], 4, 20)
    assert request.keep_audio == "-6dB" and not shown and inputs.dubbed == 10
    printed, told = capsys.readouterr()
    assert "out.mp4: 1 frames of 3x2, " in printed, "width first, as in the line before"
    assert "film.mp4: 96x96, 25 frames/s, 0.32 s" in told and "10 of 10 frames get a new mouth; 1 chunk" in told
