"""A toy training module and data set, and one function that drives them through the host's own training loop."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file

from diffsynth_omniavatar import host
from diffsynth_omniavatar.training.accelerator import OmniAccelerator
from diffsynth_omniavatar.training.callbacks import TrainingLogger, ValidationResult, find_latest
from diffsynth_omniavatar.training.log_table import read_table
from diffsynth_omniavatar.training.loop_state import load_state
from diffsynth_omniavatar.training.settings import LoopSettings

WIDTH = 5
LEARNING_RATE = 0.03
WEIGHT_DECAY = 0.1
BETAS, EPS = (0.9, 0.999), 1e-8


class ToyDataset(torch.utils.data.Dataset):
    """Sample i: a fixed vector plus what the three global generators say."""

    load_from_cache = False

    def __init__(self, samples: int = 7, bad_sample: int | None = None) -> None:
        self.samples = samples
        self.bad_sample = bad_sample

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = torch.linspace(-1, 1, WIDTH) * (index + 1) + torch.randn(WIDTH) + random.random() + np.random.rand()
        if index == self.bad_sample:
            x[0] = float("nan")
        return {"index": index, "x": x, "y": x.flip(0).sin()}

    def describe(self, index: int) -> str:
        return f"clip-{index}"


class Block(torch.nn.Linear):
    """A layer that is sharded by itself; the others are with the whole model."""


class ToyModule(host.DiffusionTrainingModule):
    """Trains two layers of three in an (otherwise empty) pipeline of the host; `noise` scales its draws."""

    def __init__(self, noise: float = 1.0) -> None:
        super().__init__()
        self.pipe = host.WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [torch.nn.Linear(WIDTH, WIDTH), Block(WIDTH, WIDTH), Block(WIDTH, WIDTH)]
        self.pipe.dit = torch.nn.Sequential(layers[0], torch.nn.Dropout(0.2 if noise else 0.0), *layers[1:])
        self.pipe.dit[2].requires_grad_(False)
        self.pipe.scheduler.set_timesteps(1000, training=True)
        self.noise = noise
        self.trace: list[dict[str, float]] = []

    def loss(self, data: Mapping[str, Any]) -> torch.Tensor:
        """A flow-matching loss in miniature; python, numpy and torch draw."""
        sigma = self.pipe.scheduler.sigmas[torch.randint(0, 1000, (1,))] if self.noise else torch.zeros(1)
        drawn = torch.randn(WIDTH) + random.random() + np.random.rand()
        dtype = self.pipe.dit[0].weight.dtype
        prediction = self.pipe.dit((data["x"] + self.noise * sigma * drawn).to(dtype))
        loss = (prediction.float() - data["y"]).square().mean()
        self.trace.append({"index": data["index"], "loss": loss.item(), "drawn": drawn[0].item()})
        return loss

    def forward(self, data: Any, inputs: Any = None, return_inputs: bool = False) -> Any:
        if callable(data):
            return data()
        return {"index": data["index"]} if return_inputs or not torch.is_grad_enabled() else self.loss(data)


def shard_on_cpu(accelerator: OmniAccelerator, way: str) -> None:
    """What `accelerate launch` configures for FSDP2 and DeepSpeed, which accelerate itself offers on GPUs only."""
    shared = accelerator.state._shared_state
    kind = DistributedType.DEEPSPEED if way.startswith("zero") else DistributedType.FSDP
    shared["distributed_type"] = PartialState._shared_state["distributed_type"] = kind
    if kind == DistributedType.DEEPSPEED:
        plugin = DeepSpeedPlugin(zero_stage=int(way[-1]))
        plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        shared["deepspeed_plugins"] = {"default": plugin}
        plugin.select(_from_accelerator_state=True)
        accelerator.deepspeed_engine_wrapped = None
        return
    shared["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["Block"]
    )


@dataclass
class Run:
    """One run and what came of it."""

    folder: Path
    settings: LoopSettings
    dataset: ToyDataset = field(default_factory=ToyDataset)
    noise: float = 1.0
    workers: int = 0
    save_steps: int | None = 1
    sharded: str | None = None
    """"fsdp", "zero2" or "zero3"."""
    dtype: torch.dtype = torch.float32
    learning_rate: float = LEARNING_RATE
    options: dict[str, Any] = field(default_factory=dict)
    loss: Any = None

    def start(self) -> Run:
        self.module = ToyModule(self.noise).to(self.dtype)
        if self.loss is not None:
            self.module.loss = self.loss.__get__(self.module)
        self.accelerator = OmniAccelerator(self.settings, cpu=True)
        if self.sharded is not None:
            shard_on_cpu(self.accelerator, self.sharded)
        export = self.options.pop("export", self.export)
        self.logger = TrainingLogger(
            self.accelerator,
            self.module,
            self.folder,
            trained_tensors=lambda: {name: p for name, p in self.module.named_parameters() if p.requires_grad},
            export=export,
            enable_csv_log=True,
            **self.options,
        )
        epochs = self.accelerator.epochs_to_run(len(self.dataset))
        host.launch_training_task(self.accelerator, self.dataset, self.module, self.logger, args=self.arguments(epochs))
        return self

    def arguments(self, epochs: int) -> argparse.Namespace:
        args = host.wan_parser().parse_args(["--dataset_base_path", "unused"])
        args.output_path = str(self.folder)
        args.learning_rate = self.learning_rate
        args.weight_decay = WEIGHT_DECAY
        args.dataset_num_workers = self.workers
        args.save_steps = self.save_steps
        args.num_epochs = epochs
        return args

    def export(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        save_file(dict(tensors), path)

    def resumed(self, step: int, folder: Path, **changes: Any) -> Run:
        """The same run, gone on from one of its checkpoints in another folder."""
        settings = replace(self.settings, resume=self.folder / f"step-{step}")
        return replace(self, folder=folder, settings=settings, **changes).start()

    @property
    def state(self) -> dict[str, Any]:
        """The newest checkpoint's loop state."""
        return load_state(find_latest(self.folder))

    def metric(self, name: str) -> list[float]:
        """The values that were logged under a name."""
        table = "validation" if name == "validation" else "loss"
        return [row[name] for row in read_table(self.folder / f"{table}.csv") if name in row]


