"""What is wrong with an input of `omniavatar generate` is told before the model is loaded, in words of the caller."""

import numpy as np
import pytest
import soundfile
from PIL import Image
from synthetic_clips import noise, write_levels

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.generation import loading
from diffsynth_omniavatar.generation.inputs import read_inputs
from diffsynth_omniavatar.generation.request import RequestError, TalkRequest
from diffsynth_omniavatar.model.config import Conventions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    Image.new("RGB", (64, 64), "grey").save(folder / "face.png")
    soundfile.write(folder / "speech.wav", noise(0.4).samples[0], 16000)
    soundfile.write(folder / "silent.wav", np.zeros(16000, np.float32), 16000)
    write_levels(folder / "film.mp4", 12, 64)
    (folder / "no_sound.wav").write_bytes(b"RIFF")
    (folder / "folder.mp4").mkdir()
    (folder / "samples.txt").write_text("a@@face.png@@speech.wav\nb@@film.mp4@@speech.wav\n@@face.png@@speech.wav\n")
    return folder


GOOD = {"prompt": "a", "image": "face.png", "audio": "speech.wav", "out": "talk.mp4"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prompt": " "}, "--prompt"),
        ({"image": "film.mp4"}, "--image: film.mp4 is a video"),
        ({"image": "speech.wav"}, "--image: speech.wav"),
        ({"audio": "face.png"}, "--audio: face.png"),
        ({"audio": "silent.wav"}, "--audio: silent.wav: the sound is silent"),
        ({"audio": "no_sound.wav"}, "--audio: no_sound.wav"),
        ({"video": "film.mp4"}, "--video needs a V2V checkpoint"),
        ({"out": "folder.mp4"}, "--out folder.mp4 is a folder"),
        ({"out": "face.png/talk.mp4"}, "is a file, wanted a folder"),
        ({"out": "talk.avi"}, "--out talk.avi"),
        ({"height": "64"}, "both --height and --width"),
        ({"height": "500", "width": "500"}, "multiples of 16, such as 496x496"),
        ({"overlap": "12"}, "--overlap is 12"),
        ({"overlap": "133"}, "--overlap: "),
        ({"max_tokens": "0"}, "--max_tokens is 0"),
        ({"silence": "-1"}, "--silence is -1"),
        ({"silence": "inf"}, "--silence is inf, wanted 0 to 3600"),
        ({"silence": "1e9"}, "--silence is 1000000000.0"),
        ({"seed": "99999999999999999999"}, "--seed is 99999999999999999999"),
        ({"prompt": "a\ud800"}, "--prompt has half of a surrogate pair"),
        ({"tea_cache_model_id": "Wan"}, "--tea_cache_model_id is 'Wan', wanted one of Wan2.1-T2V-1.3B"),
        ({"mouth_mask": "face.png"}, "--mouth_mask needs a V2V checkpoint"),
        ({"reference_video": "film.mp4"}, "--reference_video needs a checkpoint with 65 channels"),
        ({"out": "~/talk.mp4"}, "begins with ~"),
        ({"out": "/proc/talk.mp4"}, "/proc cannot be written"),
        ({"models_folder": "nowhere"}, "--models_folder: nowhere is no folder"),
        ({"models_folder": "."}, "vae: vae.safetensors"),
        ({"vae": "face.png"}, "vae: face.png is no file of tensors"),
        ({"text_encoder": "folder.mp4"}, "text_encoder: folder.mp4 is no file"),
        ({"tokenizer": "folder.mp4"}, "tokenizer: folder.mp4 is no folder with tokenizer.json"),
        ({"wav2vec2": "folder.mp4"}, "wav2vec2: folder.mp4 is no folder with a config.json"),
        ({"steps": "0"}, "--steps is 0"),
        ({"steps": "-3"}, "--steps is -3"),
        ({"cfg_scale": "nan"}, "--cfg_scale is nan"),
        ({"crf": "99"}, "--crf is 99"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_told_before_the_model_is_loaded(folder, monkeypatch, capsys, wrong, told):
    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(loading, "load_pipeline", loaded)
    flags = [word for name, value in {**GOOD, **wrong}.items() for word in (f"--{name}", value)]
    before = sorted(folder.iterdir())
    assert cli.main(["generate", "--model", "nano", *flags]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("omniavatar: error: ") and told in said
    assert sorted(folder.iterdir()) == before


def test_a_video_for_dubbing_is_asked_for_before_the_model_is_loaded(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    flags = [word for name, value in GOOD.items() for word in (f"--{name}", value)]
    assert cli.main(["generate", "--model", "nano-v2v", *flags]) == 2
    assert "V2V checkpoint, which changes the mouth of a video: give --video" in capsys.readouterr().err


def test_python_is_told_of_arguments(folder):
    with pytest.raises(RequestError, match="give both height and width, or neither; overlap is 2, wanted 1, 5"):
        TalkRequest(prompt="a", image="face.png", audio="speech.wav", out="talk.mp4", height=64, overlap=2)
    request = TalkRequest(prompt="a", image=folder / "film.mp4", audio=folder / "speech.wav", out="talk.mp4")
    with pytest.raises(RequestError, match=r"^image: .*film.mp4 is a video"):
        read_inputs(request, 33, Conventions())
