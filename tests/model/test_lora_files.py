"""LoRA files of other programs: every spelling and form adds what a dense sum adds; what does not fit is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffsynth_omniavatar.model.checkpoint import CheckpointError
from diffsynth_omniavatar.model.config import BaseLoRA
from diffsynth_omniavatar.model.files import HubFiles, hub_file, parse_lora
from diffsynth_omniavatar.model.lora_files import (
    LoRA,
    ReadLoRA,
    base_lora,
    lora_of,
    missing_base,
    read_header,
    read_tensors,
)
from diffsynth_omniavatar.model.lora_merge import fitted, merge, named_weights, restore

Q, K, FFN, NORM = "blocks.0.self_attn.q", "blocks.0.cross_attn.k", "blocks.0.ffn.2", "blocks.0.norm3"
TOLERANCE = {"rtol": 0, "atol": 1e-6}


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with some of Wan's names."""
    torch.manual_seed(0)
    block = nn.Module()
    for name in ("self_attn", "cross_attn"):
        attention = nn.ModuleDict({part: nn.Linear(6, 6) for part in "qkvo"})
        attention["norm_q"] = nn.RMSNorm(6)
        setattr(block, name, attention)
    block.ffn = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
    block.norm3 = nn.LayerNorm(6)
    block.modulation = nn.Parameter(torch.randn(1, 6, 6))
    model = nn.Module()
    model.blocks = nn.ModuleList([block])
    for name in ("text_embedding", "time_embedding"):
        setattr(model, name, nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6)))
    model.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(6, 36))
    model.patch_embedding = nn.Linear(6, 6)
    model.head = nn.Module()
    model.head.head = nn.Linear(6, 4)
    model.head.modulation = nn.Parameter(torch.randn(1, 2, 6))
    return model.to(dtype)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def added(model: nn.Module, file: dict[str, Tensor], strength: float = 0.7) -> LoRA:
    """Add a file's tensors to the model."""
    lora = fitted(ReadLoRA("x", file, strength), model)
    merge(model, [lora])
    return lora


def changed(model: nn.Module) -> dict[str, Tensor]:
    """What differs from a fresh model."""
    fresh = dict(small().named_parameters())
    return {name: w - fresh[name] for name, w in model.named_parameters() if not torch.equal(w, fresh[name])}


@pytest.mark.parametrize(
    ("module", "down", "up"),
    [
        (f"diffusion_model.{Q}", "lora_down", "lora_up"),
        ("lora_unet_blocks_0_self_attn_q", "lora_down", "lora_up"),
        ("lora_unet__blocks_0_self_attn_q", "lora_down", "lora_up"),
        ("lycoris_blocks_0_self_attn_q", "lora_down", "lora_up"),
        ("lycoris_blocks_0_attn1_to_q", "lora_down", "lora_up"),
        ("transformer.blocks.0.attn1.to_q", "lora_A", "lora_B"),
        (Q, "lora_A.default", "lora_B.default"),
        (f"pipe.dit.{Q}", "lora_A.default", "lora_B.default"),
        (f"base_model.model.{Q}", "lora_A", "lora_B"),
        (f"base_model.model.{Q}", "lora_A.mine", "lora_B.mine"),
        (f"diffusion_model.{Q}", "lora_A", "lora_B"),
    ],
)
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_spelling_is_a_dense_sum(module: str, down: str, up: str, alpha: float | None) -> None:
    a, b = drawn(2, 6), drawn(6, 2, seed=2)
    file = {f"{module}.{down}.weight": a, f"{module}.{up}.weight": b}
    if alpha is not None:
        file[f"{module}.alpha"] = torch.tensor(alpha)
    model = small()
    lora = added(model, file)
    change = changed(model)
    assert not lora.passed_over() and set(change) == {f"{Q}.weight"}
    wanted = (0.7 if alpha is None else 0.7 * alpha / 2) * b @ a
    torch.testing.assert_close(change[f"{Q}.weight"], wanted, **TOLERANCE)


