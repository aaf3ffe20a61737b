"""Cheap mistakes are told before anything is loaded, and a refused run leaves the output folder as it was."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from training_runs import flags, write_inputs

from diffsynth_omniavatar.training import first_checks, run
from diffsynth_omniavatar.training.flags import FlagError
from diffsynth_omniavatar.training.load import loading

RUN = {"seed": 7, "gradient_accumulation_steps": 1, "processes": 1, "samples": 2}
"""Of a run with the flags of `training_runs`."""


LOSS = ["--validation_loss_data", "clips.csv", "--validation_steps", "1"]
VIDEOS = ["--validation_data", "videos.txt", "--validation_steps", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("checks"))


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    for name in ("load_training_pipeline", "load_auxiliary"):
        monkeypatch.setattr(run, name, lambda *_: pytest.fail("something was loaded"))


def content(folder):
    return {path.relative_to(folder): path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


def checkpoint(output, step, state):
    (output / f"step-{step}").mkdir(parents=True)
    torch.save(state, output / f"step-{step}" / "loop.pt")
    (output / "config.yaml").write_text("max_steps: 3\n")
    (output / "training_args.json").write_text("{}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--save_steps", "0"], "--save_steps is 0, wanted at least 1"),
        (["--seed", str(2**65)], "--seed is 36893488147419103232"),
        (["--lora_alpha", "nan"], "--lora_alpha is nan, wanted more than 0"),
        (["--output_path", ""], "--output_path is empty"),
        (["--height", "31", "--width", "32"], "--height and --width are 31x32, wanted multiples of 16"),
        (["--validation_num_inference_steps", "0"], "--validation_num_inference_steps is 0"),
        (["--checkpoints_total_limit", "0"], "--checkpoints_total_limit is 0"),
        (["--log_steps", "0"], "--log_steps is 0"),
        (["--lora_rank", "0"], "--lora_rank is 0"),
        (["--learning_rate", "nan"], "--learning_rate is nan"),
        (["--text_drop_prob", "1.5"], "--text_drop_prob is 1.5, wanted 0 to 1"),
        (["--max_steps", "many"], "argument --max_steps: invalid int value: 'many'"),
        (["--model_paths", "[1"], r"--model_paths \[1 is not valid JSON"),
        (["--model_paths", '["nowhere.safetensors"]'], r"--model_paths: nowhere\.safetensors does not exist"),
        (["--model_paths", '{"a": 1}'], "--model_paths .* is a dict, wanted a list"),
        (["--wav2vec2_path", "nowhere"], "--wav2vec2_path nowhere does not exist"),
        (["--tokenizer_path", "nowhere"], "--tokenizer_path nowhere does not exist"),
        (["--use_sync_loss", "--syncnet_path", "nowhere.pt"], r"--syncnet_path nowhere\.pt does not exist"),
        (["--validation_loss_data", "clips.csv"], "--validation_loss_data and --validation_steps"),
        ([*LOSS, "--validation_loss_data", "nowhere.csv"], r"nowhere\.csv does not exist"),
        ([*LOSS, "--validation_loss_levels", "0"], "--validation_loss_levels is 0"),
        ([*LOSS, "--patience", "2"], "--patience needs --best_by"),
        ([*LOSS, "--best_by", "validation_lmd"], "--best_by validation_lmd needs --validation_data"),
        ([*VIDEOS, "--best_by", "validation_loss"], "--best_by validation_loss needs --validation_loss_data"),
        ([*VIDEOS, "--best_by", "validation_mine"], "--best_by .* is not known: validation_mine:min or :max"),
        ([*VIDEOS, "--validation_metrics", "lip"], "--validation_metrics lip: wanted module:function, or some of lips"),
        ([*VIDEOS, "--validation_metrics", "sync"], "--validation_metrics sync: needs --validation_syncnet_path: "),
        ([*VIDEOS, "--validation_metrics", "stable_sync"], "--validation_metrics stable_sync: needs --syncnet_path: "),
        ([*VIDEOS, "--validation_metrics", "nowhere:f"], "--validation_metrics nowhere:f: No module named 'nowhere'"),
        ([*VIDEOS, "--validation_syncnet_path", "x"], "--validation_syncnet_path needs --validation_metrics sync"),
        ([*VIDEOS, "--syncnet_path", "x"], "--syncnet_path: the loss is not on"),
        (
            [*VIDEOS, "--validation_metrics", "fid"],
            "--validation_metrics fid: .*(not installed|--validation_inception_)",
        ),
        ([*VIDEOS, "--validation_fvd_path", "x"], "--validation_fvd_path needs --validation_metrics fvd"),
        (
            [*VIDEOS, "--validation_metrics", "sync", "--validation_syncnet_path", "gone"],
            "--validation_syncnet_path gone does not exist",
        ),
        (["--resume", "latest"], "--resume latest: .* holds no checkpoint step-N to go on from; --resume auto"),
        (["--resume", "nowhere"], r"nowhere has no loop\.pt"),
    ],
)
def test_mistakes_in_flags(folder, tmp_path, capsys, more, message):
    import re

    assert run.main(flags(folder, tmp_path / "run", *more)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert re.search(f"^diffsynth_omniavatar.train: error: .*{message}", line)
    assert not (tmp_path / "run").exists()


def test_all_missing_files_are_listed(folder, tmp_path, capsys):
    assert run.main(flags(folder, tmp_path, "--wav2vec2_path", "nowhere", "--tokenizer_path", "gone")) == 2
    error = capsys.readouterr().err
    assert "--wav2vec2_path nowhere" in error and "--tokenizer_path gone" in error


def test_an_output_path_that_is_a_file(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert run.main(flags(folder, tmp_path / "file")) == 2
    assert "is a file; give a folder" in capsys.readouterr().err and (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("state", "more", "message"),
    [
        ({"step": 3, "run": RUN | {"seed": 8}, "rng": []}, [], "belongs to a run with .*'seed': 8"),
        ({"step": 3, "run": RUN | {"samples": 4}, "rng": []}, [], "'samples': 4.*'samples': 2"),
        ("rubbish", [], r"step-3/loop\.pt is not what training writes"),
        ({"step": 3, "run": RUN, "rng": []}, ["--validation_data", "nowhere", "--validation_steps", "1"], "nowhere"),
    ],
)
def test_a_refused_resumption_changes_nothing(folder, tmp_path, capsys, state, more, message):
    import re

    checkpoint(tmp_path, 3, state)
    before = content(tmp_path)
    assert run.main(flags(folder, tmp_path, "--resume", "latest", "--max_steps", "5", *more)) == 2
    assert re.search(message, capsys.readouterr().err) and content(tmp_path) == before


def test_a_new_run_over_an_old_one_changes_nothing(folder, tmp_path, capsys):
    checkpoint(tmp_path, 3, {"step": 3, "run": RUN, "rng": []})
    before = content(tmp_path)
    assert run.main(flags(folder, tmp_path)) == 2
    assert "holds step-3, but this run starts at step 0" in capsys.readouterr().err and content(tmp_path) == before


def test_a_table_of_an_earlier_version_is_told_first(folder, tmp_path, capsys):
    (tmp_path / "loss.csv").write_text("step,key,value\n1,loss,0.5\n")
    assert run.main(flags(folder, tmp_path)) == 2
    assert "loss.csv has the columns step,key,value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ("auto", "starts from the beginning: .* has no checkpoint"),
        (None, None),
        ("latest", "goes on from .*step-3: step 3 of 9"),
    ],
)
def test_where_a_run_starts_is_told(folder, tmp_path, caplog, resume, message):
    import re

    args = run.parse_arguments(flags(folder, tmp_path, "--max_steps", "9"))
    args.resume = resume
    if resume == "latest":
        checkpoint(tmp_path, 3, {"step": 3, "run": RUN, "rng": []})
    found = run.resume_folder(args)
    settings = run._loop_settings(args, 2, 1, found)
    with caplog.at_level(logging.INFO):
        run.tell_start(args, settings, run.check_resume(args, found))
    assert (caplog.text == "") if message is None else re.search(message, caplog.text)


def test_processes_that_are_not_joined_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert first_checks.check_processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FlagError, match=r"2 processes were launched .* accelerate joins 1.*ACCELERATE_USE_CPU"):
        first_checks.check_processes()


def test_processes_with_other_clips_are_refused(monkeypatch):
    clips = [SimpleNamespace(name="a", prompt="x"), SimpleNamespace(name="b", prompt="y")]
    others = []
    monkeypatch.setattr(first_checks, "gather_object", lambda own: [*own, *others])
    first_checks.check_same_clips(clips)
    monkeypatch.setattr(first_checks, "gather_object", lambda own: others.extend(own) or own)
    first_checks.check_same_clips([clips[0], SimpleNamespace(name="b", prompt="z")])
    monkeypatch.setattr(first_checks, "gather_object", lambda own: [*own, *others])
    with pytest.raises(ValueError, match=r"other lists of clips.*process 0: 2 .*process 1: 2"):
        first_checks.check_same_clips(clips)


def test_validation_data_is_read_before_anything_is_loaded(folder, tmp_path, capsys):
    (tmp_path / "val.txt").write_text(
        f"a @@ {folder / 'clips.csv'} @@ {folder / '0.mp4'}\nb@@c\n\nd@@gone.png@@{folder / '0.mp4'}\n"
    )
    more = ["--validation_data", str(tmp_path / "val.txt"), "--validation_steps", "1"]
    assert run.main(flags(folder, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert all(line in error for line in ("line 1: ", "line 2: wanted prompt@@image@@audio", "line 4: gone.png"))
    assert json.dumps(error).count("line ") == 3


def test_a_failed_download_names_files_and_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = "Wan-AI/A:vae.pth,Wan-AI/A:models_t5_umt5.pth"
    args = SimpleNamespace(model_id_with_origin_paths=named, model_paths=None, tokenizer_path=None, debug=False)
    words = r"Wan-AI/A/vae\.pth, .*umt5-xxl/ to models/; .*\(--model_paths, --tokenizer_path\): no network"
    with pytest.raises(OSError, match=words), loading(args):
        raise OSError("no network")


def test_a_new_run_leaves_the_best_checkpoint_of_an_old_one_alone(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "best").mkdir()
    before = content(tmp_path)
    assert run.main(flags(folder, tmp_path)) == 2
    assert (
        f"holds best/ of an earlier run, but this run starts at step 0; go on from it (--resume {tmp_path / 'best'})"
        in (capsys.readouterr().err)
    )
    assert content(tmp_path) == before
    monkeypatch.setattr(run, "read_validation", lambda *_: 1 / 0)  # what comes next
    with pytest.raises(ZeroDivisionError):  # the run was killed before its first step-N
        run.main(flags(folder, tmp_path, "--resume", "auto"))


def test_distances_need_a_real_video(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(first_checks, "metric_faults", lambda *_: [])
    picture, speech = tmp_path / "face.png", tmp_path / "speech.wav"
    Image.new("RGB", (16, 16), "teal").save(picture)
    soundfile.write(speech, 0.1 * np.sin(np.arange(16000)), 16000)
    (tmp_path / "videos.txt").write_text(f"x@@{picture}@@{speech}")
    data = ["--validation_data", str(tmp_path / "videos.txt"), "--validation_steps", "1"]
    assert run.main(flags(folder, tmp_path / "run", *data, "--validation_metrics", "lips,fid,fvd")) == 2
    assert "--validation_metrics fid,fvd compares with real videos, and no line of" in capsys.readouterr().err
