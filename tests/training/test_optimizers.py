"""An optimizer of a library takes in the loop the steps that it takes alone, and is resumed with all that it keeps."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial

import pytest
import torch
from training_toy import LEARNING_RATE, WEIGHT_DECAY, Run, ToyModule, same

from diffsynth_omniavatar.training import optimizers
from diffsynth_omniavatar.training.accelerator import OmniAccelerator, trained_parameters
from diffsynth_omniavatar.training.loader import SeededSamples
from diffsynth_omniavatar.training.optimizers import LIBRARIES, make_optimizer
from diffsynth_omniavatar.training.settings import LoopSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own
SCHEDULE = LoopSettings(max_steps=6, warmup_steps=2, lr_schedule="linear")


class Keeping(torch.optim.Optimizer):
    """Keeps numbers and nests in its state, numbers and tensors in its groups, as libraries do."""

    def __init__(self, groups):
        super().__init__(groups, {"d": 1.0, "betas": (0.5, 0.9)})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["d"] *= 0.75
            group["sum"] = group.get("sum", torch.zeros(1)) + 1
            for value in group["params"]:
                state = self.state[value]
                state["step"] = state.get("step", 0) + 1
                inner = state.setdefault("inner", {"moment": torch.zeros(3)})
                inner["moment"] = inner["moment"] + 1
                scale = group["lr"] * group["d"] * state["step"] * (group["sum"] + inner["moment"][0])
                value -= scale * value.grad


def test_all_that_an_optimizer_keeps_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "make_optimizer", lambda name, groups: Keeping(groups))
    run = Run(tmp_path / "run", replace(SCHEDULE, optimizer="lion", fp32_master_weights=True)).start()
    assert run.state["groups"][0].keys() == {"d", "sum"} and run.state["optimizer"][0]["step"] == 6
    assert run.metric("lr")[1] == LEARNING_RATE * 0.75**2  # the rate is that of `lr` and `d`
    resumed = run.resumed(3, tmp_path / "resumed")
    assert same(resumed.state, run.state) and resumed.module.trace == run.module.trace[3:]


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_optimizer_of_a_library_takes_its_own_steps(tmp_path, monkeypatch, name):
    library = pytest.importorskip(LIBRARIES[name])
    if name == "adamw8bit":  # which has 32 bits for small tensors
        monkeypatch.setattr(library.optim, "AdamW8bit", partial(library.optim.AdamW8bit, min_8bit_size=1))
    rate = 1.0 if name == "prodigy" else 0.01
    run = Run(tmp_path / "run", replace(SCHEDULE, optimizer=name), noise=0.0, learning_rate=rate).start()
    alone = ToyModule(noise=0.0)
    values = [*trained_parameters(alone).values()]
    optimizer = make_optimizer(name, [{"params": values, "lr": rate, "weight_decay": WEIGHT_DECAY}])
    seen = SeededSamples(run.dataset, SCHEDULE.seed)
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = rate * SCHEDULE.lr_factor(step)
        alone.loss(seen[run.accelerator.loader._key(step)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(run.module.trace) == 6
    kept = run.state["optimizer"][0].get("__bnb_optimizer_quant_state__", {})
    assert name != "adamw8bit" or kept["state1"].dtype == torch.uint8
    for (key, value), before in zip(
        trained_parameters(alone).items(), trained_parameters(ToyModule()).values(), strict=True
    ):
        assert torch.equal(run.module.get_parameter(key), value) and not torch.equal(value, before)
    resumed = run.resumed(3, tmp_path / "resumed")
    assert same(resumed.state, run.state) and resumed.module.trace == run.module.trace[3:]


def test_a_run_is_not_resumed_with_another_optimizer(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "make_optimizer", lambda name, groups: Keeping(groups))
    run = Run(tmp_path / "run", LoopSettings(max_steps=1)).start()
    settings = replace(run.settings, optimizer="lion", resume=run.folder / "step-1", max_steps=2)
    with pytest.raises(ValueError, match="a run with --optimizer adamw, this one has lion"):
        replace(run, folder=tmp_path / "other", settings=settings).start()


def test_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [optimizers.missing_library(name) for name in optimizers.OPTIMIZERS] == [None, *LIBRARIES.values()]


def test_sharded_weights_have_adamw_alone(monkeypatch):
    monkeypatch.setattr(OmniAccelerator, "distributed_type", "FSDP", raising=False)
    monkeypatch.setattr(OmniAccelerator, "is_fsdp2", True, raising=False)
    with pytest.raises(ValueError, match="--optimizer lion works in one process and with DDP"):
        OmniAccelerator(LoopSettings(max_steps=1, optimizer="lion"), cpu=True)
