"""Validates all checkpoints of a run, after it, on one set of clips: as training itself would have done."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..model.small_family import register_family
from ..system.tensor_files import read_safetensors
from .accelerator import OmniAccelerator
from .callbacks import WEIGHTS_FILE, checkpoint_step, find_checkpoints, untouched_training_state
from .distill import DistillationModule
from .distill_setup import student_of
from .first_checks import check_files
from .flags import parse_arguments
from .module import OmniAvatarTrainingModule
from .run import build_module, clip_settings, conventions_of, recipe_of
from .settings import LoopSettings
from .validation_setup import make_validations, read_validation

CONFIG_FILE = "config.yaml"


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, oldest first.

    Raises:
        ValueError: it has none, or not the flags that it was trained with.
    """
    found = find_checkpoints(run)
    if not found or not (run / CONFIG_FILE).is_file():
        raise ValueError(f"{run} has no step-N with {CONFIG_FILE} beside it; give the --output_path of a training run")
    return found


def validation_arguments(run: Path, changed: Mapping[str, Any]) -> argparse.Namespace:
    """The flags of a run, with others for what is validated; None in `changed` leaves the run's own.

    If either kind of validation data is given, the run's own data of the other kind is left out.

    Raises:
        ValueError: neither they nor the run name validation data.
    """
    args = parse_arguments(["--config", str(run / CONFIG_FILE)])
    kinds = ("validation_data", "validation_loss_data")
    if any(changed.get(name) is not None for name in kinds):
        for name in kinds:
            setattr(args, name, None)
    for name, value in changed.items():
        if value is not None:
            setattr(args, name, value)
    if all(getattr(args, name) is None for name in kinds):
        raise ValueError(f"{run} was trained without validation: give --validation_data or --validation_loss_data")
    if args.validation_data is None:
        args.validation_metrics = ""
    for name in ("sync", "lpips", "trepa"):
        setattr(args, f"use_{name}_loss", False)
    args.optimizer = "adamw"  # no step is made: the run's own need not be installed
    return args


def measure_checkpoints(
    args: argparse.Namespace, checkpoints: Sequence[Path], *, cpu: bool = False
) -> Iterator[tuple[int, dict[str, float]]]:
    """The figures of each checkpoint by its step, one after the other.

    Args:
        args: from `validation_arguments`; videos go to `validation/` in their `output_path`.
        checkpoints: of one run.
        cpu: compute on the CPU.

    Raises:
        ValueError: a file, clip or checkpoint cannot be used.
    """
    check_files(args)
    register_family()
    accelerator = OmniAccelerator(LoopSettings(max_steps=1), cpu=cpu)
    conventions = conventions_of(args)
    inputs = read_validation(
        args, clip_settings(args, conventions), recipe_of(args, conventions), torch.device(accelerator.device)
    )
    datasets = [] if inputs.dataset is None else [inputs.dataset]
    module = build_module(args, conventions, datasets, accelerator)
    module.to(accelerator.device)
    validate = make_validations(args, inputs, module, accelerator)
    assert validate is not None
    for checkpoint in checkpoints:
        load_weights(module, checkpoint / WEIGHTS_FILE)
        step = checkpoint_step(checkpoint)
        with untouched_training_state(module.pipe, module), torch.no_grad():
            result = module(partial(validate, step))
        yield step, {} if result is None else result.metrics


@torch.no_grad()
def load_weights(module: OmniAvatarTrainingModule, path: Path) -> None:
    """Give a module the trained weights of a checkpoint of its run.

    Raises:
        ValueError: the file holds other tensors than those that train.
    """
    if isinstance(module, DistillationModule):
        module.start_from(*student_of(path.parent))
        return
    loaded, trained = read_safetensors(path), module.trained_tensors()
    if {name: value.shape for name, value in loaded.items()} != {name: value.shape for name, value in trained.items()}:
        raise ValueError(f"{path} holds other tensors than the flags of its run say")
    for name, value in trained.items():
        value.copy_(loaded[name])
