"""Train: from the filled-in fields to what is to be trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...model.config import PRESETS
from ...model.files import NANO_MODELS, SMALL_FAMILY, ModelFiles, model_files
from ..measured import Size, Task, measured_table
from ..plan import parse_size, report
from ..prediction import Prediction, fastest, predict_all
from .faults import FieldFaults, sentence
from .readable import Readable
from .shelf import Model, Shelf
from .training_runs import TrainingRuns

if TYPE_CHECKING:
    from .training_command import Training

MODES = {"i2v": "Portrait to video (I2V)", "v2v": "Dubbing (V2V)"}
NANO, NANO_V2V = NANO_MODELS


class Start(NamedTuple):
    """What fields say at first."""

    size: str
    max_steps: int
    lora_rank: int
    learning_rate: float
    videos: int


STARTS = {True: Start("128x128x33", 100, 16, 1e-3, 1), False: Start("512x512x81", 2000, 128, 1e-4, 2)}
"""For the small model, and for the published ones."""
NUMBERS = {
    "max_steps": (1, 10**7),
    "lora_rank": (1, 4096),
    "batch_size": (1, 1024),
    "videos": (0, 8),
    "gpus": (1, 64),
    "gpu": (1, 10**4),
    "learning_rate": (1e-8, 1),
}
"""Fields -> the least and the largest number that they take; `gpu` is the memory of one in GiB."""
NEED_NOT_BE_WHOLE = ("gpu", "learning_rate")


def trainable_models(shelf: Shelf) -> list[str]:
    """The models that are there; the small one stands for both modes."""
    return [name for name, model in shelf.models.items() if not model.lacks and name != NANO_V2V]


def gpus_here() -> tuple[int, float]:
    """How many GPUs PyTorch sees, and GiB of the first."""
    import torch

    count = torch.cuda.device_count()
    return count, torch.cuda.get_device_properties(0).total_memory / 2**30 if count else 0.0


def plan_text(fields: Mapping[str, Any]) -> str:
    """What `omniavatar plan` says of the fields, or what is wrong with them."""
    if fields["model"] not in PRESETS:
        return "The small model trains on a CPU, or in 2 GiB of a GPU: nothing is to be planned."
    faults = dict[str, str]()
    task = _task(fields, _numbers(fields, faults), faults)
    return report(task, fields["gpu"], measured_table()) if task is not None else " ".join(faults.values())


def check_form(
    fields: Mapping[str, Any], shelf: Shelf, readable: Readable, runs: TrainingRuns
) -> tuple[Training, Path]:
    """What is to be trained, and the folder of its run, which is not there yet.

    Args:
        fields: data, caption, mode, model, name, size, and those of `NUMBERS`.
        shelf: the models.
        readable: where clips may lie.
        runs: the runs that there are.

    Raises:
        FieldFaults: what is wrong, by the field.
    """
    from .training_command import Training
    from .training_data import find_data

    faults = dict[str, str]()
    data = folder = None
    try:
        data = find_data(readable.path(str(fields["data"] or "")), readable, str(fields["caption"] or ""))
    except (ValueError, OSError) as error:
        faults["data"] = sentence(error)
    name = str(fields["name"] or "").strip()
    try:
        if not name:
            raise ValueError("give the run a name")
        folder = runs.new_folder(name)
    except ValueError as error:
        faults["name"] = sentence(error)
    numbers = _numbers(fields, faults)
    model = _model(fields, shelf, faults)
    task = _task(fields, numbers, faults)
    best = _planned(task, fields, faults)
    count = _gpus(fields, model, faults)
    if faults or data is None or folder is None or model is None or task is None:
        raise FieldFaults(faults)
    training = Training(
        data=data,
        mode=fields["mode"],
        files=_files(model),
        is_nano=model.name == NANO or model.name == NANO_V2V,
        size=task.size,
        steps=int(numbers["max_steps"]),
        rank=int(numbers["lora_rank"]),
        learning_rate=numbers["learning_rate"],
        batch=int(numbers["batch_size"]),
        videos=int(numbers["videos"]),
        gpus=count,
        memory_flags=() if best is None else tuple(best.flags.split()),
    )
    return training, folder


def _numbers(fields: Mapping[str, Any], faults: dict[str, str]) -> dict[str, float]:
    """Those of `NUMBERS` that are right."""
    found = dict[str, float]()
    for name, (least, most) in NUMBERS.items():
        value, whole = fields[name], name not in NEED_NOT_BE_WHOLE
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not least <= value <= most or (whole and value != int(value)):
            faults[name] = f"Wanted a {'whole ' if whole else ''}number from {least:,g} to {most:,}."
        else:
            found[name] = value
    return found


def _task(fields: Mapping[str, Any], numbers: Mapping[str, float], faults: dict[str, str]) -> Task | None:
    """What is to be planned; None if a field of it is wrong."""
    size: Size | None = None
    try:
        size = parse_size(str(fields["size"] or "").strip())
    except ValueError as error:
        faults["size"] = sentence(str(error).removeprefix("--size "))
    if fields["mode"] not in MODES:
        faults["mode"] = "Choose one of the two."
    if size is None or "mode" in faults or not {"lora_rank", "batch_size"} <= numbers.keys():
        return None
    rank, batch = int(numbers["lora_rank"]), int(numbers["batch_size"])
    return Task(model=str(fields["model"]), size=size, mode=fields["mode"], lora_rank=rank, batch=batch)


def _planned(task: Task | None, fields: Mapping[str, Any], faults: dict[str, str]) -> Prediction | None:
    """The fastest way on the GPU; None for the small model."""
    if task is None or task.model not in PRESETS or "gpu" in faults:
        return None
    best = fastest(predict_all(task, fields["gpu"], measured_table()), fields["gpu"])
    if best is None:
        faults["gpu"] = "So little memory is not enough; the plan below says what helps."
    return best


def _model(fields: Mapping[str, Any], shelf: Shelf, faults: dict[str, str]) -> Model | None:
    """The chosen one; of the small ones that of the mode."""
    name = fields["model"]
    if name not in trainable_models(shelf):
        faults["model"] = "Choose a model that is there; the tab Models says what is missing of the others."
        return None
    model = shelf.models[NANO_V2V if name == NANO and fields["mode"] == "v2v" else name]
    if model.dubs and fields["mode"] == "i2v":
        faults["mode"] = f"The checkpoint of {name} is one for dubbing."
    return model


def _gpus(fields: Mapping[str, Any], model: Model | None, faults: dict[str, str]) -> int:
    """How many GPUs take part, 0 for the CPU."""
    count = gpus_here()[0]
    if model is not None and model.name in PRESETS and count == 0:
        faults["model"] = f"{model.name} is not trained on a CPU, and PyTorch sees no GPU here."
    elif count and "gpus" not in faults and fields["gpus"] > count:
        faults["gpus"] = f"PyTorch sees {count}."
    return min(count, int(fields["gpus"])) if "gpus" not in faults else 0


def _files(model: Model) -> ModelFiles:
    args = model.args
    return model_files(args.model, args.models_folder, {part: getattr(args, part, None) for part in SMALL_FAMILY})
