"""Laws of the training loop, on a toy model driven through the host's own `launch_training_task`."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import accelerate
import numpy as np
import pytest
import torch
from processes import run_in_processes
from safetensors.torch import load_file
from training_toy import (
    BETAS,
    EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Run,
    ToyDataset,
    ToyModule,
    same,
    two_process_runs,
    zero_runs,
)

from diffsynth_omniavatar import host
from diffsynth_omniavatar.training import loader
from diffsynth_omniavatar.training.accelerator import DivergedError, OmniAccelerator
from diffsynth_omniavatar.training.callbacks import (
    find_checkpoints,
    find_latest,
)
from diffsynth_omniavatar.training.loader import LoopLoader
from diffsynth_omniavatar.training.settings import LoopSettings, steps_in_epochs

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own


def samples_of(run: Run, seed: int = 0) -> list[dict[str, Any]]:
    """The samples that a run saw, made once more."""
    loader = torch.utils.data.DataLoader(run.dataset, collate_fn=lambda batch: batch[0])
    passes = make_loader(loader, end=len(run.module.trace), seed=seed)
    return [data for _ in range(len(run.module.trace)) for data in passes]


def make_loader(loader: Any, *, end: int, seed: int = 0, process: int = 0, processes: int = 1) -> LoopLoader:
    return LoopLoader(
        loader,
        seed=seed,
        end=end,
        process=process,
        processes=processes,
        device=torch.device("cpu"),
        on_pass=lambda: None,
    )


def adamw(value: torch.Tensor, gradients: list[torch.Tensor], rates: list[float]) -> torch.Tensor:
    """AdamW by its paper (Loshchilov & Hutter, 2019, algorithm 2), in float64."""
    value, m, v = value.double(), 0.0, 0.0
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        gradient = gradient.double()
        m = BETAS[0] * m + (1 - BETAS[0]) * gradient
        v = BETAS[1] * v + (1 - BETAS[1]) * gradient.square()
        corrected = (m / (1 - BETAS[0] ** step)) / ((v / (1 - BETAS[1] ** step)).sqrt() + EPS)
        value = value - rate * WEIGHT_DECAY * value - rate * corrected
    return value


def test_a_step_with_accumulation_is_one_adamw_step_along_the_mean_gradient(tmp_path):
    run = Run(tmp_path, LoopSettings(max_steps=1, gradient_accumulation_steps=4), noise=0.0).start()
    samples = samples_of(run)
    assert [data["index"] for data in samples] == [entry["index"] for entry in run.module.trace]
    fresh = ToyModule(noise=0.0)
    torch.stack([fresh.loss(data) for data in samples]).mean().backward()
    assert len(samples) == 4
    trained = [value for _, value in fresh.named_parameters() if value.requires_grad]
    for number, value in enumerate(trained):  # AdamW hardly sees the scale of a gradient; its first moment does
        moment = run.state["optimizer"][number]["exp_avg"]
        torch.testing.assert_close(moment, (1 - BETAS[0]) * value.grad, rtol=1e-4, atol=1e-6)  # rounding, as below
    for name, before in fresh.named_parameters():
        after = run.module.get_parameter(name).detach()
        if before.requires_grad:
            expected = adamw(before.detach(), [before.grad], [LEARNING_RATE]).float()
            # Rounding: sums of four gradients in another order, and the optimizer's own float32 arithmetic.
            torch.testing.assert_close(after, expected, rtol=2e-5, atol=2e-6)
            assert (after - before.detach()).abs().max() > 0.01
        else:
            assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_the_learning_rate_is_right_from_the_first_step_and_counts_optimizer_steps(tmp_path, schedule, factors):
    settings = LoopSettings(max_steps=6, warmup_steps=2, lr_schedule=schedule, gradient_accumulation_steps=2)
    run = Run(tmp_path, settings, noise=0.0).start()
    rates = [factor * LEARNING_RATE for factor in factors]
    assert run.metric("lr") == pytest.approx(rates, rel=1e-12)  # float64 rounding of the cosine

    fresh, gradients, samples = ToyModule(noise=0.0), [], samples_of(run)
    for step in range(6):  # the rates are also those that moved the parameters
        fresh.load_state_dict(load_file(tmp_path / f"step-{step}" / "model.safetensors") if step else {}, strict=False)
        fresh.zero_grad()
        torch.stack([fresh.loss(data) for data in samples[2 * step : 2 * step + 2]]).mean().backward()
        gradients.append(fresh.pipe.dit[3].bias.grad.clone())
    expected = adamw(ToyModule().pipe.dit[3].bias.detach(), gradients, rates).float()
    torch.testing.assert_close(run.module.pipe.dit[3].bias.detach(), expected, rtol=2e-5, atol=2e-6)  # as above


def test_float32_copies_move_by_steps_that_bfloat16_cannot_hold(tmp_path):
    rate = 1e-6  # far below the spacing of bfloat16 numbers near the weights, 1e-3
    settings = LoopSettings(max_steps=4, max_grad_norm=0.5)
    run = Run(tmp_path / "rounded", settings, dtype=torch.bfloat16, learning_rate=rate).start()
    start = ToyModule().to(torch.bfloat16)
    for name, value in run.state["trained"].items():
        if "weight" in name:
            assert torch.equal(value, start.get_parameter(name))
    exact = replace(run, folder=tmp_path / "exact", settings=replace(settings, fp32_master_weights=True)).start()
    for number, (name, value) in enumerate(exact.state["trained"].items()):
        assert value.dtype == exact.state["optimizer"][number]["exp_avg"].dtype == torch.float32
        moved = (value - start.get_parameter(name).float()).abs()
        assert 0 < moved.max() <= 4 * rate * 1.5  # AdamW moves by about the rate
        assert torch.equal(exact.module.get_parameter(name), value.bfloat16())
    resumed = exact.resumed(2, tmp_path / "resumed")
    assert same(resumed.state, exact.state) and resumed.module.trace == exact.module.trace[2:]


def test_gradients_are_clipped_to_the_norm_of_the_whole_window(tmp_path):
    limit = 0.25
    settings = LoopSettings(max_steps=1, gradient_accumulation_steps=3)
    free = Run(tmp_path / "free", settings, noise=0.0).start()
    clipped = Run(tmp_path / "clipped", replace(settings, max_grad_norm=limit), noise=0.0).start()
    (norm,) = clipped.metric("grad_norm")
    assert norm == free.metric("grad_norm")[0] > limit  # what is logged is the norm before clipping
    for number, state in free.state["optimizer"].items():
        expected = state["exp_avg"] * (limit / norm)
        torch.testing.assert_close(clipped.state["optimizer"][number]["exp_avg"], expected, rtol=1e-5, atol=0)  # + 1e-6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_at_any_step_equals_the_uninterrupted_one(tmp_path, workers):
    settings = LoopSettings(
        max_steps=6, warmup_steps=2, lr_schedule="cosine", gradient_accumulation_steps=3, max_grad_norm=0.5, seed=3
    )
    run = Run(
        tmp_path / "whole", settings, workers=workers
    ).start()  # 18 samples of 7 an epoch: steps 1..5 are mid-epoch
    assert len(find_checkpoints(run.folder)) == 6
    for step in range(1, 6):
        resumed = run.resumed(step, tmp_path / f"from-{step}")
        assert same(resumed.state, run.state)  # step, parameters, optimizer, every generator
        assert resumed.module.trace == run.module.trace[3 * step :]  # order of samples, losses, draws
        for name in ("loss", "lr", "grad_norm"):
            assert resumed.metric(name) == run.metric(name)[step:]
    assert run.resumed(6, tmp_path / "finished").module.trace == []


def test_workers_and_saving_change_nothing(tmp_path):
    settings = LoopSettings(max_steps=4, gradient_accumulation_steps=2)
    plain = Run(tmp_path / "plain", settings, save_steps=4).start()
    random.seed(9), np.random.seed(9), torch.manual_seed(9)  # nor what was drawn before the run
    other = Run(tmp_path / "other", settings, save_steps=1, workers=2).start()
    assert same(plain.state, other.state) and plain.module.trace == other.module.trace
    seed_1 = Run(tmp_path / "seed", replace(settings, seed=1), save_steps=4).start()
    assert {entry["drawn"] for entry in seed_1.module.trace}.isdisjoint(entry["drawn"] for entry in plain.module.trace)


def test_workers_need_not_be_forked(tmp_path, monkeypatch):
    """What a worker process gets can be pickled (the host's own collate function cannot), and samples the same."""
    settings = LoopSettings(max_steps=4)
    plain = Run(tmp_path / "plain", settings).start()

    def pickled(dataset: Any, *, sampler: Any, collate_fn: Any, **options: Any) -> Any:
        dataset, collate_fn = pickle.loads(pickle.dumps((dataset, collate_fn)))
        return torch.utils.data.DataLoader(dataset, sampler=sampler, collate_fn=collate_fn, **options)

    monkeypatch.setattr(loader, "DataLoader", pickled)
    assert Run(tmp_path / "other", settings).start().module.trace == plain.module.trace


def test_what_a_worker_cannot_read_is_told_as_without_workers(tmp_path):
    class Broken(ToyDataset):
        def __getitem__(self, index: int) -> Any:
            raise ValueError(f"clip-{index} is broken")

    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^clip-\d is broken$"):
            Run(tmp_path, LoopSettings(max_steps=1), dataset=Broken(), workers=workers).start()


def test_a_run_killed_within_a_window_goes_on_as_if_it_had_not_been(tmp_path):
    def dying_loss(module: ToyModule, data: Any) -> torch.Tensor:
        if len(module.trace) == 11:
            raise KeyboardInterrupt
        return ToyModule.loss(module, data)

    settings = LoopSettings(max_steps=4, gradient_accumulation_steps=3)
    whole = Run(tmp_path / "whole", settings, save_steps=2).start()
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "killed", settings, save_steps=2, loss=dying_loss).start()
    resume = find_latest(tmp_path / "killed")
    assert resume is not None and resume.name == "step-2"
    again = Run(tmp_path / "killed", replace(settings, resume=resume), save_steps=2).start()
    assert same(again.state, whole.state) and again.module.trace == whole.module.trace[6:]
    assert again.metric("loss") == whole.metric("loss")  # step 3, logged twice, stands there once


