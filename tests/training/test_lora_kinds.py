"""A new LoRA of each kind changes nothing before it trains, and its checkpoint makes of the weights what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import flags, write_inputs

from diffsynth_omniavatar.model.checkpoint import LORA_KEY, CheckpointError, load_checkpoint, save_safetensors
from diffsynth_omniavatar.model.config import LORA_KINDS, CheckpointConfig, LoRAConfig
from diffsynth_omniavatar.model.convert import convert
from diffsynth_omniavatar.model.lora import adapted_layers, lora_file_tensors, trained_tensors
from diffsynth_omniavatar.model.small_family import TINY, networks
from diffsynth_omniavatar.model.upgrade import apply_checkpoint, initialise_on_wan
from diffsynth_omniavatar.nano.family import randomise
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.flags import parse_arguments
from diffsynth_omniavatar.training.load import new_lora
from diffsynth_omniavatar.training.module import add_lora

ON_CPU: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
PATTERN = (("ffn", 6), ("self_attn.q", 2))


def wan() -> Any:
    """A tiny Wan transformer; the same each time."""
    model = networks(TINY)["dit"].made().eval()
    model.load_state_dict(randomise(model, torch.Generator().manual_seed(0)))
    return model


def trained(lora: LoRAConfig) -> Any:
    """A denoiser with a LoRA that has been somewhere."""
    dit = initialise_on_wan(wan(), 33, audio_dim=TINY.dit.audio_dim, **ON_CPU)
    add_lora(dit, lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in dit.named_parameters():
            if LORA_KEY.match(name):
                value += 0.3 * torch.randn(value.shape, generator=generator)
    return dit


def saved(dit: Any, lora: LoRAConfig, folder: Path) -> Path:
    save_safetensors(folder / "model.safetensors", trained_tensors(dit), CheckpointConfig(lora=lora, model=dit.config))
    return folder / "model.safetensors"


@pytest.mark.parametrize("pattern", [(), PATTERN])
@pytest.mark.parametrize("kind", LORA_KINDS)
def test_generating_adds_what_was_trained(tmp_path, kind, pattern):
    lora = LoRAConfig(rank=4, alpha=3.0, target_modules=("q", "o", "ffn.0"), kind=kind, rank_pattern=pattern)
    dit = trained(lora)
    checkpoint = load_checkpoint(saved(dit, lora, tmp_path))
    assert checkpoint.config.lora == lora
    fused, again = (apply_checkpoint(wan(), checkpoint, lora=way, **ON_CPU) for way in ("fused", "adapters"))
    layers = adapted_layers(fused, lora.target_modules)
    for name, layer in layers.items():
        x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(2))
        wanted = dit.get_submodule(name)(x)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)  # the sum in another order
        assert (wanted - dit.get_submodule(name).base_layer(x)).abs().max() > 0.01
    tensors = trained_tensors(again)
    assert all(torch.equal(tensors[name], value) for name, value in trained_tensors(dit).items())
    assert len(layers) == 5 * len(dit.blocks) and len(checkpoint.lora_modules) == len(layers)


@pytest.mark.parametrize("kind", LORA_KINDS)
def test_a_fresh_one_changes_nothing(kind):
    dit = initialise_on_wan(wan(), 33, audio_dim=TINY.dit.audio_dim, **ON_CPU)
    add_lora(dit, LoRAConfig(rank=4, alpha=3.0, target_modules=("ffn.2",), kind=kind))
    layer = dit.blocks[1].ffn[2]
    x = torch.randn(3, layer.in_features)
    torch.testing.assert_close(layer(x), layer.base_layer(x), rtol=1e-5, atol=1e-6)  # a DoRA's norms are computed


def test_ranks_are_those_of_the_last_part_that_fits():
    lora = LoRAConfig(rank=4, alpha=3.0, rank_pattern=(("ffn", 6), ("ffn.2", 8), ("blocks.1", 5)))
    names = ("blocks.0.ffn.0", "blocks.0.ffn.2", "blocks.1.ffn.2", "blocks.11.self_attn.q")
    assert [lora.rank_of(name) for name in names] == [6, 8, 5, 4]
    assert all(lora.alpha_of(name) / lora.rank_of(name) == pytest.approx(0.75) for name in names)


def test_other_forms_have_the_ranks_or_are_refused(tmp_path):
    lora = LoRAConfig(rank=4, alpha=3.0, rank_pattern=PATTERN)
    checkpoint = load_checkpoint(saved(trained(lora), lora, tmp_path))
    tensors, _ = lora_file_tensors(checkpoint)
    for module, rank in (("blocks.1.ffn.2", 6), ("blocks.1.self_attn.q", 2), ("blocks.1.cross_attn.q", 4)):
        up, down = (tensors[f"diffusion_model.{module}.lora_{part}.weight"] for part in "BA")
        assert len(down) == rank == tensors[f"diffusion_model.{module}.alpha"]
        torch.testing.assert_close(up, 0.75 * checkpoint.tensors[f"{module}.lora_B.weight"])
    with pytest.raises(CheckpointError, match=r"a LoRA of one rank.*--to merged"):
        convert(tmp_path / "model.safetensors", tmp_path / "out", "omniavatar")
    lokr = LoRAConfig(rank=4, alpha=3.0, kind="lokr")
    file = saved(trained(lokr), lokr, tmp_path)
    with pytest.raises(CheckpointError, match="is a LoKr, which is not written as a LoRA file"):
        convert(file, tmp_path / "a.safetensors", "lora")
    save_safetensors(file, load_checkpoint(file).tensors, CheckpointConfig(lora=LoRAConfig(rank=4)))
    with pytest.raises(CheckpointError, match=r"low-rank parts of a lokr, but its config\.json, if any, says lora"):
        load_checkpoint(file)


def test_the_scale_of_an_rslora_is_alpha_over_the_root_of_its_rank(tmp_path):
    args = parse_arguments(flags(tmp_path, tmp_path, "--lora_kind", "rslora", "--lora_alpha", "3", "--lora_rank", "4"))
    assert new_lora(args) == LoRAConfig(rank=4, alpha=6.0)
    assert new_lora(args).scale == 3 / 4**0.5


@pytest.mark.slow
def test_the_launcher_trains_saves_and_resumes_them(tmp_path):
    folder = write_inputs(tmp_path)
    arguments = flags(folder, tmp_path / "run", "--max_steps", "2", "--save_steps", "1", "--lora_rank", "4")
    place = arguments.index("--omniavatar_checkpoint")
    del arguments[place : place + 2]
    arguments += ["--lora_kind", "dora", "--lora_rank_pattern", "ffn.0=6", "--lr_audio", "0", "--num_frames", "5"]
    arguments += ["--prefix_frames", "1", "--lora_target_modules", "q,ffn.0"]
    assert run.main(arguments) == 0
    loaded = [load_checkpoint(tmp_path / "run" / f"step-{step}") for step in (1, 2)]
    lora = loaded[1].config.lora
    assert (lora.kind, lora.scale, lora.rank_of("blocks.0.ffn.0")) == ("dora", 0.5, 6)
    for key, value in loaded[1].tensors.items():  # the audio modules have a rate of 0 of their own
        assert torch.equal(value, loaded[0].tensors[key]) == key.startswith("audio_"), key
    (tmp_path / "run" / "step-2").rename(tmp_path / "whole")
    assert run.main([*arguments, "--resume", "latest"]) == 0
    again = load_checkpoint(tmp_path / "run" / "step-2").tensors
    assert all(torch.equal(value, again[key]) for key, value in load_checkpoint(tmp_path / "whole").tensors.items())