@pytest.mark.parametrize(
    ("spelt", "module"),
    [
        ("blocks.0.attn2.to_k", K),
        ("blocks.0.attn1.to_out.0", "blocks.0.self_attn.o"),
        ("blocks.0.ffn.net.0.proj", "blocks.0.ffn.0"),
        ("blocks.0.ffn.net.2", FFN),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("proj_out", "head.head"),
    ],
)
def test_names_of_diffusers_and_bias_of_b(spelt: str, module: str) -> None:
    model = small()
    weight, bias = (model.get_parameter(f"{module}.{name}") for name in ("weight", "bias"))
    a, b = drawn(2, weight.shape[1]), drawn(weight.shape[0], 2)
    c = drawn(len(bias), seed=3)
    start = f"transformer.{spelt}"
    added(model, {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b, f"{start}.lora_B.bias": c,
                  f"{start}.alpha": torch.tensor(1.0)})  # fmt: skip
    change = changed(model)
    assert set(change) == {f"{module}.weight", f"{module}.bias"}
    torch.testing.assert_close(change[f"{module}.weight"], 0.35 * b @ a, **TOLERANCE)
    torch.testing.assert_close(change[f"{module}.bias"], 0.35 * c, **TOLERANCE)


def test_differences_notices_and_unknown_keys() -> None:
    ones = {
        f"diffusion_model.{Q}.diff_b": (6,),
        f"diffusion_model.{Q}.diff": (6, 6),
        "diffusion_model.blocks.0.self_attn.norm_q.diff": (6,),
        "transformer.blocks.0.norm2.diff": (6,),
        "diffusion_model.blocks.0.norm3.diff_b": (6,),
        "diffusion_model.blocks.0.diff_m": (1, 6, 6),
        "transformer.scale_shift_table.diff": (1, 2, 6),
        "diffusion_model.head.head.diff": (4, 6),
        "lycoris_blocks_0_cross_attn_norm_q.w_norm": (6,),
    }
    of_i2v = [
        "diffusion_model.blocks.0.cross_attn.k_img.diff_b",
        "diffusion_model.img_emb.proj.1.lora_down.weight",
        "transformer.blocks.0.attn2.add_v_proj.lora_A.weight",
        "lora_unet_blocks_0_cross_attn_v_img.alpha",
    ]
    unknown = ["blocks.9.norm3.diff", "lora_te_x.lora_down.weight", "lora_unet_blocks_0_self_attn_k.alpha", "what"]
    others = [*of_i2v, "diffusion_model.patch_embedding.diff", "lora_unet_patch_embedding.diff_b", *unknown]
    model = small()
    lora = added(model, {name: torch.ones(shape) for name, shape in ones.items()} | dict.fromkeys(others, drawn(1)))
    change = changed(model)
    assert set(change) == {
        f"{Q}.weight", f"{Q}.bias", "blocks.0.self_attn.norm_q.weight", f"{NORM}.weight", f"{NORM}.bias",
        "blocks.0.modulation", "head.modulation", "head.head.weight", "blocks.0.cross_attn.norm_q.weight",
    }  # fmt: skip
    assert all(torch.allclose(value, torch.tensor(0.7), **TOLERANCE) for value in change.values())
    assert lora.of_i2v == of_i2v and len(lora.of_patches) == 2 and lora.unknown == sorted(unknown)
    said = lora.report()
    assert "\n" not in said and "strength 0.7" in said and said.count("image-to-video") == 1
    assert "4 unknown keys: blocks.9.norm3.diff" in said and "4 keys of image-to-video models" in said


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("split_one", [False, True])
@pytest.mark.parametrize("split_two", [False, True])
def test_lokr_is_a_kronecker_product(alpha: float | None, split_one: bool, split_two: bool) -> None:
    one, two, file = drawn(2, 2), drawn(3, 4, seed=2), {}
    for number, (split, matrix, rank) in enumerate([(split_one, one, 1), (split_two, two, 2)], start=1):
        if split:
            a, b = drawn(matrix.shape[0], rank, seed=3), drawn(rank, matrix.shape[1], seed=4)
            matrix.copy_(a @ b)
            file |= {f"lokr_w{number}_a": a, f"lokr_w{number}_b": b}
        else:
            file[f"lokr_w{number}"] = matrix
    if alpha is not None:
        file["alpha"] = torch.tensor(alpha)
    model = small()
    lora = added(model, {f"lycoris_blocks_0_ffn_2.{name}": tensor for name, tensor in file.items()})
    rank = 2 if split_two else 1 if split_one else None
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    wanted = 0.7 * scale * torch.einsum("ab,cd->acbd", one, two).reshape(6, 8)
    torch.testing.assert_close(changed(model)[f"{FFN}.weight"], wanted, rtol=0, atol=4e-6)
    assert lora.facts().startswith("LoKr of 1 tensor")