@pytest.mark.parametrize("way", ["zero2", "zero3"])
@pytest.mark.forks
def test_deepspeed_steps_as_other_processes_do_and_resumes_exactly(tmp_path, way):
    pytest.importorskip("deepspeed")
    run_in_processes(zero_runs, tmp_path, way, processes=2)
    plain, whole, resumed = (
        load_file(tmp_path / name / "step-4" / "model.safetensors") for name in ("plain", way, f"{way}-resumed")
    )
    for name, value in plain.items():  # gradients are added in another order: rounding
        torch.testing.assert_close(whole[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(resumed[name], whole[name])
    for process in range(2):
        traces = json.loads((tmp_path / f"{way}-traces-{process}.json").read_text())
        assert traces["resumed"] == traces["whole"][4:]
    runs = {name: Run(tmp_path / name, LoopSettings(max_steps=4)) for name in ("plain", way)}
    assert runs[way].metric("lr") == runs["plain"].metric("lr")
    assert runs[way].metric("grad_norm") == pytest.approx(runs["plain"].metric("grad_norm"), rel=1e-4)
    assert len(runs[way].metric("validation")) == 5
    with pytest.raises(ValueError, match="was written under DeepSpeed"):
        Run(tmp_path / "other", LoopSettings(max_steps=5, resume=tmp_path / way / "step-4")).start()


@pytest.mark.slow
@pytest.mark.forks
def test_two_processes_equal_one_with_twice_the_accumulation_sharded_or_not(tmp_path):
    run_in_processes(two_process_runs, tmp_path, processes=2)
    one = Run(tmp_path / "one", LoopSettings(max_steps=4, gradient_accumulation_steps=2), noise=0.0).start()
    two = replace(one, folder=tmp_path / "quiet")
    assert same(two.state["trained"], one.state["trained"]) and same(two.state["optimizer"], one.state["optimizer"])
    assert two.metric("loss") == one.metric("loss")  # the mean over both processes

    first, second = (json.loads((tmp_path / f"traces-{process}.json").read_text()) for process in range(2))
    pairs = [*zip(first["quiet"], second["quiet"], strict=True)]
    assert [entry["index"] for pair in pairs for entry in pair] == [entry["index"] for entry in one.module.trace]
    assert {entry["drawn"] for entry in first["noisy"]}.isdisjoint(entry["drawn"] for entry in second["noisy"])
    states = {name: replace(one, folder=tmp_path / name).state for name in ("noisy", "resumed", "sharded")}
    for traces in (first, second):
        assert traces["resumed"] == traces["noisy"][4:]
        assert traces["sharded-resumed"] == traces["sharded"][4:]
    assert same(states["resumed"], states["noisy"])
    assert same(replace(one, folder=tmp_path / "sharded-resumed").state, states["sharded"])
    # Sharding (FSDP2) adds the processes' gradients in another order: rounding.
    for name, value in states["noisy"]["trained"].items():
        torch.testing.assert_close(states["sharded"]["trained"][name], value, rtol=1e-5, atol=1e-6)
    assert len(replace(one, folder=tmp_path / "sharded").metric("validation")) == 5  # one before the first step


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    dataset = ToyDataset(bad_sample=4)
    run = Run(tmp_path, LoopSettings(max_steps=4, gradient_accumulation_steps=2), dataset=dataset)
    with pytest.raises(DivergedError, match=r"loss is nan in step \d, process 0, at sample 4 \(clip-4\) of epoch 0"):
        run.start()
    assert all(value.isfinite().all() for value in run.module.parameters())
    assert math.isfinite(sum(entry["loss"] for entry in run.module.trace[:-1]))


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    def steep(module: ToyModule, data: Any) -> torch.Tensor:
        return (0 * ToyModule.loss(module, data)).sqrt()

    run = Run(tmp_path, LoopSettings(max_steps=2), loss=steep)
    with pytest.raises(DivergedError, match="gradient norm is nan in step 1"):
        run.start()
    assert same({**run.module.state_dict()}, {**ToyModule().state_dict()})


@pytest.mark.parametrize(
    ("samples", "processes", "accumulation"), [(7, 1, 3), (7, 2, 2), (5, 4, 1), (2, 3, 2), (8, 2, 4)]
)
def test_the_order_of_samples(samples, processes, accumulation):
    """Epochs are permutations, whatever the processes; the passes that `epochs_to_run` counts reach the last step."""
    dataset = ToyDataset(samples)
    settings = LoopSettings(max_steps=5, gradient_accumulation_steps=accumulation)
    end = settings.max_steps * accumulation
    host_loader = torch.utils.data.DataLoader(dataset, collate_fn=lambda batch: batch[0])
    seen = []
    for process in range(processes):
        loader = make_loader(host_loader, end=end, process=process, processes=processes)
        passes = OmniAccelerator.epochs_to_run(SimpleNamespace(settings=settings, num_processes=processes), samples)
        lengths = [(len(loader), [(data["index"], data["x"][0].item()) for data in loader]) for _ in range(passes)]
        assert all(length == len(data) for length, data in lengths)
        assert len(loader) == 0 and [*loader] == [] and loader.position == end
        seen.append([data for _, part in lengths for data in part])
    merged = [data for group in zip(*seen, strict=True) for data in group]
    epochs = [merged[start : start + samples] for start in range(0, len(merged), samples)]
    assert all(sorted(index for index, _ in epoch) == [*range(samples)] for epoch in epochs[:-1])
    if samples > 5:
        assert len({tuple(index for index, _ in epoch) for epoch in epochs}) == len(epochs)  # and so does the order
    assert len(set(merged)) == len(merged)  # a sample's draws differ from epoch to epoch
    alone = make_loader(host_loader, end=len(merged))
    assert merged == [(d["index"], d["x"][0].item()) for _ in range(len(merged)) for d in alone]


def test_a_length_in_epochs():
    assert steps_in_epochs(3, samples=7, processes=2, gradient_accumulation_steps=4) == 2
    assert steps_in_epochs(1, samples=3, processes=2, gradient_accumulation_steps=4) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "'seed': 0.*'seed': 1"),
        ({"gradient_accumulation_steps": 2}, "'gradient_accumulation_steps': 1.*'gradient_accumulation_steps': 2"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(tmp_path, change, message):
    run = Run(tmp_path / "run", LoopSettings(max_steps=2)).start()
    settings = replace(run.settings, resume=run.folder / "step-1", **change)
    with pytest.raises(ValueError, match=message):
        replace(run, folder=tmp_path / "other", settings=settings).start()


def test_a_resumed_run_follows_the_rates_given_now(tmp_path):
    run = Run(tmp_path / "run", LoopSettings(max_steps=2)).start()
    resume = run.folder / "step-2"
    longer = replace(run.settings, resume=resume, max_steps=6, lr_schedule="linear")
    resumed = replace(run, folder=tmp_path / "more", settings=longer).start()
    expected = [LEARNING_RATE * factor for factor in (4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    assert resumed.metric("lr") == pytest.approx(expected, rel=1e-12)  # float64 rounding


@pytest.mark.skipif(host.GENERATION != "wan_video", reason="DiffSynth 1.1.9 has no offloaded training")
def test_offloaded_training_takes_the_same_steps_and_resumes(tmp_path, monkeypatch):
    """There the host prepares no model; its manager, which needs a GPU, is left out."""
    settings = LoopSettings(max_steps=4, gradient_accumulation_steps=2)
    whole = Run(tmp_path / "whole", settings).start()
    monkeypatch.setattr("diffsynth.diffusion.runner.OffloadTrainingManager", mock.MagicMock())
    arguments = Run.arguments
    monkeypatch.setattr(Run, "arguments", lambda *a: offloading(arguments(*a)))
    run = Run(tmp_path / "run", settings).start()
    assert same(run.state, whole.state)
    assert same(run.resumed(2, tmp_path / "resumed").state, whole.state)


def offloading(args: argparse.Namespace) -> argparse.Namespace:
    args.enable_model_cpu_offload = True
    return args


def test_errors_of_resuming(tmp_path):
    with pytest.raises(ValueError, match=r"has no loop\.pt"):
        Run(tmp_path / "a", LoopSettings(max_steps=2, resume=tmp_path)).start()
    run = Run(tmp_path / "run", LoopSettings(max_steps=2)).start()
    more = replace(run, folder=tmp_path / "b", settings=replace(run.settings, resume=run.folder / "step-1"))
    with pytest.raises(ValueError, match="holds other trained parameters"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "requires_grad_", lambda module, flag: module)
        more.start()
    with pytest.raises(ValueError, match=r"'samples': 7.*'samples': 8"):
        replace(more, dataset=ToyDataset(8)).start()
    file = run.folder / "step-1" / "loop.pt"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file} is no file of tensors"):
            more.start()
    torch.save({"step": 1}, file)
    with pytest.raises(ValueError, match=rf"{file} is not what training writes"):
        more.start()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0},
        {"warmup_steps": 6},
        {"lr_schedule": "step"},
        {"max_grad_norm": 0.0},
        {"gradient_accumulation_steps": 0},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoopSettings(**{"max_steps": 5} | wrong)


def test_the_hosts_data_process_loop_writes_every_sample_once(tmp_path):
    run = Run(tmp_path, LoopSettings(max_steps=1))
    logger = host.ModelLogger(str(tmp_path))
    accelerator = accelerate.Accelerator(cpu=True)
    host.launch_data_process_task(accelerator, run.dataset, ToyModule(), logger, args=run.arguments(1))
    files = sorted(tmp_path.glob("0/*.pth"), key=lambda path: int(path.stem))
    assert [torch.load(path)["index"] for path in files] == [*range(7)]


def test_the_hosts_loss_is_the_weighted_flow_matching_loss():
    pipe = ToyModule().pipe
    pipe.model_fn = lambda latents, timestep, **_: torch.zeros_like(latents)
    latents, noise = torch.full((1, 2, 1, 2, 2), 0.5), torch.randn(1, 2, 1, 2, 2)
    torch.manual_seed(1)
    loss = host.training_loss(pipe, {"input_latents": latents, "noise": noise})
    torch.manual_seed(1)
    timestep = pipe.scheduler.timesteps[torch.randint(0, 1000, (1,))]
    drawn = torch.randn_like(latents) if host.GENERATION == "wan_video" else noise
    assert loss.shape == () and loss == (drawn - latents).square().mean() * pipe.scheduler.training_weight(timestep)


def test_a_resumed_model_computes_with_its_float32_copies_rounded_from_the_first_sample_on(tmp_path):
    settings = LoopSettings(max_steps=3, fp32_master_weights=True)
    run = Run(tmp_path / "run", settings, dtype=torch.bfloat16).start()
    resumed = run.resumed(2, tmp_path / "resumed")
    assert resumed.module.trace == run.module.trace[2:]
