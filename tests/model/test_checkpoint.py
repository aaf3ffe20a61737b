"""Checkpoints load strictly in every form, give upstream's numbers, and convert without loss."""

import json
import logging
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from golden_models import Goldens, relative_deviation
from safetensors.torch import load_file, save_file

from diffsynth_omniavatar import host
from diffsynth_omniavatar.model.architecture import full_config
from diffsynth_omniavatar.model.checkpoint import (
    EXTRA_MODULES,
    LORA_KEY,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    normal_key,
)
from diffsynth_omniavatar.model.config import LATENT_CHANNELS, PRESETS, CheckpointConfig, Conventions, LoRAConfig
from diffsynth_omniavatar.model.convert import convert
from diffsynth_omniavatar.model.dit import OmniAvatarDiT, state_dict_shapes, wan_sizes
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.host_entries import MERGED_HASHES
from diffsynth_omniavatar.model.small_family import TINY, build_wan, family_configs
from diffsynth_omniavatar.model.upgrade import _wanted_lora_shapes, apply_checkpoint, grow_model, initialise_on_wan
from diffsynth_omniavatar.nano.family import LORA, write_random_family
from diffsynth_omniavatar.system.atomic import write_atomically

OUTPUT_TOLERANCE = 1e-5  # of the goldens' README
GRADIENT_TOLERANCE = 5e-5
CPU = {"dtype": torch.float32, "device": "cpu"}


@pytest.fixture(scope="module")
def golden(goldens):
    return Goldens(goldens)


def golden_run(golden, dit):
    tensors = golden.tensors("lora/golden")
    audio = golden.audio("lora", "A/audio", golden.dims["A_t"])

    def run(timestep):
        return dit(tensors["in.x"], torch.tensor([timestep]), tensors["in.context"], tensors["in.y"], audio)

    return tensors, run


@pytest.mark.parametrize("lora", ["fused", "adapters"])
def test_lora_checkpoint_equals_upstream(golden, lora):
    loaded = load_checkpoint(golden.folder / "lora")
    facts = golden.json("lora/golden")
    assert loaded.form == "lora" and loaded.config.lora.scale == facts["scale"]
    assert loaded.lora_modules == sorted(facts["adapted_modules"])
    dit = apply_checkpoint(golden.wan(), loaded, lora=lora, **CPU)
    tensors, run = golden_run(golden, dit)
    with torch.no_grad():
        for name, timestep in [("t500", 500.0), ("t37_5", 37.5)]:
            assert relative_deviation(run(timestep), tensors[f"out.{name}"]) < OUTPUT_TOLERANCE


def test_adapters_train_and_switch_like_upstreams(golden):
    loaded = load_checkpoint(golden.folder / "lora")
    dit = apply_checkpoint(golden.wan(), loaded, lora="adapters", **CPU)
    for name, parameter in dit.named_parameters():
        parameter.requires_grad_(bool(LORA_KEY.match(name)) or name.startswith(EXTRA_MODULES))
    tensors, run = golden_run(golden, dit)
    facts = golden.json("lora/golden")
    loss = run(500.0).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss_t500"], rel=OUTPUT_TOLERANCE)
    gradients = {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}
    for name, norm in facts["grad_l2"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=GRADIENT_TOLERANCE), name
    for name in [name for name in tensors if name.startswith("grad.")]:
        assert relative_deviation(gradients[name.removeprefix("grad.")], tensors[name]) < GRADIENT_TOLERANCE
    for module in dit.modules():
        if hasattr(module, "enable_adapters"):
            module.enable_adapters(False)
    with torch.no_grad():
        assert relative_deviation(run(500.0), tensors["out.t500.adapters_off"]) < OUTPUT_TOLERANCE


