"""The average of the trained weights: what checkpoints hold and validations see; training goes on with the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_in_processes
from safetensors.torch import load_file
from training_toy import Run, ToyModule, average_runs, same, validated

from diffsynth_omniavatar.training.accelerator import trained_parameters
from diffsynth_omniavatar.training.loop_state import load_state
from diffsynth_omniavatar.training.settings import LoopSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own
DECAY = 0.25  # above what the first update has, 2/11, and below the second's


def exported(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"step-{step}" / "model.safetensors")


def averages(folder: Path, start: dict[str, Any], steps: int) -> list[dict[str, torch.Tensor]]:
    """The average after each step by its formula, in float64, from the weights that the checkpoints go on with."""
    average, found = {name: value.detach().double() for name, value in start.items()}, []
    for step in range(1, steps + 1):
        decay = min(DECAY, (1 + step) / (10 + step))
        trained = load_state(folder / f"step-{step}")["trained"]
        average = {name: decay * value + (1 - decay) * trained[name].double() for name, value in average.items()}
        found.append(average)
    return found


def test_checkpoints_and_validations_have_the_average_and_training_does_not_see_it(tmp_path):
    settings = LoopSettings(max_steps=4)
    plain = Run(tmp_path / "plain", settings).start()
    run = validated(Run(tmp_path / "run", replace(settings, ema_decay=DECAY))).start()
    assert run.module.trace == plain.module.trace and same(run.state["trained"], plain.state["trained"])
    for step, wanted in enumerate(averages(run.folder, trained_parameters(ToyModule()), 4), start=1):
        for name, value in exported(run.folder, step).items():
            torch.testing.assert_close(value, wanted[name].float(), rtol=1e-6, atol=1e-7)  # float32 rounding
            assert not torch.equal(value, load_state(run.folder / f"step-{step}")["trained"][name])
        shown = ToyModule()
        shown.load_state_dict(exported(run.folder, step), strict=False)
        assert run.metric("validation")[step] == shown.pipe.dit.eval()(torch.ones(5))[0].item()


def test_a_resumed_run_has_the_same_average(tmp_path):
    settings = LoopSettings(max_steps=4, ema_decay=DECAY, fp32_master_weights=True)
    run = Run(tmp_path / "run", settings, dtype=torch.bfloat16).start()
    resumed = run.resumed(2, tmp_path / "resumed")
    assert same(resumed.state, run.state) and same(exported(resumed.folder, 4), exported(run.folder, 4))
    start = trained_parameters(ToyModule().to(torch.bfloat16))
    for name, wanted in averages(run.folder, start, 4)[-1].items():  # of the float32 copies
        torch.testing.assert_close(run.state["average"][name], wanted.float(), rtol=1e-6, atol=1e-7)
        assert torch.equal(exported(run.folder, 4)[name], run.state["average"][name].bfloat16())
    without = replace(run.settings, ema_decay=0.0, resume=run.folder / "step-2")
    with pytest.raises(ValueError, match="holds an average of the trained weights: give --ema_decay"):
        replace(run, folder=tmp_path / "other", settings=without).start()


@pytest.mark.slow
@pytest.mark.forks
def test_each_process_averages_its_part_of_sharded_weights(tmp_path):
    run_in_processes(average_runs, tmp_path, processes=2)
    for name, wanted in averages(tmp_path / "sharded", trained_parameters(ToyModule()), 4)[-1].items():
        torch.testing.assert_close(exported(tmp_path / "sharded", 4)[name], wanted.float(), rtol=1e-6, atol=1e-7)
    states = [load_state(tmp_path / name / "step-4") for name in ("sharded", "resumed")]
    assert same(*states)
    for process in range(2):  # what is gathered for a validation does not stay
        traces = json.loads((tmp_path / f"traces-{process}.json").read_text())
        assert traces["sharded"] == traces["plain"]