def test_loha_is_the_product_of_two_by_its_elements() -> None:
    parts = {
        "hada_w1_a": drawn(6, 2),
        "hada_w1_b": drawn(2, 8),
        "hada_w2_a": drawn(6, 2, seed=2),
        "hada_w2_b": drawn(2, 8, seed=3),
    }
    model = small()
    added(model, {f"diffusion_model.{FFN}.{n}": t for n, t in parts.items()} | {f"{FFN}.alpha": torch.tensor(1.0)})
    a, b, c, d = parts.values()
    torch.testing.assert_close(changed(model)[f"{FFN}.weight"], 0.35 * (a @ b) * (c @ d), **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "by_column"),
    [
        ("dora_scale", False),
        ("dora_scale", True),
        ("lora_magnitude_vector", False),
        ("lora_magnitude_vector.default.weight", False),
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_dora_turns_the_weight_as_it_stands(name: str, by_column: bool, strength: float) -> None:
    a, b = drawn(2, 8), drawn(6, 2, seed=2)
    magnitude = drawn(1, 8, seed=3).abs() if by_column else drawn(6, 1, seed=3).abs()
    model = small()
    other = {f"{FFN}.weight": drawn(6, 8, seed=5)}
    first = fitted(ReadLoRA("y", {f"{FFN}.diff": other[f"{FFN}.weight"]}, 1.0), model)
    start = model.get_parameter(f"{FFN}.weight").detach() + other[f"{FFN}.weight"]
    file = {f"{FFN}.lora_A.weight": a, f"{FFN}.lora_B.weight": b, f"{FFN}.alpha": torch.tensor(1.0),
            f"{FFN}.{name}": magnitude if name == "dora_scale" else magnitude.flatten()}  # fmt: skip
    lora = fitted(ReadLoRA("x", file, strength), model)
    merge(model, [first, lora])
    turned = start + 0.5 * b @ a
    turned = magnitude * turned / turned.square().sum(0 if by_column else 1, keepdim=True).sqrt()
    wanted = start + strength * (turned - start)
    torch.testing.assert_close(model.get_parameter(f"{FFN}.weight"), wanted, rtol=0, atol=2e-6)
    assert lora.has_dora and not first.has_dora and "DoRA LoRA" in lora.facts()


def test_sums_are_rounded_once_and_bits_come_back() -> None:
    model, other = small(torch.bfloat16), small(torch.bfloat16)
    before = model.get_parameter(f"{Q}.weight").detach().clone()
    one, two = (fitted(ReadLoRA("x", {f"{Q}.diff": drawn(6, 6, seed=seed)}, 0.5), model) for seed in (1, 2))
    kept: dict[str, Tensor] = {}
    merge(model, [one], kept=kept)
    merge(model, [one, two], kept=kept)
    merge(other, [one, two])
    after = model.get_parameter(f"{Q}.weight")
    assert torch.equal(after, other.get_parameter(f"{Q}.weight"))
    assert torch.equal(after, (before.float() + 0.5 * drawn(6, 6) + 0.5 * drawn(6, 6, seed=2)).bfloat16())
    restore(model, kept)
    assert torch.equal(model.get_parameter(f"{Q}.weight"), before)
    assert all(torch.equal(w, small(torch.bfloat16).get_parameter(n)) for n, w in model.named_parameters())


def low_rank(module: str = Q, rank: int = 2, width: int = 6) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": drawn(rank, width), f"{module}.lora_B.weight": drawn(6, rank)}


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({}, "x is no LoRA file: none of its 0 keys fits"),
        ({"unet.x.lora_A.weight": drawn(2, 6)}, "no LoRA file of this model: none of its 1 key fits, like 'unet.x"),
        ({f"{Q}.weight": drawn(6, 6)}, "x is no LoRA file: none"),
        ({"blocks.0.cross_attn.k_img.diff_b": drawn(6)}, "1 key of image-to-video models"),
        ({f"{Q}.lora_A.weight": drawn(2, 6)}, "q.weight has only one of its two low-rank parts \\(down\\)"),
        ({f"{Q}.lokr_w1": drawn(2, 6)}, "has only one|low-rank parts"),
        (low_rank(width=5), r"q.weight is changed by \[6, 5\], the model's is \[6, 6\]"),
        (low_rank(rank=0), "which do not fit"),
        ({f"{Q}.lora_A.weight": drawn(2, 6), f"{Q}.lora_B.weight": drawn(6, 3)}, "do not fit"),
        ({f"{Q}.lora_A.weight": drawn(2, 6, 1), f"{Q}.lora_B.weight": drawn(6, 2)}, "do not fit"),
        ({f"{Q}.diff_b": drawn(6), f"diffusion_model.{Q}.diff_b": drawn(6)}, "are the same part"),
        (low_rank() | {f"{Q}.alpha": drawn(2)}, r"alpha of \[2\]"),
        (low_rank() | {f"{Q}.lokr_w1": drawn(2, 2)}, "parts of LoKr and LoRA at once"),
        (low_rank() | {f"{Q}.lora_mid.weight": drawn(2, 2)}, r"Tucker form \(mid\)"),
        ({f"{Q}.hada_t1": drawn(2, 2, 1, 1), f"{Q}.hada_w1_a": drawn(2, 2)}, r"Tucker form \(hada_t1\)"),
        (low_rank() | {f"{Q}.dora_scale": drawn(3, 1)}, r"magnitudes of \[3, 1\], wanted \[6, 1\] or \[1, 6\]"),
        ({f"{Q}.dora_scale": drawn(6, 1)}, "has dora without a low-rank part"),
        ({f"{Q}.lora_B.bias": drawn(6)}, "without a low-rank part"),
        ({f"{Q}.diff": torch.ones(6, 6, dtype=torch.int8)}, "int8, wanted floats"),
        ({"audio_proj.proj.weight": drawn(2, 2), **low_rank()}, "is an OmniAvatar checkpoint.*--omniavatar"),
    ],
)
def test_faults_are_named(file: dict[str, Tensor], said: str) -> None:
    model = small()
    with pytest.raises(CheckpointError, match=said):
        added(model, file)
    assert not changed(model)