def test_start_on_a_wan_model_is_upstreams(golden):
    facts = golden.json("expand")
    base = golden.wan()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    sizes = {"audio_dim": golden.meta["audio_dim"], "audio_hidden_size": golden.meta["audio_hidden_size"]}
    dit = initialise_on_wan(base, 33, generator=generator, **sizes, **CPU)
    after = dit.state_dict()
    patch = after["patch_embedding.weight"]
    assert torch.equal(patch[:, :16], before["patch_embedding.weight"])
    assert torch.equal(after["patch_embedding.bias"], before["patch_embedding.bias"])
    assert list(patch[:, 16:].shape) == facts["patch_new_channels"]
    # A uniform draw up to the bound has 0.577 of it as its standard deviation; its extreme lies near the bound.
    assert 0.95 * facts["patch_uniform_bound"] < patch[:, 16:].abs().max() <= facts["patch_uniform_bound"]
    for name, tensor in before.items():
        if not name.startswith("patch_embedding"):
            assert torch.equal(after[name], tensor)
    for name, wanted in facts["new_tensors"].items():
        assert list(after[name].shape) == wanted["shape"]
        assert (after[name] == 0).all() == wanted["all_zero"], name
        if not wanted["all_zero"]:
            assert 0.95 * wanted["uniform_bound"] < after[name].abs().max() <= wanted["uniform_bound"]
            assert after[name].std() / wanted["uniform_bound"] == pytest.approx(wanted["std_over_bound"], rel=0.05)
    tensors, _ = golden_run(golden, dit)
    inputs = (tensors["in.x"], torch.tensor([500.0]), tensors["in.context"], tensors["in.y"])
    audio = golden.audio("lora", "A/audio", golden.dims["A_t"])
    assert (
        torch.equal(dit(*inputs, audio), dit(*inputs, torch.zeros_like(audio))) != facts["audio_changes_output_at_init"]
    )
    dit(*inputs, audio).square().mean().backward()
    for name, exactly_zero in facts["audio_grad_exactly_zero_at_init"].items():
        assert (dict(dit.named_parameters())[name].grad.abs().max() == 0) == exactly_zero, name


@pytest.mark.parametrize(("before", "after"), [(33, 49), (33, 65), (49, 65)])
def test_new_channels_change_nothing_until_they_are_trained(golden, before, after):
    dit = golden.dit(in_dim=before)
    shape = [1, -1, golden.dims["A_t"], golden.dims["A_h"], golden.dims["A_w"]]
    x = torch.randn(1, 16, *shape[2:])
    y = torch.randn(1, after - 16, *shape[2:])
    inputs = (torch.tensor([500.0]), torch.randn(1, 12, golden.dims["text_dim"]))
    audio = golden.audio("grow", "audio", golden.dims["A_t"])
    with torch.no_grad():
        small = dit(x, *inputs, y[:, : before - 16], audio)
        grow_model(dit, after)
        grown = dit(x, *inputs, y, audio)
    assert dit.config.in_dim == after and dit.patch_embedding.weight.shape[1] == after
    assert relative_deviation(grown, small) < OUTPUT_TOLERANCE


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory):
    return write_random_family(tmp_path_factory.mktemp("family"))


def load_family_wan(folder):
    wan = build_wan(**wan_sizes(TINY.dit, LATENT_CHANNELS))
    wan.load_state_dict(load_file(folder / FILES["dit"]))
    return wan


def family_dit(folder, source):
    """The denoiser that a checkpoint of any form gives on the family's base."""
    loaded = load_checkpoint(source)
    if loaded.form == "lora":
        return apply_checkpoint(load_family_wan(folder), loaded, **CPU)
    dit = OmniAvatarDiT(full_config({k: list(t.shape) for k, t in loaded.tensors.items()}, loaded.config, "full"))
    dit.load_state_dict(loaded.tensors, strict=True)
    return dit.eval()


def family_output(dit):
    generator = torch.Generator().manual_seed(1)
    config = dit.config
    x, y = torch.randn(1, config.in_dim, 2, 4, 4, generator=generator).split([16, config.in_dim - 16], dim=1)
    context = torch.randn(1, 5, config.text_dim, generator=generator)
    audio = torch.randn(1, 5, config.audio_dim, generator=generator)
    with torch.no_grad():
        return dit(x, torch.tensor([500.0]), context, y, audio)


