"""Every flag of `omniavatar generate`, on the command line or in a config file, arrives at the function it is for."""

import argparse
import inspect
import json
from types import SimpleNamespace

import pytest
import soundfile
import torch
from PIL import Image
from synthetic_clips import noise

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.app import generate as command
from diffsynth_omniavatar.generation import inputs, loading
from diffsynth_omniavatar.generation.generate import generate
from diffsynth_omniavatar.generation.result import GeneratedVideo
from diffsynth_omniavatar.model.config import CheckpointConfig

FLAGS = {
    "model": "1.3B",
    "models_folder": "weights",
    "dit": ["a.safetensors", "b.safetensors"],
    "text_encoder": "t5.pth",
    "vae": "vae.pth",
    "tokenizer": "umt5",
    "omniavatar": "omni",
    "wav2vec2": "wav2vec2",
    "device": "cuda:1",
    "dtype": "float16",
    "vram_limit": 8.5,
    "compile": True,
    "quantize": "fp8",
    "keep_bf16": "first,ffn.2",
    "quantize_attention": True,
    "stream_weights": True,
    "use_usp": True,
    "cfg_parallel": "off",
    "shard_weights": True,
    "download_source": "modelscope",
    "checkpoint_preset": "lipforcing_teacher",
    "leading_audio_rows": 0,
    "first_frame": "masked",
    "prompt": "a dog",
    "image": "other.png",
    "video": "source.mp4",
    "audio": "other.wav",
    "out": "other.mp4",
    "negative_prompt": "a cat",
    "mouth_mask": "mask.png",
    "reference_video": "reference.mp4",
    "height": 400,
    "width": 720,
    "max_tokens": 9000,
    "aligned": True,
    "crop_portrait": True,
    "paste_source": False,
    "overlap": 5,
    "match_colours": True,
    "silence": 0.0,
    "sampler": "lightx2v4",
    "steps": 2,
    "timesteps": "1000,500",
    "sigma_shift": 3.5,
    "solver": "renoise",
    "cfg_scale": 2.5,
    "audio_cfg_scale": 6.5,
    "apg_eta": 0.5,
    "guidance_rescale": 0.7,
    "guidance_from": 0.25,
    "guidance_to": 0.75,
    "seed": 7,
    "tiled": False,
    "tea_cache_l1_thresh": 0.14,
    "tea_cache_model_id": "Wan2.1-T2V-14B",
    "crf": 18,
    "preview": "preview.png",
    "show_progress": False,
}
"""Flag -> a value that is not its default."""
OF_MANY = {"input_file", "out_folder"}
OF_THE_COMMAND = {"help", "debug", "config", "lora"}
"""The last has tests in test_lora_flags."""


@pytest.fixture
def arrived(tmp_path, monkeypatch):
    """Runs the command in a folder with inputs; gives the arguments of each video, of both functions, by name."""
    monkeypatch.chdir(tmp_path)
    for name in ("face.png", "other.png", "speech.wav", "other.wav", "source.mp4"):
        (tmp_path / name).touch()
    calls, channels = [], []

    def fake_load(*args, **arguments):
        bound = loads.bind(*args, **arguments)
        bound.apply_defaults()
        config = SimpleNamespace(has_masked_video=channels[0] > 33)
        return SimpleNamespace(
            is_first_process=True,
            dit=SimpleNamespace(config=config),
            arguments=bound.arguments,
            torch_dtype=torch.float32,
            device="cpu",
        )

    def fake_generate(pipe, request, show_progress, on_preview):
        folder = pipe.arguments["folder"]
        calls.append({**pipe.arguments, "models_folder": folder, **vars(request), "show_progress": show_progress})
        return GeneratedVideo(request.out, 1, 2, 3, 4, 5, 6.0)

    loads = inspect.signature(loading.load_pipeline)
    monkeypatch.setattr(loading, "load_pipeline", fake_load)
    monkeypatch.setattr(command, "facts", lambda *_: CheckpointConfig(in_dim=channels[0]))
    monkeypatch.setattr(inputs, "read_inputs", lambda *_: SimpleNamespace(image=None))
    monkeypatch.setattr(inspect.getmodule(generate), "generate", fake_generate)

    def run(*words, of_channels=33):
        calls.clear()
        channels[:] = [of_channels]
        assert cli.main(["generate", *words]) == 0
        return calls

    return run


