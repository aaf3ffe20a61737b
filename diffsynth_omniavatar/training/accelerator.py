"""What DiffSynth's training loop lacks, given to it through the Accelerator that it uses.

The host's loop stays as it is; its optimizer, scheduler and loader are exchanged in `prepare`:

    for data in loader:                     in an order fixed by (seed, epoch), from any step on, up to max_steps
        with accelerator.accumulate(model):
            loss = model(data)
            accelerator.backward(loss)      stops at a loss that is not finite
            optimizer.step()                at the end of a window: clip, learning rate, step, clear gradients
            scheduler.step()                does nothing
            optimizer.zero_grad()           does nothing, wherever the host calls it

A window is gradient_accumulation_steps samples of each process, always: it may span the end of an epoch. An
optimizer step follows the mean of their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, gather_object
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from .average import WeightAverage
from .loader import LoopLoader, rng_state, seed_cpu_generators, set_rng_state, stream_seed
from .loop_state import check_same_parameters, check_same_run, check_same_settings, load_state, run_of
from .optimizers import exchanged
from .prefix_errors import ErrorBank
from .settings import LoopSettings
from .zero import EngineOptimizer, configure, frozen_networks, gathered_weights, hide_frozen_networks


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer finite; the weights are those of the last step before."""


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded over the processes as the parameter is."""
    if not isinstance(parameter, DTensor):
        return value
    local = value.to(parameter.device)  # every process has the same value: nothing needs to be sent
    return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)


def trained_parameters(module: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


class Companion(Protocol):
    """What changes with the trained weights beside them, and is saved and resumed with them."""

    def after_step(self, steps: int) -> None:
        """Called after each optimizer step with how many are done."""

    def extra_state(self) -> Mapping[str, Tensor]:
        """What a resumed run needs; the same on all processes."""

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back; ValueError if it is of another kind of run."""


def differs(value: Any, before: Any) -> bool:
    """Whether a value of a group is another one, or a tensor, which may have changed in place."""
    return isinstance(value, Tensor) or value != before


def moved(value: Any, like: Tensor) -> Any:
    """A copy of a tensor where another one is; other values as they are."""
    return value.to(like.device, copy=True) if isinstance(value, Tensor) else value