@pytest.fixture(scope="module")
def spellings(family_folder, tmp_path_factory):
    """The family's checkpoint as users have it: folder or file, both spellings, .pt or .safetensors, prefixes."""
    folder = tmp_path_factory.mktemp("spellings")
    source = family_folder / FILES["omniavatar"]
    config = json.loads((source / "config.json").read_text())
    tensors = torch.load(source / "pytorch_model.pt", weights_only=True)
    assert any(".lora_A.default.weight" in key for key in tensors)
    short = {key.replace(".default.", "."): tensor for key, tensor in tensors.items()}
    variants = {"folder": source, "file": source / "pytorch_model.pt"}
    for name, content in [("short", short), ("prefixed", {f"pipe.dit.{key}": t for key, t in tensors.items()})]:
        variants[name] = folder / name / "model.safetensors"
        variants[name].parent.mkdir()
        save_file(content, variants[name])
        (variants[name].parent / "config.json").write_text(json.dumps(config))
    variants["wrapped"] = folder / "wrapped" / "model.pt"
    variants["wrapped"].parent.mkdir()
    torch.save({"state_dict": short}, variants["wrapped"])  # no config.json: the released alpha is half the rank
    assert config["lora_alpha"] * 2 == config["lora_rank"]
    return variants


@pytest.mark.parametrize("name", ["folder", "file", "short", "prefixed", "wrapped"])
def test_every_spelling_gives_the_same_model(family_folder, spellings, name):
    wanted = family_output(family_dit(family_folder, spellings["folder"]))
    assert torch.equal(family_output(family_dit(family_folder, spellings[name])), wanted)