COMMON = {"prompt": "a", "image": "face.png", "audio": "speech.wav", "out": "talk.mp4"}


def words(flags):
    """A command line."""
    for name, value in flags.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        else:
            yield from (f"--{name}", *map(str, value if isinstance(value, list) else [value]))


def test_every_flag_of_generate_is_looked_at():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    names = {action.dest for action in parser._actions}
    assert names - OF_THE_COMMAND == set(FLAGS) | OF_MANY


@pytest.mark.parametrize("way", ["command line", "config"])
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_of_generate_arrives(arrived, tmp_path, name, way):
    """With it its value, without it another; all other arguments stay as they are."""
    value = FLAGS[name]
    sides = {"height": 512, "width": 512} if name in ("height", "width") else {}
    (before,) = [dict(call) for call in arrived(*words({**COMMON, **sides}))]
    if way == "command line":
        (after,) = arrived(*words({**COMMON, **sides, name: value}))
    else:
        others = {key: given for key, given in {**COMMON, **sides}.items() if key != name}
        (tmp_path / "talk.json").write_text(json.dumps({name: value}))
        (after,) = arrived(*words(others), "--config", "talk.json")
    same = {"models_folder", "folder"} if name == "models_folder" else {name}
    changed = {key for key in after if key != "pipe" and after[key] != before[key]}
    assert after[name] == value and type(after[name]) is type(value) and changed == same


@pytest.mark.parametrize(("channels", "source"), [(33, "image"), (49, "video")])
def test_flags_of_many_videos_arrive_with_each(arrived, tmp_path, channels, source):
    (tmp_path / "samples.txt").write_text("one@@face.png@@speech.wav\ntwo@@other.png@@other.wav\n")
    settings = {name: FLAGS[name] for name in command.SETTING_FLAGS}
    many = {"input_file": "samples.txt", "out_folder": "made"}
    calls = arrived(*words({**many, **settings, "device": "cpu"}), of_channels=channels)
    found = [(call["prompt"], str(call[source]), str(call["audio"]), str(call["out"])) for call in calls]
    assert found == [
        ("one", "face.png", "speech.wav", "made/001_speech.mp4"),
        ("two", "other.png", "other.wav", "made/002_other.mp4"),
    ]
    for call in calls:
        assert {name: call[name] for name in settings} == settings and call["device"] == "cpu"
        assert call["image" if source == "video" else "video"] is None


def test_a_portrait_without_a_face_is_told_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    def fake_load(*_, **__):
        raise ValueError("the model is loaded")

    monkeypatch.setattr(loading, "load_pipeline", fake_load)
    monkeypatch.setattr(command, "facts", lambda *_: CheckpointConfig(in_dim=33))
    Image.new("RGB", (64, 64)).save(tmp_path / "tree.png")
    soundfile.write(tmp_path / "speech.wav", noise(0.5).samples[0], 16000)
    files = {"image": tmp_path / "tree.png", "audio": tmp_path / "speech.wav", "out": tmp_path / "a.mp4"}
    assert cli.main(["generate", *words({"prompt": "a", **files})]) == 2
    warning, loaded = capsys.readouterr().err.splitlines()
    assert f"warning: --image {tmp_path / 'tree.png'}: No face is found." in warning
    assert "the model is loaded" in loaded


def test_an_unknown_flag_is_named_with_the_one_that_was_meant(capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(["generate", "--stepz", "3"])
    assert end.value.code == 2
    assert "unknown flags: --stepz 3; did you mean --steps? (see omniavatar generate --help)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.parse(["dub", "one.mp4", "other.mp4"])
    assert "unknown arguments: other.mp4 (see" in capsys.readouterr().err
