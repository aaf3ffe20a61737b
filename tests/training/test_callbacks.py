"""What comes between the steps: validation, checkpoints and what is logged; on the toy model."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_toy import Run, ToyModule, same

from diffsynth_omniavatar.training import callbacks, loader
from diffsynth_omniavatar.training.accelerator import OmniAccelerator
from diffsynth_omniavatar.training.callbacks import (
    TrainingLogger,
    ValidationResult,
    begin_checkpoint,
    find_checkpoints,
    find_latest,
    finish_checkpoint,
    untouched_training_state,
)
from diffsynth_omniavatar.training.settings import LoopSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own


def test_validation_changes_nothing(tmp_path):
    calls = []

    def validate(step: int) -> dict[str, float]:
        pipe = run.module.pipe
        calls.append((step, torch.is_grad_enabled(), any(part.training for part in run.module.modules())))
        random.random(), np.random.rand(), torch.rand(1)
        pipe.scheduler.set_timesteps(4, shift=3.0)
        pipe.units.clear()
        pipe.post_units.clear()
        pipe.model_fn = None
        run.module.train()
        run.accelerator.report(loss=1e6)
        return ValidationResult({"validation": 10.0 + step}, [])

    settings = LoopSettings(max_steps=5, gradient_accumulation_steps=2)
    plain = Run(tmp_path / "plain", settings).start()
    run = Run(tmp_path / "validated", settings, options={"validate": validate, "validation_steps": 2})
    run.start()
    assert calls == [(0, False, False), (2, False, False), (4, False, False)]
    assert run.metric("validation") == [10.0, 12.0, 14.0]
    assert same(run.state, plain.state) and run.module.trace == plain.module.trace
    assert run.metric("loss") == plain.metric("loss")
    left, right = run.module.pipe, plain.module.pipe
    assert same({**vars(left.scheduler)}, {**vars(right.scheduler)})
    assert [type(unit) for unit in left.units] == [type(unit) for unit in right.units] and left.units
    assert left.model_fn is right.model_fn and len(left.post_units) == len(right.post_units)


def test_the_training_state_is_put_back_after_an_error_too():
    module = ToyModule()
    module.pipe.dit[0].eval()
    flags = [part.training for part in module.modules()]
    with pytest.raises(KeyError), untouched_training_state(module.pipe, module):
        module.train()
        module.pipe.scheduler.set_timesteps(4)
        raise KeyError
    assert [part.training for part in module.modules()] == flags
    assert len(module.pipe.scheduler.timesteps) == 1000 and module.pipe.scheduler.training


def test_rotation_keeps_the_newest(tmp_path):
    run = Run(tmp_path, LoopSettings(max_steps=5), options={"checkpoints_total_limit": 2}).start()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-4", "step-5"]
    assert not [*tmp_path.glob(".*")]
    trained = load_file(tmp_path / "step-5" / "model.safetensors")
    assert same(dict(sorted(run.state["trained"].items())), dict(sorted(trained.items())))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    happened, rename = [], Path.rename
    monkeypatch.setattr(callbacks, "flush", lambda path: happened.append(path.name))
    monkeypatch.setattr(Path, "rename", lambda path, new: happened.append("rename") or rename(path, new))
    (tmp_path / ".step-3.partial").mkdir()
    callbacks.finish_checkpoint(tmp_path / ".step-3.partial", None)
    assert happened == [".step-3.partial", "rename", tmp_path.name]


@pytest.mark.parametrize("crash_in", ["export", "rename"])
def test_a_crash_while_saving_leaves_the_older_checkpoints(tmp_path, monkeypatch, crash_in):
    def export(path: Path, tensors: Any) -> None:
        Run.export(run, path, tensors)
        if path.parent.name == ".step-4.partial":
            if crash_in == "export":
                raise OSError("disk full")
            monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("disk full")))

    settings = LoopSettings(max_steps=6)
    whole = Run(tmp_path / "whole", settings).start()
    run = Run(tmp_path / "run", settings, options={"export": export, "checkpoints_total_limit": 2})
    with pytest.raises(OSError, match="disk full"):
        run.start()
    monkeypatch.undo()
    assert [path.name for path in find_checkpoints(run.folder)] == ["step-2", "step-3"]
    again = run.resumed(3, run.folder, options={"checkpoints_total_limit": 2})
    assert same(again.state, whole.state)
    assert [path.name for path in find_checkpoints(run.folder)] == ["step-5", "step-6"] and not [*run.folder.glob(".*")]


def test_the_last_step_is_saved_once(tmp_path):
    Run(tmp_path, LoopSettings(max_steps=5), save_steps=2).start()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-2", "step-4", "step-5"]


def test_without_save_steps_a_checkpoint_follows_each_epoch(tmp_path):
    run = Run(tmp_path, LoopSettings(max_steps=7, gradient_accumulation_steps=2), save_steps=None).start()
    assert [path.name for path in find_checkpoints(tmp_path)] == [
        "step-4",
        "step-7",
    ]  # the window over sample 7, the end
    assert same(run.resumed(4, tmp_path / "resumed").state, run.state)


def test_a_run_does_not_mix_with_later_checkpoints_of_another(tmp_path):
    run = Run(tmp_path, LoopSettings(max_steps=3)).start()
    with pytest.raises(ValueError, match=r"holds step-3, but this run starts at step 1"):
        run.resumed(1, tmp_path)
    with pytest.raises(ValueError, match=r"holds step-3, but this run starts at step 0"):
        replace(run).start()


def test_logger_settings_are_checked(tmp_path):
    accelerator = OmniAccelerator(LoopSettings(max_steps=1), cpu=True)
    for wrong in ({"checkpoints_total_limit": 0}, {"log_steps": 0}, {"validation_steps": 2}, {"validate": print}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainingLogger(accelerator, ToyModule(), tmp_path, trained_tensors=dict, export=print, **wrong)


def test_reported_values_are_logged_as_means_over_the_step(tmp_path):
    def reporting(module: ToyModule, data: Any) -> torch.Tensor:
        run.accelerator.report(number=len(module.trace))
        return ToyModule.loss(module, data)

    run = Run(tmp_path, LoopSettings(max_steps=2, gradient_accumulation_steps=2), loss=reporting)
    run.start()
    assert run.metric("number") == [0.5, 2.5]
    losses = [entry["loss"] for entry in run.module.trace]
    assert run.metric("loss") == [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert len(run.metric("seconds_per_step")) == 2


def test_waiting_for_data_is_logged_apart(tmp_path, monkeypatch):
    """By a clock that stands still but while a sample is sent to the device: 3 s each, 2 samples a step."""
    now = [0.0]
    send = loader.send_to_device

    def slowly(*values: Any) -> Any:
        now[0] += 3.0
        return send(*values)

    monkeypatch.setattr(loader, "send_to_device", slowly)
    monkeypatch.setattr(loader.time, "perf_counter", lambda: now[0])
    run = Run(tmp_path, LoopSettings(max_steps=2, gradient_accumulation_steps=2))
    run.start()
    assert run.metric("data_seconds") == [6.0, 6.0]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    Run(tmp_path, LoopSettings(max_steps=1), options={"enable_tensorboard_log": True}).start()
    assert [*tmp_path.glob("tensorboard_log/events*")]


def test_checkpoints_are_ordered_by_step_and_not_by_name(tmp_path):
    for step in (100, 9, 10):
        (tmp_path / f"step-{step}").mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert find_latest(tmp_path) == tmp_path / "step-100"
    begin_checkpoint(tmp_path, "step-101").mkdir()
    finish_checkpoint(begin_checkpoint(tmp_path, "step-101"), keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-100", "step-101"}
