"""DeepSpeed's ZeRO-2 and ZeRO-3 under the host's loop. The engine steps in `backward`; its checkpoints are its own.

The engine gets the denoiser alone: text encoder, VAE and wav2vec2 stay whole on each process and in their own number
formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .settings import LoopSettings

SHARDS = "deepspeed"
"""Folder in a checkpoint: weights and optimizer as the engine writes them, a file for each process."""


def configure(plugin: Any, settings: LoopSettings) -> None:
    """Put what the loop's settings say into DeepSpeed's configuration.

    Raises:
        ValueError: they contradict each other.
    """
    if settings.fp32_master_weights:
        raise ValueError("DeepSpeed keeps float32 copies of bfloat16 weights itself: leave --fp32_master_weights out")
    config = plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = 1  # an item of the loader, whatever it holds
    config["gradient_accumulation_steps"] = settings.gradient_accumulation_steps
    # Not 1e9 but 0 stands for no clipping.
    config["gradient_clipping"] = settings.max_grad_norm if settings.max_grad_norm < float("inf") else 0.0


def frozen_networks(model: Any) -> dict[str, torch.nn.Module]:
    """The networks of the module's pipeline in which nothing trains, by name."""
    return {
        name: part
        for name, part in model.pipe.named_children()
        if not any(value.requires_grad for value in part.parameters())
    }


def hide_frozen_networks(model: Any) -> None:
    """Let the networks of the pipeline in which nothing trains be attributes of it but no submodules any more."""
    for name, part in frozen_networks(model).items():
        del model.pipe._modules[name]
        model.pipe.__dict__[name] = part


@contextmanager
def gathered_weights(module: torch.nn.Module, stage: int) -> Iterator[None]:
    """Within it the trained weights are whole on every process; every process must enter it."""
    if stage < 3:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters([value for value in module.parameters() if value.requires_grad]):
        yield


class EngineOptimizer:
    """Takes the place of the host's optimizer: the engine has stepped when the host calls it.

    Args:
        engine: DeepSpeed's.
        after_step: called where the host steps its optimizer.
    """

    def __init__(self, engine: Any, after_step: Callable[[], None]) -> None:
        self.engine = engine
        self.after_step = after_step

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups."""
        return self.engine.optimizer.param_groups

    def before_backward(self, lr_factor: float) -> None:
        """Set the learning rate of the step that the engine makes at the end of this backward pass."""
        for group in self.groups:
            group["lr"] = group["initial_lr"] * lr_factor

    def gradient_norm(self) -> float:
        """The L2 norm of the gradient of the engine's last step."""
        return float(self.engine.get_global_grad_norm())

    def step(self) -> None:
        """Tell that the engine has stepped."""
        self.after_step()

    def zero_grad(self) -> None:
        """Nothing: the engine clears the gradients that it used."""

    def save(self, folder: Path) -> None:
        """Write this process's part of weights and optimizer."""
        self.engine.save_checkpoint(str(folder), tag=SHARDS, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Read it back."""
        initial = [group["initial_lr"] for group in self.groups]
        self.engine.load_checkpoint(str(folder), tag=SHARDS, load_module_strict=False)
        for group, rate in zip(self.groups, initial, strict=True):  # rates follow the flags
            group["initial_lr"] = rate
