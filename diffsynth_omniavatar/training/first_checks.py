"""What can be told to be wrong before anything is loaded."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from ..data.clips import ClipSource
from ..model.part_files import speech_encoder_fault, tokenizer_fault, weights_fault
from .base_lora import base_lora_faults
from .flags import VALIDATION_WEIGHTS, FlagError
from .optimizers import INSTALL, missing_library
from .validation_metrics import metric_faults, networks_of

LOG_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab"}
"""Which package `--enable_<name>_log` needs."""
FOLDERS = {"wav2vec2_path": speech_encoder_fault, "tokenizer_path": tokenizer_fault}
FILES = ("mouth_mask", "syncnet_path", "vgg_path", "videomae_path", *VALIDATION_WEIGHTS)


def check_processes() -> int:
    """How many processes train together.

    Raises:
        FlagError: several were launched, but each would train alone.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # which only an Accelerator reads by itself
    together, launched = state.num_processes, int(os.environ.get("WORLD_SIZE") or 1)
    if together != launched:
        raise FlagError(
            f"{launched} processes were launched (WORLD_SIZE), but accelerate joins {together}: each would train by "
            "itself into the same folder. On CPUs launch with `accelerate launch --cpu`, or set ACCELERATE_USE_CPU=true"
        )
    return together


def check_files(args: argparse.Namespace) -> None:
    """Raise FlagError that lists all files and packages that the flags need and that are not there."""
    faults = [*_file_faults(args)]
    if faults:
        raise FlagError("; ".join(faults) + ".")


def _file_faults(args: argparse.Namespace) -> Iterator[str]:
    for name in FOLDERS:
        path = getattr(args, name)
        if path is not None and not Path(path).is_dir():
            yield f"--{name} {path} does not exist or is no folder"
        elif path is not None and (fault := FOLDERS[name](Path(path))):
            yield f"--{name}: {fault}"
    for name in FILES:
        path = getattr(args, name)
        if path is not None and not Path(path).is_file():
            yield f"--{name} {path} does not exist or is no file"
    yield from _model_path_faults(args.model_paths)
    yield from base_lora_faults(args)
    yield from metric_faults(args.validation_metrics, networks_of(args))
    library = missing_library(args.optimizer)
    if library is not None:
        yield f"--optimizer {args.optimizer} needs the package {library.replace('_', '-')}: {INSTALL}"
    for name, package in LOG_PACKAGES.items():
        if getattr(args, f"enable_{name}_log", False) and importlib.util.find_spec(package) is None:
            yield f"--enable_{name}_log needs the package {package}: pip install {package}"


def _model_path_faults(text: str | None) -> Iterator[str]:
    if text is None:
        return
    try:
        named = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        yield f"--model_paths {text[:80]} is not valid JSON: {error}"
        return
    if not isinstance(named, list):
        yield f'--model_paths {text[:80]} is a {type(named).__name__}, wanted a list: ["a.safetensors", ...]'
        return
    for entry in named:
        for path in entry if isinstance(entry, list) else [entry]:
            if not isinstance(path, str):
                yield f"--model_paths holds {path!r}, wanted paths in quotes"
            elif not os.path.exists(path):
                yield f"--model_paths: {path} does not exist"
            elif fault := weights_fault(Path(path)):
                yield f"--model_paths: {fault}"


def check_same_clips(clips: Sequence[ClipSource]) -> None:
    """Compare the list of clips over the processes, of which each reads its own. Every process must call it.

    Raises:
        ValueError: they differ.
    """
    listing = repr([(type(clip).__name__, clip.name, getattr(clip, "prompt", None)) for clip in clips])
    digests = gather_object([(len(clips), hashlib.sha256(listing.encode()).hexdigest()[:12])])
    if len(set(digests)) > 1:
        shown = ", ".join(f"process {number}: {count} ({digest})" for number, (count, digest) in enumerate(digests))
        raise ValueError(f"the processes see other lists of clips, which would train on other data: {shown}")
