"""The recipe gives the very tensors that the goldens were made from.

Normals may differ in the last bit between processor families, so values are compared with a tolerance, not by hash.
"""

import json
from pathlib import Path

import pytest
import torch
from recipe import inp, weight
from safetensors.torch import load_file

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_recipe_gives_the_recorded_weights(goldens: Path) -> None:
    recorded = json.loads((goldens / "recipe.json").read_text())
    for name in recorded["order"]:
        tensor = weight(name, recorded["weights"][name]["shape"], recorded["seed"])
        assert tensor.flatten()[:4].tolist() == pytest.approx(recorded["weights"][name]["first"], rel=1e-6)
        assert tensor.double().sum().item() == pytest.approx(recorded["weights"][name]["sum"], rel=1e-5)


def test_recipe_gives_the_stored_inputs(goldens: Path) -> None:
    seed = json.loads((goldens / "meta.json").read_text())["seed"]
    for name, stored in load_file(goldens / "dit_v2v.safetensors").items():
        if name.startswith("in."):
            made = inp("dit_v2v", "A/" + name.removeprefix("in."), stored.shape, seed)
            torch.testing.assert_close(made, stored, rtol=1e-6, atol=1e-6)
