"""What is told of the samples of a step is what its loss is made of."""

from __future__ import annotations

import csv
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_runs import flags, live_sample, make_module, write_inputs

from diffsynth_omniavatar.generation.record import StepRecord
from diffsynth_omniavatar.nano.family import write_random_family
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.log_table import read_table
from diffsynth_omniavatar.training.settings import StepSettings
from diffsynth_omniavatar.training.step_samples import COLUMNS, StepSamples, Work, level_columns

ALONE: Any = SimpleNamespace(num_processes=1)


def rows_of(path):
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize(("clips", "weighting"), [(1, "host"), (1, "min_snr"), (3, "host")])
def test_the_loss_is_the_mean_over_its_clips(tmp_path, clips, weighting):
    settings = StepSettings(use_gradient_checkpointing=False, loss_weighting=weighting)
    module = make_module(write_random_family(tmp_path / "family"), settings)
    module.on_sample = lambda *given: (seen.append(given), samples.add(*given))
    seen: list[Any] = []
    samples = StepSamples(path=tmp_path / "samples.csv")
    one = live_sample()
    tensors = {name: value for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
    batch = {name: value.repeat(clips, *[1] * (value.ndim - 1)) for name, value in tensors.items()}
    names = [f"clip {n}, of a speaker" for n in range(clips)]
    loss = module(live_sample(**batch, sources=names, waveforms=one.waveforms * clips, prompts=one.prompts * clips))
    losses = samples.losses
    assert [one.sample for one in losses] == names and losses[0].frames == 9
    assert sum(one.loss for one in losses) / clips == pytest.approx(loss.item(), rel=1e-5)
    _, record, _ = seen[0]
    assert torch.equal(record.timestep, torch.tensor([one.timestep for one in losses]))
    # x_t = (1 - s) x_0 + s n and v* = n - x_0, so x_0 = x_t - s v*: the error of v, from the error of x_0
    error = (record.prediction - record.target)[:, :, 2:].square().mean(dim=(1, 2, 3, 4))
    assert error.tolist() == pytest.approx([one.mse for one in losses], rel=1e-5)
    work, _ = samples.finish(1, ALONE)
    assert work == Work(clips, 9 * clips, 3 * 2 * 2 * clips)
    rows = rows_of(tmp_path / "samples.csv")
    assert [row["sample"] for row in rows] == names and float(rows[0]["mse"]) == losses[0].mse


def test_errors_are_told_by_noise_level_and_the_last_part_has_its_end():
    samples = StepSamples(levels=4)
    assert samples.columns == ["mse_t0_250", "mse_t250_500", "mse_t500_750", "mse_t750_1000"]
    for timestep, error in ((0.0, 1.0), (249.0, 2.0), (500.0, 4.0), (1000.0, 8.0)):
        flow = torch.zeros(1, 1, 1, 2, 2)
        record = StepRecord(timestep=torch.tensor([timestep]), prediction=flow + error**0.5, target=flow)
        samples.add(live_sample(), record, torch.tensor(0.0))
    _, means = samples.finish(1, ALONE)
    assert means == pytest.approx({"mse_t0_250": 1.5, "mse_t500_750": 4.0, "mse_t750_1000": 8.0})
    assert samples.finish(2, ALONE) == (Work(), {})
    assert level_columns(3)[1] == "mse_t333.333_666.667"


def test_the_work_is_that_of_all_processes():
    samples = StepSamples()
    samples.add(live_sample(), StepRecord(), torch.tensor(0.0))
    two = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda sums, how: 2 * sums if how == "sum" else sums)
    work, _ = samples.finish(1, two)
    assert work == Work(2, 18, 24) and work.per_second(0.5) == "  4 samples/s, 36 frames/s, 48 tokens/s"


def test_a_resumed_run_writes_its_rows_again(tmp_path):
    path = tmp_path / "samples.csv"
    for resumed in (0, 1):
        samples = StepSamples(path=path, step=resumed)
        for step in range(resumed + 1, 4):
            flow = torch.full((1, 1, 1, 2, 2), float(step))
            record = StepRecord(timestep=torch.tensor([step / 3]), prediction=flow, target=flow)
            samples.add(live_sample(sources=['a "b", c']), record, flow.mean())
            samples.finish(step, ALONE)
        rows = rows_of(path)
        assert [(row["step"], row["loss"], row["sample"]) for row in rows] == [
            (str(step), f"{step}.0", 'a "b", c') for step in (1, 2, 3)
        ]
        with path.open("a") as file:
            file.write("4,cut")


def test_the_launcher_logs_each_sample_and_its_pace(tmp_path, caplog):
    folder = write_inputs(tmp_path)
    arguments = flags(folder, tmp_path / "run", "--max_steps", "3", "--log_samples", "--log_noise_levels", "2")
    with caplog.at_level("INFO"):
        assert run.main([*arguments, "--num_frames", "5", "--prefix_frames", "1"]) == 0
    rows, losses = rows_of(tmp_path / "run" / "samples.csv"), read_table(tmp_path / "run" / "loss.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3"] and [*rows[0]] == [*COLUMNS]
    assert {row["sample"] for row in rows[:2]} == {"0.mp4", "1.mp4"}
    for row, step in zip(rows, losses, strict=True):
        assert step["loss"] == pytest.approx(float(row["loss"]), rel=1e-6)
        shown = {name: step[name] for name in level_columns(2) if name in step}
        assert shown == {level_columns(2)[float(row["timestep"]) >= 500]: float(row["mse"])}
    lines = [record.message for record in caplog.records if record.message.startswith("step ")]
    pattern = r"for data  \S+ samples/s, \S+ frames/s, \S+ tokens/s"
    assert all(re.search(pattern, line) for line in lines) and re.search(r"tokens/s  0:\d\d:\d\d left$", lines[1])
