"""Optimizers beside AdamW, by the libraries that have them, in the place of the one that the host's loop makes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import torch

OPTIMIZERS = ("adamw", "adamw8bit", "lion", "prodigy")
LIBRARIES = {"adamw8bit": "bitsandbytes", "lion": "pytorch_optimizer", "prodigy": "pytorch_optimizer"}
"""Name -> the module that has it."""
INSTALL = "pip install 'diffsynth-omniavatar[optimizers]'"


def missing_library(name: str) -> str | None:
    """The module that an optimizer needs and that is not installed; None if nothing is missing."""
    library = LIBRARIES.get(name)
    return None if library is None or importlib.util.find_spec(library) is not None else library


def exchanged(hosts: torch.optim.Optimizer, name: str) -> torch.optim.Optimizer:
    """The optimizer of this name over the groups of the host's, with their rates and weight decays."""
    if name == "adamw":
        return hosts
    groups = [
        {"params": group["params"], "lr": group["initial_lr"], "weight_decay": group["weight_decay"]}
        for group in hosts.param_groups  # initial_lr: the rate before the host's ConstantLR took a third
    ]
    optimizer = make_optimizer(name, groups)
    for group, before in zip(optimizer.param_groups, hosts.param_groups, strict=True):
        group["initial_lr"] = before["initial_lr"]
    return optimizer


def make_optimizer(name: str, groups: Iterable[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """An optimizer of `LIBRARIES` over groups with `lr` and `weight_decay`, else with the library's own settings.

    AdamW with moments in 8 bits: Dettmers et al. 2022. Lion: Chen et al. 2023. Prodigy: Mishchenko & Defazio 2024.
    """
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups)
    if name == "lion":
        from pytorch_optimizer import Lion

        return Lion(groups)
    from pytorch_optimizer import Prodigy

    return Prodigy(groups, safeguard_warmup=True)  # else its estimate sees the rates of a warm-up
