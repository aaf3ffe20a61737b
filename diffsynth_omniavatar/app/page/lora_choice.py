"""LoRAs of other programs that are added to a model of the page."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ...model.sampling import is_number
from ..model_flags import facts
from .faults import FieldFaults, field_faults
from .shelf import lora_flag
from .state import PageApp
from .uploads import LORA

STRONGEST = 10.0


def lora_names(app: PageApp) -> list[str]:
    """The files that can be chosen."""
    folder = app.lora_files
    return sorted(path.name for path in folder.glob("*") if path.suffix in LORA.suffixes and path.is_file())


def keep_lora(app: PageApp, upload: str | None) -> str:
    """Take a LoRA that was sent; gives its name, which no other file has.

    Raises:
        FieldFaults: there is none, it is of another kind or too large.
    """
    stem = re.sub(r"[^\w.-]+", "_", Path(upload or "").stem, flags=re.ASCII).lstrip(".")[:60] or "lora"
    taken = {Path(name).stem for name in lora_names(app)}
    number = 1
    name = stem
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return app.keep(upload, "lora_file", LORA, app.lora_files / f"{name}.x").name


def add_lora(app: PageApp, model: str | None, name: str | None, strength: Any) -> None:
    """Add a LoRA to what the next jobs of a model get; in place of the same one with another strength.

    Raises:
        FieldFaults: it does not fit the model, or something was not chosen.
    """
    if model not in app.shelf.models or app.shelf.models[model].lacks:
        raise FieldFaults({"lora_model": "Choose a model that is there."})
    if name not in lora_names(app):
        raise FieldFaults({"lora": "Choose a file; one that you send appears in the list."})
    if not is_number(strength) or abs(strength) > STRONGEST:
        raise FieldFaults({"strength": f"Is {strength!r}, wanted a number from -{STRONGEST:g} to {STRONGEST:g}."})
    file = app.lora_files / str(name)
    kept = tuple(lora for lora in app.shelf.loras.get(model, ()) if lora[0] != file)
    loras = (*kept, (file, float(strength)))
    args = argparse.Namespace(**vars(app.shelf.models[model].args) | {"lora": [lora_flag(lora) for lora in loras]})
    try:
        with field_faults({file: "This file"}):
            facts(args)
    except FieldFaults as error:
        raise FieldFaults({"lora": str(error)}) from error
    app.shelf.loras[model] = loras


def clear_loras(app: PageApp, model: str | None) -> None:
    """Take all off what the next jobs of a model get."""
    app.shelf.loras.pop(model or "", None)
