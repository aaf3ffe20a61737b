"""A checkpoint's LoRA in other programs' files: each form adds, with strength 1, what the checkpoint adds."""

import pytest
import torch
from safetensors.torch import load_file

from diffsynth_omniavatar.model.checkpoint import CheckpointError, load_checkpoint, shapes_of
from diffsynth_omniavatar.model.convert import convert
from diffsynth_omniavatar.model.files import SMALL_FAMILY
from diffsynth_omniavatar.model.lora import own_lora, split_lora
from diffsynth_omniavatar.model.lora_files import lora_of, read_tensors
from diffsynth_omniavatar.model.lora_keys import SPELLINGS
from diffsynth_omniavatar.nano.family import write_random_family

KEYS = {
    "lightx2v": ("diffusion_model.blocks.0.self_attn.q.lora_down.weight", "diffusion_model.blocks.0.ffn.0.alpha"),
    "kohya": ("lora_unet_blocks_0_cross_attn_o.lora_up.weight", "lora_unet_blocks_0_ffn_2.alpha"),
    "diffusers": (
        "transformer.blocks.0.attn2.to_out.0.lora_B.weight",
        "transformer.blocks.0.ffn.net.0.proj.lora_A.weight",
    ),
    "peft": ("base_model.model.blocks.0.self_attn.q.lora_A.weight",),
    "diffsynth": ("blocks.0.self_attn.q.lora_A.default.weight",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_family(tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("form", KEYS)
def test_a_form_adds_what_the_checkpoint_adds(folder, tmp_path, form):
    source = folder / SMALL_FAMILY["omniavatar"]
    loaded, shapes = load_checkpoint(source), shapes_of(load_file(folder / SMALL_FAMILY["dit"]))
    tensors = read_tensors(convert(source, tmp_path / "lora.safetensors", "lora", lora_form=form))
    assert (
        set(KEYS[form]) <= set(tensors) and any(key.endswith(".alpha") for key in tensors) == SPELLINGS[form].has_alpha
    )
    lora = lora_of(tensors, shapes, form)
    own = own_lora(split_lora(loaded.tensors)[0], loaded.config.lora, "own")
    assert not lora.passed_over() and set(lora.changes) == set(own.changes)
    for name, change in own.changes.items():
        nothing = torch.zeros(shapes[name])
        wanted, found = (one.applied(nothing.clone(), 1.0) for one in (change, lora.changes[name]))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert set(KEYS) | {"comfyui"} == set(SPELLINGS)


def test_the_default_form_is_a_checkpoint_and_no_lora_beside_one(folder, tmp_path):
    source = folder / SMALL_FAMILY["omniavatar"]
    path = convert(source, tmp_path / "lora.safetensors", "lora")
    assert set(load_checkpoint(path).tensors) == set(load_checkpoint(source).tensors)
    with pytest.raises(CheckpointError, match="is an OmniAvatar checkpoint, not a LoRA beside it"):
        lora_of(read_tensors(path), {}, "x")
    with pytest.raises(CheckpointError, match=r"no form 'lycoris'.*kohya"):
        convert(source, tmp_path / "x.safetensors", "lora", lora_form="lycoris")
    with pytest.raises(CheckpointError, match=r"lora_form kohya .* --to lora alone"):
        convert(source, tmp_path / "x", "omniavatar", lora_form="kohya")
