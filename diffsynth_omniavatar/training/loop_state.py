"""What a checkpoint holds for going on, and whether a run may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..system.tensor_files import DamagedFileError, read_pickle
from .settings import LoopSettings

STATE_FILE = "loop.pt"
STATE_PARTS = {"step", "run", "rng"}


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The loop state in a checkpoint folder, its tensors mapped from the file.

    Raises:
        ValueError: the folder is not a resumable checkpoint, or its file is damaged.
    """
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        raise ValueError(f"{checkpoint} has no {STATE_FILE}; give a checkpoint folder step-N that training wrote")
    state = read_pickle(path)
    if not isinstance(state, dict) or not state.keys() >= STATE_PARTS:
        raise DamagedFileError(f"{path} is not what training writes: it lacks one of {', '.join(sorted(STATE_PARTS))}")
    return state


def run_of(settings: LoopSettings, processes: int, dataset: Any) -> dict[str, Any]:
    """What makes a step count mean the same data and draws: a resumed run must share it."""
    return {
        "seed": settings.seed,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "processes": processes,
        "samples": len(dataset),
        **({"mixture": mixture} if (mixture := getattr(dataset, "mixture", "")) else {}),
    }


def check_same_run(checkpoint: Path, state: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Raise ValueError if a checkpoint is of another run than `run_of` says of this one."""
    if state["run"] != run:
        raise ValueError(
            f"{checkpoint} belongs to a run with {state['run']}, this one has {run}; "
            "make them equal, or start a new run from its weights"
        )


def check_same_parameters(checkpoint: Path, state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the parameters that train have other names or shapes than those of a checkpoint."""
    if [(name, value.shape) for name, value in state["trained"].items()] != [
        (name, value.shape) for name, value in parameters.items()
    ]:
        raise ValueError(f"{checkpoint} holds other trained parameters than this model; use the flags of its run")


def check_same_settings(checkpoint: Path, state: Mapping[str, Any], settings: LoopSettings) -> None:
    """Raise ValueError if a checkpoint is of another optimizer, or only one of both has an average of the weights."""
    stepped_by = state.get("stepped_by", "adamw")
    if stepped_by != settings.optimizer:
        raise ValueError(
            f"{checkpoint} is of a run with --optimizer {stepped_by}, this one has {settings.optimizer}; give the "
            "same, or start a new run from its weights"
        )
    if ("average" in state) == (settings.ema_decay > 0):
        return
    held, way = ("an", "give") if "average" in state else ("no", "leave out")
    raise ValueError(
        f"{checkpoint} holds {held} average of the trained weights: {way} --ema_decay, or start a new run from its "
        "weights"
    )