def same(left: Any, right: Any) -> bool:
    """Whether two nests of containers hold the same numbers, bit for bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return [*left] == [*right] and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def validated(run: Run) -> Run:
    """The run with a validation after each step, and before the first: what the network makes of ones."""
    run.options = {
        "validate": lambda step: ValidationResult({"validation": run.module.pipe.dit(torch.ones(WIDTH))[0].item()}, []),
        "validation_steps": 1,
    }
    return run


def average_runs(folder: Path) -> None:
    """Sharded, with validations: without an average, with one, and the latter resumed from step 2."""
    plain = validated(Run(folder / "plain", LoopSettings(max_steps=4), sharded="fsdp")).start()
    settings = replace(plain.settings, ema_decay=0.25)
    run = validated(Run(folder / "sharded", settings, sharded="fsdp")).start()
    run.resumed(2, folder / "resumed", options={})
    traces = {"plain": plain.module.trace, "sharded": run.module.trace}
    (folder / f"traces-{run.accelerator.process_index}.json").write_text(json.dumps(traces))


def two_process_runs(folder: Path) -> None:
    """Without noise; with noise; the latter resumed from step 2; the same sharded. Each process writes its trace."""
    quiet = Run(folder / "quiet", LoopSettings(max_steps=4), noise=0.0).start()
    noisy = Run(folder / "noisy", LoopSettings(max_steps=4, gradient_accumulation_steps=2)).start()
    resumed = noisy.resumed(2, folder / "resumed")
    sharded = replace(noisy, folder=folder / "sharded", sharded="fsdp")
    again = validated(sharded).start().resumed(2, folder / "sharded-resumed", options={})
    names = ("quiet", "noisy", "resumed", "sharded", "sharded-resumed")
    traces = dict(zip(names, (run.module.trace for run in (quiet, noisy, resumed, sharded, again)), strict=True))
    (folder / f"traces-{noisy.accelerator.process_index}.json").write_text(json.dumps(traces))


def zero_runs(folder: Path, way: str) -> None:
    """A run without DeepSpeed; under it, with validation in between; the latter resumed from step 2."""
    settings = LoopSettings(max_steps=4, gradient_accumulation_steps=2, max_grad_norm=0.3, warmup_steps=2)
    Run(folder / "plain", settings).start()
    run = Run(folder / way, settings, sharded=way)
    again = validated(run).start().resumed(2, folder / f"{way}-resumed", options={})
    traces = {"whole": run.module.trace, "resumed": again.module.trace}
    (folder / f"{way}-traces-{run.accelerator.process_index}.json").write_text(json.dumps(traces))
