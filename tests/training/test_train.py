"""Training from the command line, from real clips to a checkpoint that generates; losses as recorded."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from safetensors.torch import load_file
from synthetic_clips import noise, write_table
from training_runs import MODES, flags, write_inputs

from diffsynth_omniavatar import host
from diffsynth_omniavatar.app.cli import main
from diffsynth_omniavatar.data.encode import encoder_pipeline
from diffsynth_omniavatar.data.precompute import precompute
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.model import checkpoint
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.best import Progress
from diffsynth_omniavatar.training.flags import FlagError, parse_arguments
from diffsynth_omniavatar.training.log_table import read_table
from diffsynth_omniavatar.training.validation_samples import read_validation_samples

RECORDED = Path(__file__).parents[1] / "recorded_losses.json"
LOSS_TOLERANCE = 1e-3
"""AdamW moves a weight by the learning rate even where its gradient is rounding noise, which other processors round
otherwise; on one processor, one and two threads differ by 2e-7."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("training"))


def losses_of(output):
    return [row["loss"] for row in read_table(output / "loss.csv")]


@pytest.mark.parametrize("mode", MODES)
def test_losses_are_those_recorded(folder, tmp_path, mode):
    """Ten steps of each mode; a change of these numbers is a change of the training."""
    assert run.main(flags(folder, tmp_path, "--max_steps", "10", "--learning_rate", "1e-4", *MODES[mode])) == 0
    losses = losses_of(tmp_path)
    recorded = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    if os.environ.get("OMNIAVATAR_RECORD_LOSSES"):
        recorded.setdefault(host.GENERATION, {})[mode] = losses
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    assert losses == pytest.approx(recorded[host.GENERATION][mode], rel=LOSS_TOLERANCE)
    config = checkpoint.read_config([tmp_path / "step-10" / "model.safetensors"])
    assert config.in_dim == {"i2v": 33, "v2v-reference": 65}.get(mode, 49)
    assert config.conventions.first_frame == ("masked" if mode == "v2v-masked" else "known")
    assert config.conventions.prefix_frames == {"i2v": (1, 5, 9, 13), "v2v-known": (1,), "v2v-masked": ()}.get(
        mode, (1, 5)
    )


def test_losses_do_not_depend_on_how_the_blocks_are_computed(folder, tmp_path):
    """Results kept within a budget, inputs and weights in CPU memory: the losses that are recorded without them."""
    fast = ["--activation_memory", "0.0002", "--stream_weights", "--use_gradient_checkpointing_offload"]
    assert run.main(flags(folder, tmp_path, "--max_steps", "10", "--learning_rate", "1e-4", *fast)) == 0
    recorded = json.loads(RECORDED.read_text())[host.GENERATION]["i2v"]
    assert losses_of(tmp_path) == pytest.approx(recorded, rel=LOSS_TOLERANCE)


@pytest.mark.skipif(host.GENERATION == "wan_video_new", reason="DiffSynth 2.x quantises")
@pytest.mark.parametrize("method", ["torchao_fp8_w8a16", "torchao_int8_w8a16"])
def test_lora_trains_on_a_base_that_the_host_quantised(folder, tmp_path, method):
    """The losses are those of bf16 within what 8 bits round; the checkpoint has the same tensors."""
    pytest.importorskip("torchao")
    dit = folder / "family" / FILES["dit"]
    common = ["--max_steps", "10", "--dtype", "bfloat16", "--use_gradient_checkpointing"]
    for name, more in (("bf16", []), ("quantised", ["--quant_options", f"{dit}:{method}"])):
        assert run.main(flags(folder, tmp_path / name, *common, *more)) == 0
    plain, quantised = losses_of(tmp_path / "bf16"), losses_of(tmp_path / "quantised")
    assert quantised == pytest.approx(plain, rel=0.05) and quantised != plain
    tensors, wanted = (load_file(tmp_path / name / "step-10/model.safetensors") for name in ("quantised", "bf16"))
    assert {key: (t.shape, t.dtype) for key, t in tensors.items()} == {k: (t.shape, t.dtype) for k, t in wanted.items()}


