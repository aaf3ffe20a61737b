"""Other programs' LoRAs on a pipeline: summed with OmniAvatar's own and rounded once, taken off to the bit."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffsynth_omniavatar import add_lora, host, remove_loras
from diffsynth_omniavatar.generation import loading
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.placement import move
from diffsynth_omniavatar.model.blocks.quantized import quantize_weight
from diffsynth_omniavatar.model.checkpoint import CheckpointError, load_checkpoint
from diffsynth_omniavatar.model.files import SMALL_FAMILY, model_files
from diffsynth_omniavatar.model.lora_files import base_lora
from diffsynth_omniavatar.model.lora_merge import named_weights
from diffsynth_omniavatar.nano.family import write_random_family

Q, FFN, NORM = "blocks.1.self_attn.q", "blocks.0.ffn.0", "blocks.2.norm3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small family, and LoRA files that fit it."""
    folder = write_random_family(tmp_path_factory.mktemp("family"))
    generator = torch.Generator().manual_seed(3)
    shapes = {name: load_file(folder / SMALL_FAMILY["dit"])[f"{name}.weight"].shape for name in (Q, FFN)}
    plain = {}
    for name, (rows, columns) in shapes.items():
        plain[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
        plain[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        plain[f"diffusion_model.{name}.alpha"] = torch.tensor(1.0)
    plain[f"diffusion_model.{NORM}.diff_b"] = torch.ones(shapes[Q][0])
    save_file(plain, folder / "plain.safetensors")
    dora = {key: tensor for key, tensor in plain.items() if Q in key}
    save_file(dora | {f"diffusion_model.{Q}.dora_scale": torch.ones(shapes[Q][0], 1)}, folder / "dora.safetensors")
    torch.save({f"transformer.{NORM.replace('norm3', 'norm2')}.diff": torch.ones(shapes[Q][0])}, folder / "norm.pt")
    return folder


def wanted(folder, strength):
    """The weights that plain.safetensors changes: base, OmniAvatar's part and the file's, in float32."""
    base, own, file = load_file(folder / SMALL_FAMILY["dit"]), load_checkpoint(folder / "omniavatar"), {}
    plain = load_file(folder / "plain.safetensors")
    for name in (Q, FFN):
        own_part = own.tensors[f"{name}.lora_B.weight"] @ own.tensors[f"{name}.lora_A.weight"]
        start = f"diffusion_model.{name}.lora"
        part = plain[f"{start}_up.weight"] @ plain[f"{start}_down.weight"]
        weight = base[f"{name}.weight"].to(torch.bfloat16).float()
        file[f"{name}.weight"] = weight + own.config.lora.scale * own_part + strength * 0.5 * part
    file[f"{NORM}.bias"] = base[f"{NORM}.bias"].to(torch.bfloat16).float() + strength
    return file


def weights(pipe):
    return {name: weight.detach().clone() for name, weight in named_weights(pipe.dit).items()}


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def plain_pipe(folder):
    """In bfloat16, with no other LoRA."""
    return loading.load_pipeline(folder=folder, device="cpu", dtype="bfloat16")


def test_loaded_with_it_all_is_summed_and_rounded_once(folder, plain_pipe, caplog):
    caplog.set_level(logging.INFO)
    pipe = loading.load_pipeline(
        folder=folder, device="cpu", dtype="bfloat16", loras=[(folder / "plain.safetensors", 0.7), folder / "norm.pt"]
    )
    found, before = weights(pipe), weights(plain_pipe)
    assert "plain.safetensors with strength 0.7: LoRA of 2 tensors and differences of 1 tensor, rank 2" in caplog.text
    for name, value in wanted(folder, 0.7).items():
        assert torch.equal(found[name], value.bfloat16()), name
    assert torch.equal(found[f"{NORM}.weight"], (before[f"{NORM}.weight"].float() + 1).bfloat16())
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {f"{Q}.weight", f"{FFN}.weight", f"{NORM}.weight", f"{NORM}.bias"}


def test_added_ones_add_up_and_come_off_to_the_bit(folder, plain_pipe):
    before = weights(plain_pipe)
    said = add_lora(plain_pipe, folder / "plain.safetensors", 0.5)
    assert "strength 0.5" in said and not same(weights(plain_pipe), before)
    add_lora(plain_pipe, folder / "plain.safetensors", -0.5)
    assert same(weights(plain_pipe), before)
    add_lora(plain_pipe, folder / "dora.safetensors")
    rows = plain_pipe.dit.get_parameter(f"{Q}.weight").float().norm(dim=1)
    assert torch.allclose(rows, torch.ones(()), atol=0.01)
    with pytest.raises(CheckpointError, match="is no LoRA file"):
        add_lora(plain_pipe, folder / SMALL_FAMILY["dit"])
    remove_loras(plain_pipe)
    remove_loras(plain_pipe)
    assert same(weights(plain_pipe), before) and not plain_pipe.loras and not plain_pipe.kept_weights


def test_under_adapters_the_base_changes(folder):
    loras = [(folder / "plain.safetensors", 0.7)]
    pipe = loading.load_pipeline(folder=folder, device="cpu", lora="adapters", loras=loras)
    fused = loading.load_pipeline(folder=folder, device="cpu", loras=loras)
    layer = pipe.dit.get_submodule(Q)
    assert torch.allclose(
        layer.base_layer.weight + layer.get_delta_weight("default"), fused.dit.get_parameter(f"{Q}.weight"), atol=1e-6
    )
    before = weights(pipe)
    add_lora(pipe, folder / "plain.safetensors", -0.7)
    base = load_file(folder / SMALL_FAMILY["dit"])
    assert torch.allclose(layer.base_layer.weight, base[f"{Q}.weight"], atol=1e-6)
    remove_loras(pipe)
    assert same(weights(pipe), before)
    with pytest.raises(CheckpointError, match=r"dora.safetensors is a DoRA.*kept apart"):
        add_lora(pipe, folder / "dora.safetensors")


@pytest.mark.parametrize("limit", [0.0, 1000.0])
def test_offloaded_weights_are_added_to(folder, monkeypatch, limit):
    for backend in (torch.cuda, torch.cpu):  # what the hosts ask of a GPU, answered for the CPU
        monkeypatch.setattr(backend, "mem_get_info", lambda *_: (0, 100 * 2**30), raising=False)
        monkeypatch.setattr(backend, "empty_cache", lambda: None, raising=False)
    arguments = loading.pipeline_arguments(model_files(folder=folder))
    arguments |= {"device": "cpu", "torch_dtype": torch.bfloat16, "omniavatar_loras": [folder / "plain.safetensors"]}
    offloaded = host.load_within(limit, OmniAvatarPipeline.from_pretrained, arguments)
    found = weights(offloaded)
    for name, value in wanted(folder, 1.0).items():
        assert torch.equal(found[name], value.bfloat16()), name
    weight = named_weights(offloaded.dit)[f"{Q}.weight"]
    layer = next(module for module in offloaded.dit.modules() if getattr(module, "weight", None) is weight)
    tokens = torch.randn(2, weight.shape[1], dtype=torch.bfloat16)
    offloaded.load_models_to_device(["dit"])
    first = layer(tokens)
    assert torch.equal(first, torch.nn.functional.linear(tokens, found[f"{Q}.weight"], found[f"{Q}.bias"]))
    add_lora(offloaded, folder / "dora.safetensors")
    assert not torch.equal(layer(tokens), first)
    remove_loras(offloaded)
    assert torch.equal(layer(tokens), first) and same(weights(offloaded), found)


def test_what_does_not_fit_is_told_before_anything_is_loaded(folder, tmp_path, monkeypatch):
    def load(**_):
        raise AssertionError("loaded")

    monkeypatch.setattr(OmniAvatarPipeline, "from_pretrained", load)
    large = {f"{Q}.lora_A.weight": torch.zeros(2, 5120), f"{Q}.lora_B.weight": torch.zeros(5120, 2)}
    save_file(large, tmp_path / "14b.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    for file, said in [
        ("14b.safetensors", rf"14b.safetensors: {Q}.weight is changed by \[5120, 5120\], the model's is"),
        ("cut.safetensors", "is it cut"),
        ("not.safetensors", "not.safetensors is not there"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            loading.load_pipeline(folder=folder, device="cpu", loras=[tmp_path / file])
    with pytest.raises(ValueError, match=r"changed by \[5120, 5120\], the model's is \[1536, 1536\]"):
        loading.load_pipeline("1.3B", device="cpu", loras=[tmp_path / "14b.safetensors"])
    with pytest.raises(ValueError, match="strength is 'much'"):
        loading.load_pipeline(folder=folder, device="cpu", loras=[(folder / "norm.pt", "much")])
    with pytest.raises(AssertionError, match="loaded"):
        loading.load_pipeline("14B", device="cpu", loras=[tmp_path / "14b.safetensors"])


def test_files_of_a_hub_are_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFSYNTH_DOWNLOAD_SOURCE", raising=False)
    asked = []

    def download(config):
        asked.append(getattr(config, "download_source", None) or config.download_resource)
        file = tmp_path / "models" / config.model_id / config.origin_file_pattern
        file.parent.mkdir(parents=True)
        file.touch()

    monkeypatch.setattr(host.ModelConfig, "download_if_necessary", download)
    for _ in range(2):
        path = loading.local_lora("Kijai/Wan:x/a.safetensors")
    assert str(path) == "models/Kijai/Wan/x/a.safetensors" and asked == ["huggingface"]
    monkeypatch.setattr(host.ModelConfig, "download_if_necessary", lambda config: 1 / 0)
    monkeypatch.setattr(host, "hub_config", lambda *_: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(OSError, match=r"cannot download Kijai/Wan/b.safetensors.*--lora.*refused"):
        loading.local_lora("Kijai/Wan:b.safetensors")


def test_a_checkpoint_asks_for_the_lora_that_it_was_trained_on(folder, tmp_path, caplog):
    for name in ("dit", "text_encoder", "vae", "tokenizer", "wav2vec2"):
        (tmp_path / SMALL_FAMILY[name]).symlink_to(folder / SMALL_FAMILY[name])
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    (tmp_path / "omniavatar").mkdir()
    (tmp_path / "omniavatar" / "pytorch_model.pt").symlink_to(folder / "omniavatar" / "pytorch_model.pt")
    config = json.loads((folder / "omniavatar" / "config.json").read_text())
    recorded = base_lora((folder / "norm.pt", 0.5))
    config["omniavatar"]["base_loras"] = [vars(recorded)]
    (tmp_path / "omniavatar" / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(tmp_path / "omniavatar").config.base_loras == (recorded,)
    assert load_checkpoint(tmp_path / "omniavatar").config.to_dict()["omniavatar"]["base_loras"] == [vars(recorded)]
    loading.load_pipeline(folder=tmp_path, device="cpu", loras=[folder / "norm.pt"])
    assert f"was trained on weights with the LoRA norm.pt:0.5 (SHA-256 {recorded.sha256[:12]}...)" in caplog.text
    caplog.clear()
    loading.load_pipeline(folder=tmp_path, device="cpu", loras=[(folder / "norm.pt", 0.5)])
    assert "was trained on" not in caplog.text


def test_8_bits_and_streams_come_after_all_loras(folder):
    plain, loras = folder / "plain.safetensors", [(folder / "plain.safetensors", 0.7)]
    pipe = loading.load_pipeline(folder=folder, device="cpu", dtype="bfloat16", quantize="fp8_weights", loras=loras)
    wanted_weight = quantize_weight(wanted(folder, 0.7)[f"{FFN}.weight"].bfloat16(), "fp8_weights")
    x = torch.eye(wanted_weight.values.shape[1], dtype=torch.bfloat16)
    found = pipe.dit.get_submodule(FFN)(x) - pipe.dit.get_submodule(FFN)(torch.zeros_like(x))
    torch.testing.assert_close(found.T, wanted_weight.widened(torch.bfloat16), rtol=0, atol=0.05)
    with pytest.raises(CheckpointError, match="quantised or streamed already: load it together with"):
        add_lora(pipe, plain)
    streamed = loading.load_pipeline(folder=folder, device="cpu", stream_weights=True, loras=loras)
    with pytest.raises(CheckpointError, match="quantised or streamed already"):
        add_lora(streamed, plain)
    with pytest.raises(ValueError, match="weights are streamed or offloaded"):
        move(streamed, "cpu")


def test_dora_acts_on_what_comes_before_it_or_is_refused(folder):
    loras = [folder / "dora.safetensors"]
    fused = loading.load_pipeline(folder=folder, device="cpu", loras=loras)
    rows = fused.dit.get_parameter(f"{Q}.weight").norm(dim=1)
    assert torch.allclose(rows, torch.ones(()), atol=1e-5)  # so OmniAvatar's LoRA is in the weight that it turns
    with pytest.raises(CheckpointError, match=r"dora.safetensors is a DoRA.*kept apart"):
        loading.load_pipeline(folder=folder, device="cpu", lora="adapters", loras=loras)