def test_weights_in_wrappers_take_changes_and_others_are_refused() -> None:
    model = small()
    wrapper = nn.Module()
    wrapper.module = model.blocks[0].norm3
    model.blocks[0].norm3 = wrapper
    layer = nn.Module()
    layer.base_layer, layer.lora_A = (
        model.blocks[0].self_attn["q"],
        nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)}),
    )
    model.blocks[0].self_attn["q"] = layer
    assert set(named_weights(model)) == set(dict(small().named_parameters()))
    before = layer.base_layer.weight.detach().clone()
    lora = fitted(ReadLoRA("x", low_rank() | {f"{NORM}.diff": torch.ones(6)}), model)
    merge(model, [lora])
    assert torch.allclose(wrapper.module.weight, torch.tensor(2.0)) and not torch.equal(layer.base_layer.weight, before)
    for broken in (nn.Parameter(torch.empty(6, 6, device="meta")), nn.Parameter(torch.empty(0)), Quantised(before)):
        layer.base_layer.weight = broken
        with pytest.raises(CheckpointError, match=r"x cannot be added to blocks.0.self_attn.q.weight"):
            merge(model, [lora])
    assert torch.allclose(wrapper.module.weight, torch.tensor(2.0))


class Quantised(nn.Parameter):
    """Stands for a weight of another kind."""


def test_files_are_read_and_their_headers_tell_as_much(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in low_rank().items()} | {f"{Q}.alpha": torch.tensor(1)}
    wanted = {name: weight.shape for name, weight in named_weights(small()).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        read = lora_of(read_tensors(tmp_path / name), wanted, name)
        header = lora_of(read_header(tmp_path / name), wanted, name)
        assert set(read.changes) == set(header.changes) == {f"{Q}.weight"} and read.changes[f"{Q}.weight"].rank == 2
        assert all(tensor.is_meta for tensor in header.changes[f"{Q}.weight"].parts.values())
        assert "rank 2, alpha 1, in 1 block" in read.facts()
    save_file({f"{Q}.diff": torch.ones(6, 6, dtype=torch.int8)}, tmp_path / "i.safetensors")
    with pytest.raises(CheckpointError, match="wanted floats"):
        lora_of(read_header(tmp_path / "i.safetensors"), wanted, "i")


def test_hostile_files_are_refused(tmp_path: Path) -> None:
    save_file({f"{Q}.diff": torch.full((6, 6), float("nan"))}, tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "nan.safetensors").read_bytes()[:-8])
    (tmp_path / "text.pt").write_text("no tensors")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({1: drawn(1)}, tmp_path / "numbers.pt")
    for name, said in {
        "nan.safetensors": "not finite",
        "cut.safetensors": "is it cut",
        "text.pt": "nothing of it was executed",
        "list.pt": "no table of tensors",
        "numbers.pt": "without names",
    }.items():
        with pytest.raises(CheckpointError, match=said):
            read_tensors(tmp_path / name)
        if name != "nan.safetensors":
            with pytest.raises(CheckpointError, match=said):
                read_header(tmp_path / name)
    with pytest.raises(CheckpointError, match="has alpha inf"):
        merge(small(), [fitted(ReadLoRA("x", low_rank() | {f"{Q}.alpha": torch.tensor(torch.inf)}), small())])


