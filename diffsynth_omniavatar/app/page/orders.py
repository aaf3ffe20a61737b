"""What Talk and Dub share on the way from filled-in fields to a request: settings, presets, places, faults."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...generation.request import LARGEST_SEED
from ...model.config import CheckpointConfig
from ...model.sampling import SAMPLERS, SOLVERS
from ..generate import SETTING_FLAGS
from ..model_flags import SHARED_FLAGS, Flags
from .checkpoints import chosen_checkpoint
from .faults import FieldFaults, sentence
from .shelf import LoRAs, Model, lora_flag
from .state import PageApp

PRESETS = {"draft": 5, "fast": 2, "best": 1}
"""How many times fewer steps than the checkpoint asks for."""

NOT_ON_THE_PAGE = ("mouth_mask", "reference_video", "preview", "show_progress", "tea_cache_model_id")
"""Flags that name files of the server, or that the page itself answers."""
ADVANCED: Flags = {name: flag for name, flag in SHARED_FLAGS.items() if name not in NOT_ON_THE_PAGE}
ADVANCED_TALK: Flags = {**ADVANCED, "crop_portrait": SETTING_FLAGS["crop_portrait"]}

DOES = {False: "makes portraits talk (I2V)", True: "dubs videos (V2V)"}
"""What a model does, by whether it dubs."""
CHOICES = {"sampler": tuple(SAMPLERS), "solver": SOLVERS}
"""Values of flags that take one of few words."""


def preset_steps(preset: str, facts: CheckpointConfig | None) -> int | None:
    """Steps of a preset; None where the checkpoint's own hold, as it has timesteps of its own or they are the best."""
    sampling = None if facts is None else facts.conventions.sampling
    if sampling is None or sampling.timesteps or PRESETS[preset] == 1:
        return None
    return max(sampling.steps // PRESETS[preset], 2)


def settings_of(fields: Mapping[str, Any], preset: str, facts: CheckpointConfig | None) -> dict[str, Any]:
    """The settings that were filled in, with the preset's steps where they say nothing of steps, and with a seed.

    Raises:
        FieldFaults: a number is none, or there is no such preset.
    """
    if preset not in tuple(PRESETS):  # a tuple, as a value that is no text may come
        raise FieldFaults({"preset": f"Choose one of {', '.join(PRESETS)}."})
    filled = {name: value for name, value in fields.items() if value is not None and value != ""}
    settings = {name: _typed(name, value) for name, value in filled.items()}
    if not {"steps", "timesteps", "sampler"} & settings.keys():
        steps = preset_steps(preset, facts)
        settings |= {} if steps is None else {"steps": steps}
    return {"seed": secrets.randbelow(min(LARGEST_SEED, 2**31)), **settings}


def _typed(name: str, value: Any) -> Any:
    """A value as its flag takes it; numbers come as text."""
    kind = ADVANCED_TALK[name][0] if name in ADVANCED_TALK else str
    if kind not in (int, float) or not isinstance(value, str):
        return value
    try:
        return kind(value.strip().replace(",", "."))
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise FieldFaults({name: f"{value[:40]} is not {wanted}."}) from error


def chosen_model(app: PageApp, text: str | None, dubs: bool) -> Model:
    """The model that was chosen, see `checkpoints.chosen_checkpoint`.

    Raises:
        FieldFaults: it is not there, or does something else.
    """
    try:
        model = chosen_checkpoint(app, text if isinstance(text, str) else "")
        if model.dubs != dubs:
            raise ValueError(f"{text} {DOES[model.dubs]}; wanted one that {DOES[dubs]}")
    except (ValueError, OSError) as error:
        raise FieldFaults({"model": sentence(error)}) from error
    return model


@contextmanager
def job_folder(parent: Path) -> Iterator[Path]:
    """The place of a new job: named by the time, and by what nobody can guess. It is not made yet; if an error ends the
    block, it is removed.
    """
    folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}"
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def model_words(model: Model, loras: LoRAs) -> dict[str, Any]:
    """Flags of the model and its LoRAs, for the equal command line."""
    return {**model.flags, "lora": [*(model.args.lora or ()), *map(lora_flag, loras)] or None}
