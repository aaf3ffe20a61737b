"""The command `omniavatar`: what it does to files, what it answers to mistakes, and what an interrupt leaves."""

import dataclasses
import inspect
import json
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import soundfile
import torch
from synthetic_clips import portrait, speech

from diffsynth_omniavatar.app import cli, console, doctor
from diffsynth_omniavatar.app.generate import INPUT_FLAGS, SETTING_FLAGS
from diffsynth_omniavatar.app.model_flags import MODEL_FLAGS
from diffsynth_omniavatar.generation import loading
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.request import TalkRequest
from diffsynth_omniavatar.media.sound import load_sound
from diffsynth_omniavatar.media.video import probe_video, read_frames
from diffsynth_omniavatar.model import files
from diffsynth_omniavatar.model.checkpoint import CheckpointError, load_checkpoint
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.nano.family import write_random_family

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--steps", "1", "--overlap", "5", "--cfg_scale", "1", "--no-show_progress", "--device", "cpu"]


def run(*arguments):
    """Run the command in this process; gives the exit code."""
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with a small family of 9 frames of 64x64 a chunk, a portrait, and half a second of sound."""
    folder = tmp_path_factory.mktemp("cli")
    write_random_family(folder / "model", conventions=Conventions(image_sizes=((64, 64),), max_tokens=36))
    portrait(96).save(folder / "face.png")
    soundfile.write(folder / "speech.wav", speech(0.5), 16000)
    return folder


def generate_flags(inputs, out):
    model = ["--models_folder", inputs / "model"]
    return [
        *model,
        "--prompt",
        "a",
        "--image",
        inputs / "face.png",
        "--audio",
        inputs / "speech.wav",
        "--out",
        out,
        *FAST,
    ]


# ------------------------------------------------------------------------------------------------------------ the flags


def test_help_imports_no_torch():
    code = (
        "import runpy, sys\n"
        "for sys.argv[1:] in (['--help'], ['generate', '--help']):\n"
        "    try:\n        runpy.run_module('diffsynth_omniavatar', run_name='__main__')\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "print([name for name in ('torch', 'diffsynth', 'numpy', 'av') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "generate" in done.stdout and "demo" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_tells_what_is_installed(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--version")
    line = capsys.readouterr().out
    for name in ("diffsynth-omniavatar", "diffsynth", "torch"):
        assert f"{name.split('-')[-1]} {metadata.version(name)}" in line
    assert line.startswith("omniavatar ") and line.count("\n") == 1


def test_flags_are_the_functions_own_arguments():
    loads = inspect.signature(loading.load_pipeline).parameters
    makes = {field.name: field for field in dataclasses.fields(TalkRequest)}
    assert set(MODEL_FLAGS) == set(loads) - {"model", "folder", "lora", "loras", "in_dim"}
    assert set(INPUT_FLAGS) | set(SETTING_FLAGS) == {*makes, "show_progress"}
    for name, (kind, text) in SETTING_FLAGS.items():
        default = makes[name].default if name in makes else None
        if not isinstance(default, (str, bool)) and default is not None:
            assert f"(default: {default})" in text and kind is type(default)


def test_command_line_goes_before_config(tmp_path):
    config = tmp_path / "talk.yaml"
    config.write_text(
        "steps: 25\nseed: 7\ntiled: false\ndit: [a, b]\nprompt: '-- a: b'\nheight: null\nsigma_shift: 3e0\n"
    )
    args = cli.parse(["generate", "--seed", "8", "--config", str(config)])
    assert (args.steps, args.seed, args.tiled, args.dit) == (25, 8, False, ["a", "b"])
    assert (args.prompt, args.sigma_shift) == ("-- a: b", 3.0)
    assert not hasattr(args, "height") and not hasattr(args, "crf")
    config = tmp_path / "talk.json"
    config.write_text(json.dumps({"tiled": True, "model": "1.3B", "out_folder": "x"}))
    args = cli.parse(["generate", "--no-tiled", "--config", str(config)])
    assert (args.tiled, args.model, args.out_folder) == (False, "1.3B", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stepz: 3\nsteps: 2\ndebug: true\n", "unknown keys debug, stepz"),
        ("tiled: 3\n", "tiled is 3, wanted true or false"),
        ("steps: many\n", "invalid int value: 'many'"),
        ("a: [\n", "is not valid YAML"),
        ("- steps\n", "holds a list"),
    ],
)
def test_bad_config_is_refused(tmp_path, capsys, content, message):
    config = tmp_path / "talk.yaml"
    config.write_text(content)
    with pytest.raises(SystemExit) if "invalid" in message else pytest.raises(ValueError, match=message):
        cli.parse(["generate", "--config", str(config)])
    if "invalid" in message:
        assert message in capsys.readouterr().err
        return
    assert run("generate", "--config", config) == console.WRONG_INPUT
    assert message in capsys.readouterr().err


def test_mistakes_take_one_line(tmp_path, inputs, capsys):
    for arguments, message in [
        (["generate"], "--prompt, --audio, --out missing"),
        (["generate", *generate_flags(inputs, tmp_path / "a.mp4"), "--image", "no.png"], "no.png is not there"),
        (["dub", ".", "--audio", "a.wav", "--out", "b.mp4"], ". is a folder, wanted a file"),
        (["generate", *generate_flags(inputs, tmp_path / "a.mp4"), "--models_folder", tmp_path], "doctor"),
        (
            ["generate", *generate_flags(inputs, tmp_path / "a.mp4"), "--video", inputs / "face.png"],
            "needs a V2V checkpoint",
        ),
        (["generate", *generate_flags(inputs, tmp_path / "a.avi")], "must end in .mp4"),
        (["generate", *generate_flags(inputs, tmp_path / "a.mp4"), "--vram_limit", "8"], "no GPU memory to limit"),
        (
            ["generate", *generate_flags(inputs, tmp_path / "a.mp4"), "--vram_limit", "8", "--compile"],
            "--compile does not go with --vram_limit 8",
        ),
        (["generate", *generate_flags(inputs, tmp_path / "a.mp4"), "--use_usp"], "start with `torchrun"),
        (["generate", "--input_file", "x.txt", "--prompt", "a"], "--input_file replaces --prompt"),
        (["generate", "--input_file", tmp_path / "x.txt"], "No such file"),
        (["convert", inputs / "face.png", tmp_path / "x", "--to", "omniavatar"], "no file of tensors"),
    ]:
        assert run(*arguments) == console.WRONG_INPUT
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("omniavatar: error: ") and message in error
        assert not list(tmp_path.glob("*.mp4"))
    with pytest.raises(CheckpointError):
        run("convert", inputs / "face.png", tmp_path / "x", "--to", "omniavatar", "--debug")


# ------------------------------------------------------------------------------------------------------------- generate


def test_generate_makes_a_video_with_sound(tmp_path, inputs, capsys):
    out = tmp_path / "new" / "talk.mp4"
    size = ["--height", "64", "--width", "96", "--max_tokens", "54"]
    assert run("generate", *generate_flags(inputs, out), *size, "--silence", "0") == 0
    info = probe_video(out)
    assert (info.frames, info.height, info.width, info.has_sound) == (14, 64, 96, True)  # 13 rows of sound, 1 in front
    assert f"{out}: 14 frames of 64x96" in capsys.readouterr().out


def test_input_file_reports_bad_lines_and_makes_the_others(tmp_path, inputs, capsys):
    face, speech = inputs / "face.png", inputs / "speech.wav"
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    samples = tmp_path / "samples.txt"
    samples.write_text(f"one@@{face}@@{speech}\n\ntwo@@{face}\nthree@@{face}@@{broken}\nfour@@no.png@@{speech}\n")
    arguments = ["--models_folder", inputs / "model", "--input_file", samples, "--out_folder", tmp_path / "out", *FAST]
    assert run("generate", *arguments) == console.FAILED
    captured = capsys.readouterr()
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["001_speech.mp4"]
    for line, reason in [(3, "got 2 fields"), (4, "broken.wav"), (5, "no.png is not there")]:
        assert any(f"line {line}: " in error and reason in error for error in captured.err.splitlines())
    assert "1 of 4 videos" in captured.out


def test_merged_checkpoint_is_the_same_model_and_needs_no_base(tmp_path, inputs):
    merged = tmp_path / "merged.safetensors"
    base = inputs / "model" / files.SMALL_FAMILY["dit"]
    assert run("convert", inputs / "model" / "omniavatar", merged, "--to", "merged", "--base", base) == 0
    no_base = ["--omniavatar", merged, "--dit", tmp_path / "none.safetensors"]
    assert run("generate", *generate_flags(inputs, tmp_path / "merged.mp4"), *no_base) == 0
    fused = loading.load_pipeline(folder=inputs / "model", device="cpu").dit.state_dict()
    loaded = loading.load_pipeline(folder=inputs / "model", omniavatar=merged, device="cpu").dit.state_dict()
    assert set(fused) == set(loaded) and all(torch.equal(fused[name], loaded[name]) for name in fused)


@pytest.mark.slow
def test_v2v_checkpoint_takes_a_video(tmp_path, inputs):
    grown = tmp_path / "v2v"
    assert run("convert", inputs / "model" / "omniavatar", grown, "--to", "omniavatar", "--in_dim", "49") == 0
    assert run("generate", *generate_flags(inputs, tmp_path / "face.mp4")) == 0
    samples = tmp_path / "samples.txt"
    samples.write_text(f"one@@{tmp_path / 'face.mp4'}@@{inputs / 'speech.wav'}\n")
    arguments = ["--models_folder", inputs / "model", "--omniavatar", grown, "--input_file", samples]
    out = tmp_path / "out"
    options = [*FAST, "--aligned", "--first_frame", "masked"]
    assert run("generate", *arguments, "--out_folder", out, *options) == 0
    assert probe_video(out / "001_speech.mp4").frames == 14


def test_what_the_host_prints_while_it_loads_is_shown_by_debug_alone(tmp_path, inputs, capfd):
    arguments = ["generate", *generate_flags(inputs, tmp_path / "a.mp4")]
    assert run(*arguments) == 0
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1 and "model: I2V, float32 on cpu, loaded in" in printed.err
    assert run(*arguments, "--debug") == 0
    assert "wan_video_vae" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_interrupt_leaves_a_playable_video(tmp_path, inputs, capsys, monkeypatch, number):
    """Ctrl-C, `kill` or a closed terminal while the third chunk is made."""
    out, sound = tmp_path / "long.mp4", tmp_path / "long.wav"
    soundfile.write(sound, speech(1.0), 16000)
    chunks, make = [], OmniAvatarPipeline.__call__

    def make_two(pipe, *args, **kwargs):
        chunks.append(1)
        if len(chunks) == 3:
            signal.raise_signal(number)
        return make(pipe, *args, **kwargs)

    monkeypatch.setattr(OmniAvatarPipeline, "__call__", make_two)
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # a shell's background job, or nohup, ignores some
    try:
        code = run("generate", *generate_flags(inputs, out), "--audio", sound, "--silence", "0")
    finally:
        signal.signal(number, before)
    said = capsys.readouterr().err
    assert code == 128 + number and len(chunks) == 3
    assert f"{out} has the part that was done and can be played" in said and "Traceback" not in said
    info = probe_video(out)
    assert info.frames == 9 + 4 and info.has_sound  # chunks of 9 that share 5
    assert len(read_frames(out)) == info.frames
    assert load_sound(out).duration == pytest.approx(info.frames / 25, abs=0.1)
    assert not list(tmp_path.glob(".long.*"))


def test_interrupt_before_the_first_chunk_says_so(tmp_path, inputs, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["diffsynth_omniavatar.generation.generate"], "generate", interrupted)
    out = tmp_path / "old.mp4"
    out.write_bytes(b"of an earlier run")
    assert run("generate", *generate_flags(inputs, out)) == 130
    assert "not even the first chunk was done" in capsys.readouterr().err
    assert out.read_bytes() == b"of an earlier run"


# ------------------------------------------------------------------------------------------------------- other commands


def test_convert_there_and_back_keeps_the_model(tmp_path, inputs, capsys):
    original = load_checkpoint(inputs / "model" / "omniavatar")
    assert run("convert", inputs / "model" / "omniavatar", tmp_path / "lora.safetensors", "--to", "lora") == 0
    assert run("convert", tmp_path / "lora.safetensors", tmp_path / "back", "--to", "omniavatar") == 0
    assert f"Wrote {tmp_path / 'back' / 'pytorch_model.pt'}" in capsys.readouterr().out
    back = load_checkpoint(tmp_path / "back")
    assert back.config.conventions == original.config.conventions and back.config.model == original.config.model
    assert set(back.tensors) == set(original.tensors)
    for name, tensor in original.tensors.items():  # the scale is 1/2, so folding it into B is exact
        scale = original.config.lora.scale if name.endswith("lora_B.weight") else 1
        assert torch.equal(scale * tensor, back.tensors[name])
    assert back.config.lora.scale == 1


def test_doctor_names_what_is_there_and_what_is_missing(tmp_path, inputs, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_gpus", lambda model: iter(()))
    assert run("doctor", "--models_folder", inputs / "model", "--omniavatar", inputs / "model" / "omniavatar") == 0
    report = capsys.readouterr().out
    assert "No problem found." in report and "LoRA of rank 4, alpha 2" in report and "33 input channels" in report
    assert "generation wan_video" in report and "libx264" in report
    (tmp_path / "wav2vec2-base-960h").mkdir()
    assert run("doctor", "--model", "1.3B", "--models_folder", tmp_path) == console.FAILED
    report = capsys.readouterr().out
    assert f"hf download Wan-AI/Wan2.1-T2V-1.3B --local-dir {tmp_path / 'Wan2.1-T2V-1.3B'}" in report
    assert report.count("PROBLEM") == 5 and "5 problems." in report
    assert run("doctor", "--omniavatar", inputs / "face.png") == console.FAILED


@pytest.mark.parametrize("version", ["2.0.0", None])
def test_doctor_works_on_an_unsupported_host(capsys, monkeypatch, version):
    installed = doctor.importlib.metadata.version

    def fake_version(name):
        if name != "diffsynth":
            return installed(name)
        if version is None:
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(doctor.importlib.metadata, "version", fake_version)
    assert run("doctor") == console.FAILED
    report = capsys.readouterr().out
    assert f"DiffSynth-Studio {version or 'is not installed'}" in report
    assert "fix  `pip install 'diffsynth>=2.1,<2.2'`" in report