def test_guessed_alpha_is_said(spellings, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(spellings["wrapped"])
    assert loaded.config.lora.alpha == loaded.config.lora.rank / 2
    assert "half its rank" in caplog.text


def test_conversions_keep_the_model(family_folder, tmp_path):
    source = family_folder / FILES["omniavatar"]
    wanted = family_output(family_dit(family_folder, source))
    lora = convert(source, tmp_path / "lora.safetensors", "lora")
    back = convert(lora, tmp_path / "back", "omniavatar")
    merged = convert(lora, tmp_path / "merged.safetensors", "merged", base=family_folder / FILES["dit"])
    again = convert(merged, tmp_path / "full", "omniavatar")
    for file in (lora, back, back.parent, merged, again):
        # B carries the scale in the LoRA file, so the products are rounded elsewhere.
        assert relative_deviation(family_output(family_dit(family_folder, file)), wanted) < OUTPUT_TOLERANCE, file
        assert load_checkpoint(file).config.conventions == TINY.conventions
    assert json.loads((tmp_path / "full" / "config.json").read_text())["train_architecture"] == "full"


def test_lora_file_has_its_scale_for_loaders_with_and_without_alpha(family_folder, tmp_path):
    """DiffSynth 1.1.9 adds B A, 2.x and ComfyUI alpha / rank B A: the host's own loader gives the model's weights."""
    source = family_folder / FILES["omniavatar"]
    content = load_file(convert(source, tmp_path / "lora.safetensors", "lora"))
    wan = load_family_wan(family_folder)
    pipe = host.WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.load_lora(wan, state_dict=content)
    wanted = family_dit(family_folder, source).state_dict()
    for name, weight in wan.state_dict().items():
        if not name.startswith("patch_embedding"):
            torch.testing.assert_close(weight, wanted[name], rtol=1e-5, atol=1e-6)
    alpha = {value.item() for key, value in content.items() if key.endswith(".alpha")}
    assert alpha == {float(LORA.rank)}


def test_growing_while_converting(family_folder, tmp_path):
    source = family_folder / FILES["omniavatar"]
    convert(source, tmp_path / "v2v", "omniavatar", in_dim=49)
    loaded = load_checkpoint(tmp_path / "v2v")
    assert loaded.in_dim == loaded.config.in_dim == loaded.config.model.in_dim == 49
    assert (loaded.tensors["patch_embedding.weight"][:, 33:] == 0).all()
    content = json.loads((tmp_path / "v2v" / "config.json").read_text())
    assert content["v2v"] and not content["use_ref_sequence"] and content["model_config"]["in_dim"] == 49
    with pytest.raises(CheckpointError, match="49 channels does not fit a model of 33"):
        convert(tmp_path / "v2v", tmp_path / "i2v", "omniavatar", in_dim=33)


def test_merged_files_of_the_published_sizes_are_known_by_hash():
    wanted = {
        host.model_hash(state_dict_shapes(replace(config, in_dim=in_dim))): (name, in_dim)
        for name, config in PRESETS.items()
        for in_dim in (33, 49, 65)
    }
    assert wanted == MERGED_HASHES


@pytest.mark.parametrize(("preset", "tensors", "parameters"), [("1.3B", 634, 177_271_392), ("14B", 844, 618_684_512)])
def test_released_lora_checkpoints_have_the_published_size(preset, tensors, parameters):
    config = PRESETS[preset]
    with torch.device("meta"):
        sizes = ("dim", "ffn_dim", "out_dim", "text_dim", "freq_dim", "eps", "num_heads", "num_layers", "patch_size")
        wan = host.WanModel(in_dim=16, has_image_input=False, **{name: getattr(config, name) for name in sizes})
        empty = Checkpoint({}, "lora", CheckpointConfig(in_dim=33, lora=LoRAConfig()), "released")
        shapes = _wanted_lora_shapes(wan, config, empty)
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters


def broken(tensors, config, fault):
    """A copy of a checkpoint's content with one fault."""
    tensors, config = dict(tensors), json.loads(json.dumps(config))
    if fault == "missing key":
        del tensors["audio_cond_projs.1.bias"]
    elif fault == "unknown key":
        tensors["audio_cond_projs.7.bias"] = torch.zeros(96)
    elif fault == "lone adapter":
        del tensors["blocks.0.self_attn.q.lora_B.default.weight"]
    elif fault == "missing adapter":
        for part in "AB":
            del tensors[f"blocks.3.ffn.0.lora_{part}.default.weight"]
    elif fault == "wrong shape":
        tensors["audio_proj.norm_out.weight"] = torch.zeros(31)
    elif fault == "wrong rank":
        config["lora_rank"] = 128
    elif fault == "wrong channels":
        config["model_config"]["in_dim"] = 49
    elif fault == "flat embedding":
        tensors["patch_embedding.weight"] = torch.zeros(5)
    elif fault == "flat adapter":
        tensors["blocks.0.self_attn.q.lora_A.default.weight"] = torch.tensor(1.0)
    elif fault == "whole numbers":
        tensors["audio_proj.norm_out.weight"] = torch.zeros(32, dtype=torch.int32)
    elif fault == "several alphas in one":
        tensors["blocks.0.self_attn.q.alpha"] = torch.ones(3)
    elif fault == "no alpha":
        tensors["blocks.0.self_attn.q.alpha"] = torch.tensor(float("nan"))
    elif fault == "no omniavatar":
        tensors = {"weight": torch.zeros(1)}
    return tensors, config


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing key", r"missing audio_cond_projs\.1\.bias"),
        ("unknown key", r"unknown audio_cond_projs\.7\.bias"),
        ("lone adapter", r"blocks\.0\.self_attn\.q has only one of lora_A and lora_B"),
        ("missing adapter", r"missing blocks\.3\.ffn\.0\.lora_A\.weight"),
        ("wrong shape", r"audio_proj\.norm_out\.weight is \[31\], wanted \[32\]"),
        ("wrong rank", "has LoRA rank 4, but its config.json says lora_rank 128"),
        ("wrong channels", "takes 33 channels, but its config.json says in_dim 49"),
        ("no omniavatar", r"no audio_proj\.proj\.weight"),
        ("flat embedding", r"patch_embedding\.weight has the shape \[5\], wanted 5 dimensions"),
        ("flat adapter", r"blocks\.0\.self_attn\.q: lora_A \[\] and lora_B"),
        ("whole numbers", r"audio_proj\.norm_out\.weight is torch\.int32; wanted floats"),
        ("several alphas in one", r"blocks\.0\.self_attn\.q\.alpha has the shape \[3\], wanted one number"),
        ("no alpha", "lora_alpha is nan"),
    ],
)
def test_faulty_checkpoints_are_named(family_folder, tmp_path, fault, message):
    source = family_folder / FILES["omniavatar"]
    tensors = torch.load(source / "pytorch_model.pt", weights_only=True)
    tensors, config = broken(tensors, json.loads((source / "config.json").read_text()), fault)
    torch.save(tensors, tmp_path / "pytorch_model.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as raised:
        family_dit(family_folder, tmp_path)
    assert str(tmp_path) in str(raised.value)


class Explosive:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickles_are_never_executed(tmp_path, capsys):
    file = tmp_path / "model.pt"
    for save in (lambda: torch.save({"x": Explosive()}, file), lambda: file.write_bytes(pickle.dumps(Explosive()))):
        save()
        with pytest.raises(CheckpointError, match=f"{file} is no file of tensors, and nothing of it was executed"):
            load_checkpoint(file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(CheckpointError, match="wanted a flat dict of tensors"):
        load_checkpoint(file)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_damaged_files_are_named(family_folder, tmp_path, name):
    file = tmp_path / name
    for content in (b"", b"not a checkpoint at all" * 100):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=str(file)):
            load_checkpoint(file)


def test_a_foreign_file_is_not_recommended_to_be_executed(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"\x89PNG not a checkpoint")
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(file)
    assert "weights_only" not in str(raised.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"num_heads": "3"}', '{"num_heads": 0}', "[" * 100_000, "\xff"])
def test_a_faulty_config_of_the_base_is_named(family_folder, tmp_path, content):
    base = tmp_path / FILES["dit"]
    shutil.copy(family_folder / FILES["dit"], base)
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json|number of heads"):
        convert(family_folder / FILES["omniavatar"], tmp_path / "merged.safetensors", "merged", base=base)


def test_absent_and_ambiguous_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no"):
        load_checkpoint(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"a\.safetensors', 'b\.safetensors'.*name the one"):
        load_checkpoint(tmp_path)


def test_config_json_is_read_and_written_back(tmp_path):
    config = CheckpointConfig(
        in_dim=49,
        lora=LoRAConfig(rank=8, alpha=4.0),
        model=replace(PRESETS["1.3B"], in_dim=49),
        conventions=Conventions(leading_audio_rows=0, first_frame="masked", prefix_frames=()),
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert CheckpointConfig.load(file) == config
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds a list"):
        CheckpointConfig.load(file)
    file.write_text('{"omniavatar": {"conventions": {"first_frame": "blurred"}}}')
    with pytest.raises(ValueError, match=r"config\.json: first_frame is 'blurred'"):
        CheckpointConfig.load(file)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_loading_through_the_host(family_folder, tmp_path):
    """LoRA and merged checkpoints give the same pipeline, from folders and files, with the checkpoint's conventions."""
    from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline

    configs = family_configs(family_folder)
    source = family_folder / FILES["omniavatar"]
    shutil.copytree(source, tmp_path / "omni")
    merged = convert(source, tmp_path / "merged.safetensors", "merged", base=family_folder / FILES["dit"])
    with_merged = [
        host.ModelConfig(path=str(merged)) if config.path == str(source) else config
        for config in family_configs(family_folder)["model_configs"]
        if config.path != str(family_folder / FILES["dit"])
    ]
    for model_configs in (configs["model_configs"], with_merged):
        pipe = OmniAvatarPipeline.from_pretrained(
            torch_dtype=torch.float32,
            device="cpu",
            model_configs=model_configs,
            tokenizer_config=configs["tokenizer_config"],
        )
        assert isinstance(pipe, OmniAvatarPipeline) and pipe.conventions == TINY.conventions
        assert pipe.speech_encoder.feature_dim == pipe.dit.config.audio_dim
        wanted = family_output(family_dit(family_folder, source))
        assert relative_deviation(family_output(pipe.dit), wanted) < OUTPUT_TOLERANCE


def test_a_checkpoint_without_its_base_says_what_to_add(family_folder):
    from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline

    configs = family_configs(family_folder)
    without_base = [c for c in configs["model_configs"] if c.path != str(family_folder / FILES["dit"])]
    with pytest.raises(ValueError, match=r"goes on top of the transformer .* add .* ModelConfig"):
        OmniAvatarPipeline.from_pretrained(
            torch_dtype=torch.float32,
            device="cpu",
            model_configs=without_base,
            tokenizer_config=configs["tokenizer_config"],
        )


@pytest.mark.parametrize("prefix", ["", "dit.", "pipe.dit.", "module.pipe.dit.", "module.model.diffusion_model."])
def test_all_prefixes_of_a_key_are_removed(prefix):
    """As of a model that one wrapper has put into another."""
    assert normal_key(f"{prefix}blocks.0.ffn.0.lora_A.default.weight") == "blocks.0.ffn.0.lora_A.weight"
    assert normal_key(f"{prefix}audio_proj.proj.weight") == "audio_proj.proj.weight"