def test_lora_trains_on_a_base_in_8_bits(folder, tmp_path):
    """The losses are the recorded ones within what 8 bits round; the checkpoint has the same tensors."""
    more = ["--quantize", "fp8", "--keep_bf16", "first"]
    assert run.main(flags(folder, tmp_path, "--max_steps", "4", "--learning_rate", "1e-4", *more)) == 0
    recorded, losses = json.loads(RECORDED.read_text())[host.GENERATION]["i2v"][:4], losses_of(tmp_path)
    assert losses == pytest.approx(recorded, rel=0.02) and losses != pytest.approx(recorded, rel=1e-6)
    tensors = load_file(tmp_path / "step-4/model.safetensors")
    assert all(value.dtype == torch.float32 for value in tensors.values()) and not any(
        "scale" in key for key in tensors
    )


def test_what_wraps_the_denoisers_layers_is_refused(folder, tmp_path):
    dit = str(folder / "family" / FILES["dit"])
    if host.GENERATION == "wan_video_new":
        with pytest.raises(FlagError, match=r"needs DiffSynth 2\.x"):
            parse_arguments(flags(folder, tmp_path, "--fp8_models", dit))
        return
    for flag in ("--fp8_models", "--offload_models"):
        with pytest.raises(FlagError, match=f"{flag} .*--quant_options '.*:torchao_fp8_w8a16'"):
            parse_arguments(flags(folder, tmp_path, flag, dit))


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(folder, tmp_path):
    common = [
        "--gradient_accumulation_steps",
        "2",
        "--lr_schedule",
        "cosine",
        "--warmup_steps",
        "2",
        "--max_steps",
        "3",
    ]
    assert run.main(flags(folder, tmp_path / "whole", *common)) == 0
    parts = flags(folder, tmp_path / "parts", *common, "--save_steps", "1", "--checkpoints_total_limit", "2")
    assert run.main(parts) == 0
    for step in (2, 3):
        (tmp_path / "parts" / f"step-{step}").rename(tmp_path / f"old-{step}")
    (tmp_path / "old-2").rename(tmp_path / "parts" / "step-2")
    assert run.main([*parts, "--resume", "latest"]) == 0
    wanted = load_file(tmp_path / "whole" / "step-3" / "model.safetensors")
    for found in (tmp_path / "parts" / "step-3", tmp_path / "old-3"):
        tensors = load_file(found / "model.safetensors")
        assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert sorted(path.name for path in (tmp_path / "parts").glob("step-*")) == ["step-2", "step-3"]


def test_training_from_the_base_starts_without_effect_of_sound(folder, tmp_path):
    arguments = flags(folder, tmp_path, "--max_steps", "2", "--lora_rank", "8")
    place = arguments.index("--omniavatar_checkpoint")
    del arguments[place : place + 2]
    assert run.main(arguments) == 0
    loaded = checkpoint.load_checkpoint(tmp_path / "step-2")
    assert loaded.config.lora.rank == 8 and loaded.config.lora.alpha == 4.0
    assert loaded.config.conventions.leading_audio_rows == 0
    assert loaded.tensors["audio_cond_projs.0.bias"].abs().max() > 0


