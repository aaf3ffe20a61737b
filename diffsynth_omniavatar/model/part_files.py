"""What the first bytes of a model's files tell, before anything large is loaded."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..system.tensor_files import open_safetensors
from ..system.text_files import parse_json, read_text
from .files import HubFiles, Source

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


def check_parts(sources: Mapping[str, Source]) -> None:
    """Look at each part of a model for what it cannot be.

    Args:
        sources: see `files.ModelFiles`; their paths exist.

    Raises:
        ValueError: a part is damaged or of another kind; the message lists all of them.
    """
    faults = [
        f"{part}: {fault}"
        for part, source in sources.items()
        if not isinstance(source, HubFiles)
        for fault in _faults(part, source)
    ]
    if faults:
        raise ValueError("; ".join(faults) + ".")


def _faults(part: str, paths: tuple[Path, ...]) -> Iterator[str]:
    look = {"tokenizer": tokenizer_fault, "wav2vec2": speech_encoder_fault}.get(part, weights_fault)
    for path in () if part == "omniavatar" else paths:  # its reader tells more
        fault = look(path)
        if fault is not None:
            yield fault


def weights_fault(path: Path) -> str | None:
    """What tells that a file has no weights, by its head and its end; None if nothing does."""
    if not path.is_file():
        return f"{path} is no file"
    try:
        if path.suffix == ".safetensors":
            with open_safetensors(path):
                return None
        with open(path, "rb") as file:
            begins_as_pickle = file.read(1) == b"\x80"
    except (ValueError, OSError) as error:
        return str(error)
    return None if begins_as_pickle or zipfile.is_zipfile(path) else f"{path} is no file of tensors (is it cut?)"


def tokenizer_fault(folder: Path) -> str | None:
    """What tells that a folder has no tokenizer of the text encoder; None if nothing does."""
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return f"{folder} is no folder with {' or '.join(TOKENIZER_FILES)}"


def speech_encoder_fault(folder: Path) -> str | None:
    """What tells that a folder has no wav2vec2; None if nothing does."""
    config = folder / "config.json"
    if not config.is_file():
        return f"{folder} is no folder with a config.json, wanted a copy of facebook/wav2vec2-base-960h"
    try:
        content = parse_json(read_text(config), str(config))
    except (ValueError, OSError) as error:
        return str(error)
    kind = content.get("model_type") if isinstance(content, dict) else type(content).__name__
    if kind != "wav2vec2":
        return f"{config} is of a {kind} model, wanted wav2vec2, for instance facebook/wav2vec2-base-960h"
    names = [name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    return weights_fault(folder / names[0]) if names else f"{folder} has no model.safetensors or pytorch_model.bin"