@pytest.mark.parametrize(
    ("text", "file", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1e-1", "a.safetensors", -0.1),
        ("a.safetensors:.5", "a.safetensors", 0.5),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1.0),
        (r"C:\loras\a.safetensors:2", r"C:\loras\a.safetensors", 2.0),
        ("my:lora.pt", "my:lora.pt", 1.0),
        ("my:lora.pt:nan", "my:lora.pt:nan", 1.0),
        ("owner/name:a.safetensors:1", "owner/name:a.safetensors", 1.0),
        (":1", ":1", 1.0),
    ],
)
def test_strength_is_the_last_part_if_it_is_a_number(text: str, file: str, strength: float) -> None:
    assert parse_lora(text) == (file, strength)


def test_files_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_file("Kijai/WanVideo_comfy:a/b.safetensors") == HubFiles("Kijai/WanVideo_comfy", "a/b.safetensors")
    assert hub_file(r"C:\a.safetensors") is None and hub_file("C:/a/b.safetensors") is None and hub_file("a/b") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b:c.pt").touch()
    assert hub_file("a/b:c.pt") is None


def test_base_loras_are_known_by_content_and_strength(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"1")
    (tmp_path / "copy.pt").write_bytes(b"1")
    (tmp_path / "b.pt").write_bytes(b"2")
    recorded = base_lora((tmp_path / "a.pt", 0.5))
    assert recorded == BaseLoRA(file="a.pt", sha256=hashlib.sha256(b"1").hexdigest(), strength=0.5)
    assert missing_base([recorded], [tmp_path / "b.pt", (tmp_path / "copy.pt", 0.5)]) == []
    assert missing_base([], [tmp_path / "not there"]) == []
    for given in ([], [tmp_path / "a.pt"], [(tmp_path / "b.pt", 0.5)]):
        assert missing_base([recorded], given) == [f"a.pt:0.5 (SHA-256 {recorded.sha256[:12]}...)"]
    with pytest.raises(ValueError, match="strength is nan"):
        base_lora((tmp_path / "a.pt", float("nan")))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("place", ["beside", "inside"])
def test_alpha_stands_beside_the_tensors_of_peft_and_diffusers(tmp_path: Path, place: str, rslora: bool) -> None:
    config: dict[str, object] = {"r": 2, "lora_alpha": 3.0, "use_rslora": rslora, "alpha_pattern": {}}
    path, metadata, prefix = tmp_path / "a.safetensors", None, "base_model.model."
    if place == "inside":
        prefix, named = "transformer.", {f"transformer.{key}": value for key, value in config.items()}
        metadata = {"lora_adapter_metadata": json.dumps(named)}
    else:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({prefix + key: tensor for key, tensor in low_rank().items()}, path, metadata)
    model = small()
    merge(model, [fitted(ReadLoRA.of(path), model)])
    wanted = (3 / 2**0.5 if rslora else 3 / 2) * drawn(6, 2) @ drawn(2, 6)
    torch.testing.assert_close(changed(model)[f"{Q}.weight"], wanted, rtol=0, atol=2e-6)


def test_alphas_beside_files_of_others_are_not_theirs(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"lora_alpha": 3.0, "alpha_pattern": {Q: 1}}))
    save_file(low_rank(f"diffusion_model.{Q}"), tmp_path / "other.safetensors")
    assert set(read_tensors(tmp_path / "other.safetensors")) == set(low_rank(f"diffusion_model.{Q}"))
    save_file(low_rank(f"base_model.model.{Q}"), tmp_path / "a.safetensors")
    for text, said in [(config.read_text(), "alpha_pattern"), ('{"lora_alpha": "1"}', "'1', wanted a number"),
                       ("[]", "wanted a JSON object"), ("{", "adapter_config.json is not valid")]:  # fmt: skip
        config.write_text(text)
        with pytest.raises(CheckpointError, match=said):
            read_tensors(tmp_path / "a.safetensors")