@pytest.mark.skipif(host.GENERATION == "wan_video_new", reason="DiffSynth 2.x's own tasks")
@pytest.mark.parametrize("mode", ["i2v", "v2v-reference"])
def test_the_hosts_two_tasks_train_as_a_cache_does(folder, tmp_path, mode):
    models, more = folder / "family", ["--max_steps", "3", "--audio_drop_prob", "0.5", *MODES[mode]]
    (folder / "broken.mp4").write_bytes((folder / "1.mp4").read_bytes()[:-4000])  # its last frames are gone
    write_table(
        folder / "three.csv",
        [{"video": f"{name}.mp4", "prompt": f"speaker {name}"} for name in (0, "broken", 1)],
    )
    encoders = json.dumps([str(models / FILES[name]) for name in ("text_encoder", "vae")])
    only_dit = ["--model_paths", json.dumps([str(models / FILES["dit"])])]
    processing = ["--task", "sft:data_process", "--dataset_metadata_path", str(folder / "three.csv")]
    arguments = flags(folder, tmp_path / "processed", *more, *processing, "--model_paths", encoders)
    assert run.main(arguments) == 0
    assert {path.suffix for path in (tmp_path / "processed" / "0").iterdir()} == {".pth"}

    clips = read_clips(folder / "three.csv")
    args = parse_arguments(arguments)
    conventions = run.conventions_of(args)
    settings = run.clip_settings(args, conventions)
    pipe = encoder_pipeline(
        settings,
        model_configs=[host.ModelConfig(path=path) for path in json.loads(encoders)],
        tokenizer_config=host.ModelConfig(path=str(models / FILES["tokenizer"])),
        wav2vec2=models / FILES["wav2vec2"],
        device="cpu",
        dtype=torch.float32,
    )
    report = precompute(pipe, clips, tmp_path / "cache", settings=settings, recipe=run.recipe_of(args, conventions))
    assert [name for name, _ in report.faults] == ["broken.mp4"]
    for task, cache in (("sft:train", "processed"), ("sft", "cache")):
        data = ["--dataset_base_path", str(tmp_path / cache), "--dataset_metadata_path", str(tmp_path / cache)]
        assert run.main(flags(folder, tmp_path / task, *more, *only_dit, *data, "--task", task)) == 0
    assert losses_of(tmp_path / "sft:train") == losses_of(tmp_path / "sft")


def without_time(row):
    return {name: value for name, value in row.items() if name != "validation_seconds"}


@pytest.mark.slow
def test_validation_makes_videos_and_figures_and_changes_nothing(folder, tmp_path, caplog):
    """With and without it the losses are the same; and a run that was resumed equals the uninterrupted one."""
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (40, 40), "teal").save(tmp_path / "face.png")
    import soundfile

    soundfile.write(tmp_path / "speech.wav", noise(0.5).samples[0], 16000)
    lines = tmp_path / "validation.txt"
    lines.write_text(f"a face@@{tmp_path / 'face.png'}@@{tmp_path / 'speech.wav'}\n")
    options = ["--max_steps", "2", "--max_tokens", "17"]
    validation = ["--validation_data", str(lines), "--validation_steps", "1", "--validation_num_inference_steps", "1"]
    assert run.main(flags(folder, tmp_path / "plain", *options)) == 0
    validation += [
        "--validate_at_start",
        "--validation_metrics",
        "stability,synthetic_clips:frame_count,synthetic_clips:sound_name",
    ]
    validation += ["--enable_tensorboard_log", "--validation_loss_data", str(folder / "clips.csv")]
    validation += ["--validation_loss_levels", "1", "--best_by", "validation_loss", "--save_steps", "1"]
    with caplog.at_level("INFO"):
        assert run.main(flags(folder, tmp_path / "validated", *options, *validation)) == 0
    assert losses_of(tmp_path / "plain") == losses_of(tmp_path / "validated")
    for step in (0, 1, 2):
        info = probe_video(tmp_path / "validated" / "validation" / f"step-{step}" / "000.mp4")
        assert info.has_sound and (info.height, info.width) == (32, 32)
    rows = read_table(tmp_path / "validated" / "validation.csv")
    wanted = [row["validation_loss"] for row in rows]
    assert len({*wanted}) == 3 and "validation at step 1: loss" in caplog.text
    assert "2 of 3 clips for validation are trained on too" in caplog.text  # the third is the portrait
    best = Progress.read(tmp_path / "validated" / "best")
    assert best.value == min(wanted) == wanted[best.step]
    assert all(0 <= row["validation_frozen_share"] <= 1 for row in rows)

    measured = ["evaluate", "--checkpoints", str(tmp_path / "validated"), "--out", str(tmp_path / "measured")]
    assert main([*measured, "--device", "cpu", "--validation_loss_data", str(folder / "clips.csv")]) == 0
    figures = json.loads((tmp_path / "measured" / "figures.json").read_text())
    assert [one["figures"] for one in figures["checkpoints"]] == [{"validation_loss": loss} for loss in wanted[1:]]
    assert figures["best"] == {"validation_loss": 1 + wanted[1:].index(min(wanted[1:]))}
    assert "<svg" in (tmp_path / "measured" / "report.html").read_text()

    shutil.copytree(tmp_path / "validated" / "step-1", tmp_path / "resumed" / "step-1")
    resumed = [*options, *validation, "--resume", "latest"]
    assert run.main(flags(folder, tmp_path / "resumed", *resumed)) == 0
    assert losses_of(tmp_path / "resumed") == losses_of(tmp_path / "plain")[1:]
    again = read_table(tmp_path / "resumed" / "validation.csv")
    assert [without_time(row) for row in again] == [without_time(row) for row in rows[2:]]
    assert Progress.read(tmp_path / "resumed" / "step-2") == Progress.read(tmp_path / "validated" / "step-2")

    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["validation_frames"] == info.frames for row in rows)
    assert all(row["validation_letters"] == len("speech") for row in rows)
    logged = EventAccumulator(str(tmp_path / "validated" / "tensorboard_log"), size_guidance={"images": 0}).Reload()
    assert [image.step for image in logged.Images("validation/000")] == [0, 1, 2]


