"""`--lora`: a run of generate with the small model, the line about it, and what is told before anything is loaded."""

import json

import pytest
import soundfile
import torch
from safetensors.torch import save_file
from synthetic_clips import portrait, speech

from diffsynth_omniavatar.app import cli, console, doctor
from diffsynth_omniavatar.app.model_flags import named_loras
from diffsynth_omniavatar.generation import loading
from diffsynth_omniavatar.media.video import read_frames
from diffsynth_omniavatar.model.small_family import NANO

Q, WIDTH = "blocks.0.self_attn.q", NANO.dit.dim


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    portrait(128).save(folder / "face.png")
    soundfile.write(folder / "speech.wav", speech(0.2), 16000)
    generator = torch.Generator().manual_seed(0)
    parts = {"down": (4, WIDTH), "up": (WIDTH, 4)}
    tensors = {f"lora_unet_{Q.replace('.', '_')}.lora_{name}.weight": torch.randn(size, generator=generator)
               for name, size in parts.items()}  # fmt: skip
    save_file(tensors | {"what": torch.ones(1)}, folder / "my:lora.safetensors")
    return folder


def flags(folder, out, *more):
    inputs = ["--prompt", "a", "--image", folder / "face.png", "--audio", folder / "speech.wav", "--out", out]
    small = [
        "--height",
        "64",
        "--width",
        "64",
        "--max_tokens",
        "36",
        "--silence",
        "0",
        "--overlap",
        "5",
        "--steps",
        "1",
        "--cfg_scale",
        "1",
    ]
    words = ["generate", "--model", "nano", "--device", "cpu", *inputs, *small, "--no-show_progress", *more]
    return [str(word) for word in words]


def test_generate_with_a_lora_is_another_video(folder, capsys):
    lora = folder / "my:lora.safetensors"
    videos = {}
    for name, more in {"plain": [], "with": ["--lora", f"{lora}:0.5"]}.items():
        assert cli.main(flags(folder, folder / f"{name}.mp4", *more)) == 0, capsys.readouterr().err
        videos[name] = torch.as_tensor(read_frames(folder / f"{name}.mp4")).float()
    said = capsys.readouterr().err
    assert f"LoRA {lora} with strength 0.5: LoRA of 1 tensor, rank 4, no alpha (scale 1), in 1 block." in said
    assert "Not used: 1 unknown key: what." in said
    assert not torch.equal(videos["plain"], videos["with"])


def test_a_wrong_file_is_told_before_the_model_is_loaded(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    save_file(
        {f"{Q}.lora_A.weight": torch.ones(4, 5), f"{Q}.lora_B.weight": torch.ones(WIDTH, 4)}, tmp_path / "a.safetensors"
    )
    for lora, said in [
        ("no.pt:0.5", "LoRA no.pt is not there"),
        (tmp_path / "a.safetensors", f"changed by [{WIDTH}, 5]"),
    ]:
        assert cli.main(flags(folder, tmp_path / "a.mp4", "--lora", lora)) == 2
        assert said in capsys.readouterr().err


def test_several_and_those_of_a_config_file(tmp_path):
    config = tmp_path / "talk.json"
    config.write_text(json.dumps({"lora": ["a.pt:0.5", "b.pt"]}))
    args = cli.parse(["generate", "--config", str(config)])
    assert named_loras(args) == [("a.pt", 0.5), ("b.pt", 1.0)]
    args = cli.parse(["generate", "--lora", r"C:\c.pt:2", "--config", str(config), "--lora", "d.pt"])
    assert named_loras(args) == [(r"C:\c.pt", 2.0), ("d.pt", 1.0)]
    config.write_text(json.dumps({"lora": "a.pt:0.5"}))
    assert named_loras(cli.parse(["dub", "v.mp4", "--config", str(config)])) == [("a.pt", 0.5)]
    assert named_loras(cli.parse(["dub", "v.mp4"])) == []


def test_doctor_tells_what_a_lora_changes(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_gpus", lambda model: iter(()))
    assert cli.main(["doctor", "--lora", f"{folder / 'my:lora.safetensors'}:0.5"]) == 0
    said = capsys.readouterr().out
    assert "my:lora.safetensors: LoRA of 1 tensor, rank 4, no alpha (scale 1), in 1 block; it fits nano" in said
    assert "it changes self_attn.q" in said and "nothing is known of them: what" in said
    assert cli.main(["doctor", "--model", "1.3B", "--lora", str(folder / "my:lora.safetensors")]) == console.FAILED
    assert f"is changed by [{WIDTH}, {WIDTH}], the model's is [1536, 1536]" in capsys.readouterr().out
    large = {
        f"{Q}.lora_A.weight": torch.ones(4, 5120),
        f"{Q}.lora_B.weight": torch.ones(5120, 4),
        f"{Q}.dora_scale": torch.ones(5120, 1),
        "k_img.diff_b": torch.ones(1),
        "patch_embedding.diff": torch.ones(1),
    }
    save_file(large, tmp_path / "a.safetensors")
    assert cli.main(["doctor", "--lora", str(tmp_path / "a.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "DoRA LoRA of 1 tensor" in said and "it fits 14B" in said and "1 key of image-to-video models" in said
    assert "own patch embedding: patch_embedding.diff" in said and "a DoRA: it works only" in said
    (tmp_path / "b.pt").write_text("x")
    assert cli.main(["doctor", "--lora", str(tmp_path / "b.pt")]) == console.FAILED
