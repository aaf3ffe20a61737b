"""`--base_lora`: the LoRA that trains stands on weights with another one in them, which its checkpoints name."""

import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import flags, write_inputs

from diffsynth_omniavatar.model.checkpoint import read_config
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.lora_merge import named_weights
from diffsynth_omniavatar.model.small_family import TINY, register_family
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.base_lora import check_same_base
from diffsynth_omniavatar.training.first_checks import check_files
from diffsynth_omniavatar.training.flags import FlagError, parse_arguments

Q, WIDTH = "blocks.0.self_attn.q", TINY.dit.dim


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("base"))
    generator = torch.Generator().manual_seed(0)
    pair = {f"{Q}.lora_A.weight": torch.randn(2, WIDTH, generator=generator),
            f"{Q}.lora_B.weight": torch.randn(WIDTH, 2, generator=generator)}  # fmt: skip
    save_file(pair, folder / "lora.safetensors")
    save_file(pair | {f"{Q}.dora_scale": torch.ones(WIDTH, 1)}, folder / "dora.safetensors")
    save_file({f"{Q}.diff": torch.ones(5120, 5120, dtype=torch.bfloat16)}, folder / "14b.safetensors")
    return folder


def of_wan(arguments):
    place = arguments.index("--omniavatar_checkpoint")
    return arguments[:place] + arguments[place + 2 :]


@pytest.mark.parametrize("on_wan", [False, True])
def test_it_is_in_the_frozen_weights(folder, on_wan):
    arguments = flags(folder, folder / "out", "--base_lora", f"{folder / 'lora.safetensors'}:0.5")
    args = parse_arguments(of_wan(arguments) if on_wan else arguments)
    check_files(args)
    register_family()
    pipe, config = run.load_training_pipeline(args, run.conventions_of(args), torch.device("cpu"))
    base, pair = load_file(folder / "family" / FILES["dit"]), load_file(folder / "lora.safetensors")
    wanted = base[f"{Q}.weight"] + 0.5 * pair[f"{Q}.lora_B.weight"] @ pair[f"{Q}.lora_A.weight"]
    torch.testing.assert_close(named_weights(pipe.dit)[f"{Q}.weight"], wanted, rtol=0, atol=1e-6)
    (one,) = config.base_loras
    assert (one.file, one.strength) == ("lora.safetensors", 0.5)
    assert one.sha256 == hashlib.sha256((folder / "lora.safetensors").read_bytes()).hexdigest()


def test_checkpoints_name_it_and_a_resumed_run_has_the_same(folder, tmp_path, capfd):
    shutil.copy(folder / "lora.safetensors", tmp_path / "copy.safetensors")
    arguments = flags(folder, tmp_path / "out", "--max_steps", "1", "--base_lora", str(folder / "lora.safetensors"))
    assert run.main(arguments) == 0
    step = tmp_path / "out" / "step-1"
    (one,) = read_config([step / "model.safetensors"]).base_loras
    assert one.file == "lora.safetensors"
    for more, fits in [
        (["--base_lora", str(tmp_path / "copy.safetensors")], True),
        (["--base_lora", f"{folder / 'lora.safetensors'}:0.5"], False),
        ([], False),
    ]:
        args = parse_arguments(flags(folder, tmp_path / "out", *more))
        if fits:
            check_same_base(step, args)
        else:
            with pytest.raises(ValueError, match=r"step-1 was trained on weights with lora.safetensors:1 \(SHA-256"):
                check_same_base(step, args)
    assert run.main(flags(folder, tmp_path / "out", "--max_steps", "2", "--resume", "latest")) == 2
    assert "this run has no LoRA; give the same --base_lora" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nowhere.pt", "--base_lora: LoRA nowhere.pt is not there"),
        ("dora.safetensors", "dora.safetensors is a DoRA"),
        ("14b.safetensors:0.5", r"changed by \[5120, 5120\], the model's is \[96, 96\]"),
        ("clips.csv", "clips.csv is no file of tensors"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(folder, named, said, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(FlagError, match=said):
        check_files(parse_arguments(flags(folder, folder / "out", "--base_lora", named)))


def test_it_stays_frozen_and_comes_from_a_file_of_flags_too(folder, tmp_path):
    with pytest.raises(FlagError, match="--base_lora is frozen"):
        parse_arguments(flags(folder, tmp_path, "--base_lora", "a.pt", "--trainable_models", "dit"))
    (tmp_path / "flags.yaml").write_text("base_lora: [a.pt:0.5, b.pt]\n")
    config = ["--config", str(tmp_path / "flags.yaml")]
    assert parse_arguments(flags(folder, tmp_path, *config)).base_lora == ["a.pt:0.5", "b.pt"]
    assert parse_arguments(flags(folder, tmp_path, *config, "--base_lora", "c.pt")).base_lora == ["c.pt"]
    (tmp_path / "flags.yaml").write_text("base_lora: 3\n")
    with pytest.raises(FlagError, match="base_lora is '3', wanted names in quotes"):
        parse_arguments(flags(folder, tmp_path, *config))