def test_v2v_validates_against_its_source(folder, tmp_path):
    """A source with its own sound is the reference of its video; another sound has none."""
    lines = [f"x@@{folder / source}@@{folder / '0.mp4'}\n" for source in ("0.mp4", "1.mp4")]
    (tmp_path / "two.txt").write_text("".join(lines))
    own, other = read_validation_samples(tmp_path / "two.txt", is_v2v=True)
    assert own.reference == folder / "0.mp4" and other.reference is None
    (tmp_path / "one.txt").write_text(lines[0])
    validation = ["--validation_data", str(tmp_path / "one.txt"), "--validation_loss_data", str(folder / "clips.csv")]
    validation += [
        "--validation_steps",
        "1",
        "--validation_num_inference_steps",
        "1",
        "--validation_metrics",
        "picture",
    ]
    arguments = [*MODES["v2v-known"], "--max_steps", "1", "--max_tokens", "41", "--validation_loss_levels", "1"]
    assert run.main(flags(folder, tmp_path, *arguments, *validation, "--best_by", "validation_psnr")) == 0
    (row,) = read_table(tmp_path / "validation.csv")
    assert 0 < row["validation_psnr"] < 60 and 0 < row["validation_loss"] < 10
    assert Progress.read(tmp_path / "best") == Progress(1, "validation_psnr", row["validation_psnr"], 1)


def test_dry_run_prints_the_plan_and_trains_nothing(folder, tmp_path, capsys):
    assert run.main(flags(folder, tmp_path / "run", "--dry_run", "--num_epochs", "3")) == 0
    plan = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("mode"))
    assert plan == {"mode": "i2v, 33 channels"} and not (tmp_path / "run").exists()