class LoopOptimizer:
    """Takes the place of the host's optimizer: see the module's head for what its calls do."""

    def __init__(self, optimizer: torch.optim.Optimizer, accelerator: OmniAccelerator) -> None:
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.values = self.parameters
        """What the optimizer steps: the parameters, or float32 copies that they are rounded from."""
        if accelerator.settings.fp32_master_weights:
            self.values = [parameter.detach().float() for parameter in self.parameters]
            copies = iter(self.values)
            for group in optimizer.param_groups:
                group["params"] = [next(copies) for _ in group["params"]]
        self.resumed: Mapping[str, Any] | None = None
        """Of `state`, what a checkpoint holds and the next step takes."""
        self.initial = [self._own_values(group) for group in optimizer.param_groups]

    def named_values(self, module: torch.nn.Module) -> dict[str, Tensor]:
        """`values` by the names of the module's trained parameters, in its order, whatever the order of the groups."""
        values = {id(parameter): value for parameter, value in zip(self.parameters, self.values, strict=True)}
        return {name: values[id(value)] for name, value in trained_parameters(module).items()}

    def step(self) -> None:
        accelerator = self.accelerator
        if not accelerator.sync_gradients:
            return
        # Clipped here and not in backward: the host's offloading moves the gradients in between.
        norm = float(gathered(torch.nn.utils.clip_grad_norm_(self.parameters, accelerator.settings.max_grad_norm)))
        accelerator.check_finite("gradient norm", norm)
        if self.resumed is not None:  # only now, when the parameters are on the device where they stay
            self._load_state(self.resumed)
            self.resumed = None
        factor = accelerator.settings.lr_factor(accelerator.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor  # initial_lr: the rate before the host's ConstantLR took a third
        self._step()
        group = self.optimizer.param_groups[0]
        accelerator.finish_step(lr=group["lr"] * group.get("d", 1.0), grad_norm=norm)  # d: of Prodigy

    def _step(self) -> None:
        if self.values is self.parameters:
            self.optimizer.step()
            self.optimizer.zero_grad()
            return
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.round_parameters()

    @torch.no_grad()
    def round_parameters(self) -> None:
        """Give the parameters the values of their float32 copies."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parameter.copy_(value)

    @staticmethod
    def _own_values(group: Mapping[str, Any]) -> dict[str, Any]:
        """What an optimizer may change of a group itself: the rate and the weight decay follow the flags."""
        return {name: value for name, value in group.items() if name not in ("params", "lr", "weight_decay")}

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run needs: "optimizer", by the numbers of parameters, and "groups", if it changes those."""
        groups = [
            {name: value for name, value in self._own_values(group).items() if differs(value, before.get(name))}
            for group, before in zip(self.optimizer.param_groups, self.initial, strict=True)
        ]
        state = self.optimizer.state_dict()["state"]
        return {"optimizer": dict(sorted(state.items()))} | ({"groups": groups} if any(groups) else {})

    def _load_state(self, resumed: Mapping[str, Any]) -> None:
        for group, values in zip(self.optimizer.param_groups, resumed.get("groups", ()), strict=False):
            group.update({name: moved(value, self.values[0]) for name, value in values.items()})
        groups = self.optimizer.state_dict()["param_groups"]
        state = {
            number: {
                name: placed_like(value, parameter)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for name, value in resumed["optimizer"][number].items()
            }
            for number, parameter in enumerate(self.parameters)
            if number in resumed["optimizer"]
        }
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def zero_grad(self) -> None:
        """Nothing: gradients are cleared by the step that used them."""


class _NoScheduler:
    """Takes the place of the host's learning-rate scheduler."""

    def step(self) -> None:
        """Nothing: `LoopOptimizer.step` sets the learning rate."""


class OmniAccelerator(Accelerator):
    """The Accelerator that DiffSynth's `launch_training_task` gets.

    Args:
        settings: how the loop runs.
        kwargs: those of `accelerate.Accelerator`, without the ones about gradient accumulation.

    Raises:
        ValueError: the launch configuration is for the old FSDP, or scales fp16 losses: not supported.
    """

    def __init__(self, settings: LoopSettings, **kwargs: Any) -> None:
        plugin = GradientAccumulationPlugin(num_steps=settings.gradient_accumulation_steps, sync_with_dataloader=False)
        super().__init__(gradient_accumulation_plugin=plugin, **kwargs)
        is_whole = self.distributed_type in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
        supported = is_whole or self.is_fsdp2 or self.distributed_type == DistributedType.DEEPSPEED
        if not supported or self.mixed_precision == "fp16":
            raise ValueError(
                f"accelerate is configured for {self.distributed_type.value} with mixed precision "
                f"{self.mixed_precision}; use one or several processes, DeepSpeed, or FSDP with fsdp_version 2, and no "
                "or bf16"
            )
        if settings.optimizer != "adamw" and not is_whole:
            raise ValueError(
                f"--optimizer {settings.optimizer} works in one process and with DDP, not with FSDP or DeepSpeed: take "
                "adamw there"
            )
        if settings.ema_decay and self.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "--ema_decay does not go with DeepSpeed, which keeps the weights that it steps to itself: launch with "
                "DDP or FSDP, or leave it out"
            )
        self.settings = settings
        self.engine: EngineOptimizer | None = None
        """Under DeepSpeed."""
        self.steps_done = 0
        self.metrics: dict[str, float] = {}
        """Means over the last optimizer step on this process: loss, lr, grad_norm, and what `report` was given."""
        self.on_begin: Callable[[], None] | None = None
        """Called once, when all is prepared and resumed, before the first sample is loaded."""
        self.companion: Companion | None = None
        self.average: WeightAverage | None = None
        """Of the weights that train, where the settings ask for one."""
        self.bank: ErrorBank | None = None
        """Errors for prefixes, of each process its own."""
        self.window: dict[str, list[float]] = {}
        """What was reported since the last optimizer step."""

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Exchange the host's objects, in the order given; without an optimizer among them, do what accelerate does."""
        if not any(isinstance(obj, torch.optim.Optimizer) for obj in args):
            return super().prepare(*args, **kwargs)
        model = next((obj for obj in args if isinstance(obj, torch.nn.Module)), None)
        if model is None and (self.num_processes > 1 or self.settings.fp32_master_weights):
            raise ValueError(
                "--enable_model_cpu_offload trains in one process only, and without --fp32_master_weights; "
                "launch one, or leave a flag out"
            )
        if self.is_fsdp2:
            args = self._shard(*args)
        elif self.distributed_type == DistributedType.DEEPSPEED:
            args = self._start_engine(*args)
        prepared = tuple(self._exchange(obj) for obj in args)
        seed = stream_seed("process", self.settings.seed, self.process_index)
        seed_cpu_generators(seed)
        torch.manual_seed(seed)  # CUDA's too
        if self.settings.resume is not None:
            self._resume(self.settings.resume, model)
        elif self.settings.ema_decay:
            self.average = self._new_average(model)
        return prepared

    def _new_average(self, model: torch.nn.Module | None) -> WeightAverage:
        """An average that begins with the weights as they are."""
        if model is None:
            raise ValueError("--ema_decay does not go with --enable_model_cpu_offload: leave one out")
        values, rounded = self.optimizer.named_values(model), trained_parameters(model)
        return WeightAverage(values, self.settings.ema_decay, rounded)

    @contextmanager
    def averaged(self, module: torch.nn.Module) -> Iterator[None]:
        """Within it the module's weights are their average, if there is one. Every process must enter it."""
        if self.average is None:
            yield
            return
        with self.average.applied():
            yield
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # else the next step would compute with what it has gathered here

    def _shard(self, model: Any, optimizer: torch.optim.Optimizer, *others: Any) -> tuple[Any, ...]:
        """Let accelerate shard what trains, and what of the same network does not, over the processes."""
        plugin = self.state.fsdp_plugin
        plugin.cpu_ram_efficient_loading = False  # every process has loaded the weights
        if plugin.ignored_modules is None:  # encoders work outside the model's forward pass: each process has its own
            plugin.ignored_modules = [*frozen_networks(model).values()]
        model, prepared = super().prepare(model, optimizer)
        return model, prepared.optimizer, *others

    def _start_engine(self, model: Any, optimizer: torch.optim.Optimizer, *others: Any) -> tuple[Any, ...]:
        """Let accelerate make DeepSpeed's engine of model and optimizer."""
        configure(self.state.deepspeed_plugin, self.settings)
        hide_frozen_networks(model)
        engine, _ = super().prepare(model, optimizer)
        self.engine = EngineOptimizer(engine, self._after_engine_step)
        return engine, self.engine, *others

    def _after_engine_step(self) -> None:
        """Count the engine's step. One with a gradient that is not finite has been made, and is not saved."""
        if self.engine is not None and self.sync_gradients:
            norm = self.engine.gradient_norm()
            self.check_finite("gradient norm", norm)
            self.finish_step(lr=self.engine.groups[0]["lr"], grad_norm=norm)

    def _exchange(self, obj: Any) -> Any:
        if isinstance(obj, torch.nn.Module):
            return obj if self.is_fsdp2 or self.engine is not None else self.prepare_model(obj)
        if isinstance(obj, EngineOptimizer):
            return obj
        if isinstance(obj, torch.optim.Optimizer):
            self.optimizer = LoopOptimizer(exchanged(obj, self.settings.optimizer), self)
            return self.optimizer
        if isinstance(obj, DataLoader):
            self.loader = LoopLoader(
                obj,
                seed=self.settings.seed,
                end=self.settings.max_steps * self.settings.gradient_accumulation_steps,
                process=self.process_index,
                processes=self.num_processes,
                device=self.device,
                on_pass=self._begin,
                accumulation=self.settings.gradient_accumulation_steps,
            )
            return self.loader
        if isinstance(obj, LRScheduler):
            return _NoScheduler()
        raise TypeError(f"the host's loop gave prepare() a {type(obj).__name__}")

    @property
    def is_sharded(self) -> bool:
        """Whether every process has a part of each weight, so that all must compute at the same time."""
        return self.is_fsdp2 or self._zero_stage == 3

    @property
    def _zero_stage(self) -> int:
        return 0 if self.engine is None else self.state.deepspeed_plugin.zero_stage

    def share(self, count: int) -> range:
        """Which of `count` things that use the model this process does: its share, or all if the model is sharded."""
        return range(count) if self.is_sharded else range(self.process_index, count, self.num_processes)

    def epochs_to_run(self, samples: int) -> int:
        """The passes over `samples` samples that are still to be made to reach max_steps: the host's `num_epochs`."""
        done = 0 if self.settings.resume is None else load_state(self.settings.resume)["step"]
        if done >= self.settings.max_steps:
            return 0
        first = done * self.settings.gradient_accumulation_steps * self.num_processes
        last = (self.settings.max_steps * self.settings.gradient_accumulation_steps - 1) * self.num_processes
        return last // samples - first // samples + 1

    def stop(self) -> None:
        """End the run after the last step, before max_steps. Every process must call it, at the same step."""
        self.loader.end = self.loader.position

    def _begin(self) -> None:
        callback, self.on_begin = self.on_begin, None
        if callback is not None:
            callback()

    def report(self, **values: float) -> None:
        """Add values of the current sample to `metrics`, which hold their means over the optimizer step."""
        for name, value in values.items():
            self.window.setdefault(name, []).append(float(value))

    def report_parts(self, parts: Mapping[str, Tensor]) -> None:
        """`report` the losses that a sample's loss is made of; DivergedError names the first that is not finite."""
        for name, value in parts.items():
            number = float(value)  # waits for the GPU
            self.check_finite(f"{name} loss", number)
            self.report(**{name: number})

    def check_finite(self, what: str, value: float) -> None:
        """Raise DivergedError, naming step and sample, if the value is not finite."""
        if not math.isfinite(value):
            raise DivergedError(
                f"the {what} is {value} in step {self.steps_done + 1}, process {self.process_index}, at "
                f"{self.loader.describe()}; look at that sample, lower --learning_rate, or resume an earlier checkpoint"
            )

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Backward of loss / gradient_accumulation_steps.

        Raises:
            DivergedError: the loss is not finite.
        """
        value = float(loss.detach())
        self.check_finite("loss", value)
        self.report(loss=value)
        if self.engine is not None and self.sync_gradients:
            self.engine.before_backward(self.settings.lr_factor(self.steps_done))
        super().backward(loss, **kwargs)

    def finish_step(self, **values: float) -> None:
        """Count an optimizer step and close its metrics."""
        self.steps_done += 1
        self.metrics = {name: sum(window) / len(window) for name, window in self.window.items()} | values
        self.window.clear()
        if self.average is not None:
            self.average.update(self.steps_done)
        if self.companion is not None:
            self.companion.after_step(self.steps_done)

    def _run(self) -> dict[str, Any]:
        return run_of(self.settings, self.num_processes, self.loader.loader.dataset)

    def loop_state(self, module: torch.nn.Module) -> dict[str, Any]:
        """All that a run needs to go on after the last step; {} except on the main process. Every process must call it.

        Args:
            module: the training module; its parameters that require a gradient are the trained ones.
        """
        rng = gather_object([rng_state()])
        if self.engine is not None:  # which writes the rest itself
            return {"step": self.steps_done, "run": self._run(), "rng": rng} if self.is_main_process else {}
        trained = self.whole_tensors(self.optimizer.named_values(module))
        optimizer = self.whole_tensors(self.optimizer.state)
        extra = {} if self.companion is None else {"extra": self.whole_tensors(self.companion.extra_state())}
        if self.settings.optimizer != "adamw":
            extra["stepped_by"] = self.settings.optimizer
        if self.average is not None:
            extra["average"] = self.whole_tensors(self.average.values)
        if not self.is_main_process:
            return {}
        own = {"step": self.steps_done, "run": self._run(), "trained": trained, **optimizer, "rng": rng}
        return own | extra

    def write_shards(self, folder: Path) -> None:
        """Write what `loop_state` leaves out, each process its part. Every process must call it."""
        if self.engine is not None:
            self.engine.save(folder)
        if self.bank is not None:
            self.bank.save(self._bank_file(folder))

    def load_bank(self, checkpoint: Path) -> None:
        """Take back this process's errors for prefixes, if it keeps some. ValueError if the checkpoint has none."""
        if self.bank is not None:
            self.bank.load(self._bank_file(checkpoint))

    def _bank_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"prefix_errors-{self.process_index}.safetensors"

    def whole_weights(self, module: torch.nn.Module, tensors: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """`whole_tensors` of what `tensors()` gives of the module's weights."""
        with gathered_weights(module, self._zero_stage):
            return self.whole_tensors(tensors())

    def whole_tensors(self, tensors: Any) -> Any:
        """The tensors of a nest of dicts and lists whole, in CPU memory, other values as they are; {} for dicts except
        on the main process. Every process must call it.
        """
        if isinstance(tensors, Mapping):  # one after the other: a process holds no more than one that it drops
            found = ((name, self.whole_tensors(value)) for name, value in tensors.items())
            return {name: value for name, value in found if self.is_main_process}
        if isinstance(tensors, list):
            return [self.whole_tensors(value) for value in tensors]
        return gathered(tensors.detach()).cpu() if isinstance(tensors, Tensor) else tensors

    def _resume(self, checkpoint: Path, model: torch.nn.Module | None) -> None:
        state = load_state(checkpoint)
        if ("trained" in state) == (self.engine is not None):
            way = "without" if self.engine is not None else "under"
            raise ValueError(f"{checkpoint} was written {way} DeepSpeed, and goes on {way} it only")
        check_same_run(checkpoint, state, self._run())
        check_same_settings(checkpoint, state, self.settings)
        if self.engine is not None:
            self.engine.load(checkpoint)
        else:
            self._resume_trained(checkpoint, state, model)
        self.steps_done = state["step"]
        self.loader.position = self.steps_done * self.settings.gradient_accumulation_steps
        set_rng_state(state["rng"][self.process_index])

    def _resume_trained(self, checkpoint: Path, state: Mapping[str, Any], model: torch.nn.Module | None) -> None:
        trained = state["trained"]
        values = (
            self.optimizer.named_values(model)
            if model is not None
            else dict(zip(trained, self.optimizer.values, strict=True))
        )
        check_same_parameters(checkpoint, state, values)
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(placed_like(trained[name], value))
        self.optimizer.round_parameters()
        self.optimizer.resumed = state
        if self.settings.ema_decay:
            self.average = self._new_average(model)
            self.average.load({name: placed_like(state["average"][name], value) for name, value in values.items()})
        if self.companion is not None:
            self.companion.load_extra_state(state.get("extra", {}))
