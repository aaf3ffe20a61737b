"""Every spelling of a LoRA file adds what a dense sum adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffsynth_omniavatar.model.checkpoint import CheckpointError
from diffsynth_omniavatar.model.lora_files import lora_changes, merge_changes, restore_weights

Q = "blocks.0.self_attn.q"
SPELLINGS = [
    (f"diffusion_model.{Q}", "lora_down", "lora_up"),
    ("lora_unet_blocks_0_self_attn_q", "lora_down", "lora_up"),
    ("lora_unet__blocks_0_self_attn_q", "lora_down", "lora_up"),
    ("transformer.blocks.0.attn1.to_q", "lora_A", "lora_B"),
    (Q, "lora_A.default", "lora_B.default"),
    (f"pipe.dit.{Q}", "lora_A.default", "lora_B.default"),
    (f"base_model.model.{Q}", "lora_A", "lora_B"),
    (f"diffusion_model.{Q}", "lora_A", "lora_B"),
]


def small(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    block = nn.Module()
    block.self_attn = nn.ModuleDict({"q": nn.Linear(6, 6)})
    block.modulation = nn.Parameter(torch.randn(1, 6, 6))
    model = nn.Module()
    model.blocks = nn.ModuleList([block])
    return model.to(dtype)


def pair(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, generator=generator), torch.randn(6, 2, generator=generator)


@pytest.mark.parametrize(("module", "down", "up"), SPELLINGS)
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_spelling_is_a_dense_sum(module: str, down: str, up: str, alpha: float | None) -> None:
    a, b = pair()
    file = {f"{module}.{down}.weight": a, f"{module}.{up}.weight": b}
    if alpha is not None:
        file[f"{module}.alpha"] = torch.tensor(alpha)
    model = small()
    wanted = model.get_parameter(f"{Q}.weight") + (0.7 if alpha is None else 0.7 * alpha / 2) * b @ a
    changes, passed, unknown = lora_changes(file, model, "x")
    merge_changes(model, [(changes, 0.7)])
    assert not passed and not unknown
    torch.testing.assert_close(model.get_parameter(f"{Q}.weight"), wanted, rtol=0, atol=1e-6)


def test_differences_notices_and_unknown_keys() -> None:
    file = {
        f"{Q}.diff_b": torch.ones(6),
        "blocks.0.diff_m": torch.ones(1, 6, 6),
        "blocks.0.cross_attn.k_img.diff_b": torch.ones(6),
        "patch_embedding.diff": torch.ones(6),
        "blocks.9.norm3.diff": torch.ones(6),
        "what": torch.ones(1),
    }
    changes, passed, unknown = lora_changes(file, small(), "x")
    assert set(changes) == {f"{Q}.bias", "blocks.0.modulation"}
    assert passed == ["blocks.0.cross_attn.k_img.diff_b", "patch_embedding.diff"]
    assert sorted(unknown) == ["blocks.9.norm3.diff", "what"]


def test_two_commute_one_cast_and_bits_come_back() -> None:
    model, other = small(torch.bfloat16), small(torch.bfloat16)
    before = model.get_parameter(f"{Q}.weight").clone()
    one, two = ({f"{Q}.weight": (b @ a)} for a, b in (pair(1), pair(2)))
    kept = merge_changes(model, [(one, 1.0), (two, 0.5)])
    merge_changes(other, [(two, 0.5), (one, 1.0)])
    after = model.get_parameter(f"{Q}.weight")
    assert torch.equal(after, other.get_parameter(f"{Q}.weight"))
    assert torch.equal(after, (before.float() + one[f"{Q}.weight"] + 0.5 * two[f"{Q}.weight"]).bfloat16())
    restore_weights(model, kept)
    assert torch.equal(model.get_parameter(f"{Q}.weight"), before)
    merge_changes(model, [(one, 0.0)])
    assert torch.equal(model.get_parameter(f"{Q}.weight"), before)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"unet.x.lora_A.weight": torch.ones(2, 6), "unet.x.lora_B.weight": torch.ones(6, 2)}, "none of its 2 keys"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 6)}, "only one"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 5), f"{Q}.lora_B.weight": torch.ones(6, 2)}, r"\[6, 5\]"),
        ({f"{Q}.diff_b": torch.ones(6), f"diffusion_model.{Q}.diff_b": torch.ones(6)}, "twice"),
    ],
)
def test_faults_are_named(file: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        lora_changes(file, small(), "x")