def test_config_file_applies_unless_the_command_line_says_otherwise(folder, tmp_path):
    file = tmp_path / "flags.yaml"
    file.write_text(
        yaml.safe_dump({"max_steps": 9, "lora_alpha": 3, "prefix_frames": [1, 5], "omniavatar_mode": "v2v"})
    )
    args = parse_arguments(flags(folder, tmp_path, "--config", str(file), "--max_steps", "4"))
    assert (args.max_steps, args.lora_alpha, args.prefix_frames, args.omniavatar_mode) == (4, 3, (1, 5), "v2v")
    file.write_text("learning_rat: 1\nmax_step: 3\n")
    with pytest.raises(FlagError, match=r"unknown keys: learning_rat, max_step"):
        parse_arguments(flags(folder, tmp_path, "--config", str(file)))
    file.write_text("lr_schedule: sometimes\n")
    with pytest.raises(FlagError, match=r"lr_schedule is 'sometimes', wanted one of"):
        parse_arguments(flags(folder, tmp_path, "--config", str(file)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mouth_weight", "2"], "--mouth_weight needs --omniavatar_mode v2v"),
        (["--use_ref_sequence"], "--use_ref_sequence needs --omniavatar_mode v2v"),
        (["--lora_checkpoint", "x"], "--lora_checkpoint has no meaning here: use --omniavatar_checkpoint"),
        (["--trainable_models", "vae"], "only dit"),
        (["--validation_steps", "3"], "--validation_data and --validation_steps go together"),
        (["--prefix_frames", "1,6"], r"prefix_frames has \[6\]"),
        (["--task", "dpo"], "--task is dpo, wanted one of sft, sft:data_process, sft:train"),
        (["--timestep_sampling", "cosine"], "--timestep_sampling is 'cosine', wanted host, uniform"),
        (["--timestep_sampling", "uniform", "--max_timestep_boundary", "0.5"], "are of the host's table"),
        (["--prefix_errors", "bank:2"], "--prefix_errors is 'bank:2', wanted P above 0 and up to 1"),
        (["--prefix_errors", "noise"], "--prefix_errors is 'noise', wanted none, bank"),
        (["--prefix_errors", "bank", "--omniavatar_mode", "v2v"], "--prefix_errors is for I2V"),
        (["--prefix_errors", "bank", "--prefix_frames", "1"], "--prefix_errors is for prefixes of 5 frames and more"),
        (["--loss_weighting", "min_snr:-1"], "--loss_weighting is 'min_snr:-1', wanted a GAMMA above 0"),
        (["--curriculum_frames", "21"], "--curriculum_frames is '21', wanted STEP:FRAMES"),
        (["--dataset_metadata_path", "a.csv:0", "b.csv"], "--dataset_metadata_path a.csv:0 b.csv: a weight is 0"),
        (["--lora_rank_pattern", "ffn"], "--lora_rank_pattern is 'ffn', wanted NAME=RANK"),
        (["--lora_kind", "lokr", "--compile"], "--compile knows plain LoRAs: leave it out, or --lora_kind lokr"),
        (["--lora_kind", "rslora"], "--lora_kind rslora needs --lora_alpha"),
        (["--lora_kind", "dora"], "--lora_kind go with a new LoRA, but .* has one, which trains on"),
        (["--lora_kind", "loha", "--trainable_models", "dit"], "leave --trainable_models dit away"),
        (["--lr_audio", "-1"], "--lr_audio is -1.0, wanted at least 0"),
        (["--ema_decay", "1"], "--ema_decay is 1.0, wanted 0 up to, but not, 1"),
        (["--no_such_flag"], "Unknown flags: --no_such_flag"),
        (["--warmup_step", "3"], "Unknown flags: --warmup_step 3; did you mean --warmup_steps?"),
        (["--omniavatar_mode", "v2v", "--prefix_frames", ""], "--prefix_frames must name at least 1"),
        (
            ["--validation_data", "nowhere.txt", "--validation_steps", "1"],
            r"--validation_data nowhere\.txt does not exist",
        ),
        (["--validation_metrics", "nowhere:f"], "--validation_metrics needs --validation_data"),
        (["--dataset_metadata_path", "nowhere.csv"], r"nowhere\.csv does not exist"),
        (["--omniavatar_checkpoint", "nowhere.pt"], r"nowhere\.pt does not exist"),
        (["--wav2vec2_path", "nowhere"], "nowhere"),
    ],
)
def test_faulty_flags_are_named(folder, tmp_path, capsys, more, message):
    import re

    assert run.main(flags(folder, tmp_path, *more)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_missing_networks_are_named(folder, tmp_path, capsys):
    models = folder / "family"
    only_dit = json.dumps([str(models / FILES["dit"])])
    assert run.main(flags(folder, tmp_path, "--model_paths", only_dit)) == 2
    error = capsys.readouterr().err
    assert "vae for" in error and "text_encoder for" in error and "put it into a cache" in error


@pytest.mark.slow
def test_the_real_command_line(folder, tmp_path, capfd, monkeypatch):
    """Accelerate's launcher, in this process, starts a new one."""
    monkeypatch.chdir(Path(__file__).parents[2])
    command = ["--num_processes", "1", "--cpu", "-m", "diffsynth_omniavatar.train"]
    launch_command(launch_command_parser().parse_args([*command, *flags(folder, tmp_path, "--max_steps", "1")]))
    assert "trainable parameters" in capfd.readouterr().out and (tmp_path / "step-1" / "model.safetensors").is_file()
    resolved = parse_arguments(["--config", str(tmp_path / "config.yaml"), "--max_steps", "2"])
    assert (resolved.learning_rate, resolved.max_steps, resolved.dataset_base_path) == (1e-3, 2, str(folder))
