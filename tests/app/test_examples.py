"""The scripts in examples/: every flag in them exists on this host."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from diffsynth_omniavatar import host
from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.data.prepare.tables import TRAIN
from diffsynth_omniavatar.media.timeline import MAX_TOKENS
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.flags import build_parser, parse_arguments

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
STUB = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv) + "\\n")
"""


def commands_of(script: str, folder: Path, **variables: str) -> list[list[str]]:
    """What a script runs in an empty folder, each as program and arguments; the programs themselves do nothing."""
    log = folder / "commands.jsonl"
    for program in ("accelerate", "omniavatar", "hf"):
        stub = folder / program
        stub.write_text(STUB.format(python=sys.executable, log=str(log)))
        stub.chmod(0o755)
    log.unlink(missing_ok=True)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **variables}
    subprocess.run(["bash", str(EXAMPLES / script)], cwd=folder, env=environment, check=True, timeout=60)
    return [[Path(command[0]).name, *command[1:]] for command in map(json.loads, log.read_text().splitlines())]


def launched(commands: list[list[str]]) -> argparse.Namespace:
    """The one `accelerate launch` among the commands, as accelerate reads it."""
    (command,) = [command for command in commands if command[0] == "accelerate"]
    assert command[1] == "launch"
    launch = launch_command_parser().parse_args(command[2:])
    assert (ROOT / launch.config_file).is_file() and launch.module
    return launch


def training_flags(launch: argparse.Namespace) -> argparse.Namespace:
    """The launcher's flags, none of them abbreviated."""
    arguments = launch.training_script_args
    assert {flag for flag in arguments if flag.startswith("--")} <= set(build_parser()._option_string_actions)
    return parse_arguments(arguments)


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("train_*.sh")))
def test_training_scripts(script: str, tmp_path: Path) -> None:
    commands = commands_of(script, tmp_path)
    launch = launched(commands)
    assert launch.training_script == "diffsynth_omniavatar.train"
    args = training_flags(launch)
    assert args.omniavatar_mode == script.split("_")[1] and args.use_gradient_checkpointing
    size = script.removesuffix(".sh").split("_")[2].upper()
    assert f"Wan2.1-T2V-{size}:" in args.model_id_with_origin_paths and args.omniavatar_checkpoint.endswith(size)
    downloads = {command[command.index("--local-dir") + 1] for command in commands if command[0] == "hf"}
    assert downloads == {args.omniavatar_checkpoint, args.wav2vec2_path} - {None}
    conventions = run.conventions_of(argparse.Namespace(**{**vars(args), "omniavatar_checkpoint": None}))
    assert conventions.first_frame == (args.first_frame or "known")


def test_footage_becomes_the_table_that_is_encoded(tmp_path: Path) -> None:
    (command,) = commands_of("prepare.sh", tmp_path, CAPTION="caption {clip}")
    made = cli.parse(command[1:])
    check = next(command for command in commands_of("precompute_14b.sh", tmp_path) if command[0] == "omniavatar")
    assert Path(made.out, TRAIN) == Path(cli.parse(check[1:]).data)
    assert made.mode == "i2v" and made.caption_command == "caption {clip}"


@pytest.mark.parametrize("mode", ["i2v", "v2v"])
def test_a_cache_is_made_for_the_training_that_reads_it(mode: str, tmp_path: Path) -> None:
    commands = commands_of("precompute_14b.sh", tmp_path, MODE=mode)
    (check,) = [command for command in commands if command[0] == "omniavatar"]
    checked = cli.parse(check[1:])
    launch = launched(commands)
    assert launch.training_script == "diffsynth_omniavatar"
    made = cli.parse(launch.training_script_args)
    trained = training_flags(launched(commands_of(f"train_{mode}_14b.sh", tmp_path)))
    assert trained.dataset_metadata_path == [made.cache] and checked.data == made.data and made.wav2vec2 is not None
    for name in ("omniavatar_mode", "height", "width", "num_frames", "use_ref_sequence", "mouth_mask"):
        assert getattr(trained, name) == getattr(made, name) == getattr(checked, name), name
    assert (trained.first_frame or "known") == made.first_frame
    assert trained.max_tokens is None and made.max_tokens == MAX_TOKENS  # a released checkpoint's


@pytest.mark.parametrize("file", sorted(path.name for path in (EXAMPLES / "accelerate").glob("*.yaml")))
def test_launch_files(file: str) -> None:
    config = load_config_from_file(str(EXAMPLES / "accelerate" / file))
    size, _, kind = file.removesuffix(".yaml").partition("_")
    gpus, machines = {"1gpu": (1, 1), "2gpus": (2, 1), "8gpus": (8, 1), "2nodes": (16, 2)}[size]
    assert (config.num_processes, config.num_machines) == (gpus, machines)
    plain = "NO" if gpus == 1 else "MULTI_GPU"
    wanted = {"": plain, "fsdp": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}[kind]
    is_zero = wanted == "DEEPSPEED"
    assert config.distributed_type.value == wanted and config.mixed_precision == ("bf16" if is_zero else "no")
    assert not config.use_cpu and bool(config.deepspeed_config) == is_zero
    if is_zero:
        assert config.deepspeed_config["zero_stage"] == int(kind[-1])
    assert bool(config.fsdp_config) == (kind == "fsdp")
    if kind == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
        block = sys.modules[host.WanModel.__module__].DiTBlock
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == block.__name__
