"""The models of the page: which are there, and the one that is loaded and stays so between jobs."""

from __future__ import annotations

import argparse
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...host.versions import UnsupportedHostError
from ...model.checkpoint import needed_sources, read_facts
from ...model.config import PRESETS, CheckpointConfig, has_masked_video
from ...model.files import NANO_MODELS, PUBLISHED, SMALL_FAMILY, HubFiles, model_files
from ..model_flags import MODEL_FLAGS, facts, given, load_model
from .command_lines import shown_path

if TYPE_CHECKING:
    from ...generation.pipeline import OmniAvatarPipeline

LoRAs = tuple[tuple[Path, float], ...]
"""Files and their strengths."""

OF_ALL_MODELS = ("device", "dtype")
"""Flags of the command that hold for the small models too; the others are about the published ones' files."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model that the page can offer."""

    name: str
    args: argparse.Namespace
    """The flags that load it."""
    facts: CheckpointConfig | None
    """What is known of its checkpoint; None where files are missing."""
    lacks: str
    """What is missing, or ""."""
    written: int = 0
    """When an added checkpoint was written: another one can take its place under the same name."""

    @property
    def dubs(self) -> bool:
        """Whether it changes the mouths of videos; others make portraits talk."""
        return self.facts is not None and has_masked_video(self.facts.in_dim or 33)

    @property
    def flags(self) -> dict[str, Any]:
        """The flags of the command line that name it."""
        folder = self.args.models_folder
        return {"model": self.args.model, "models_folder": folder and Path(folder), **given(self.args, MODEL_FLAGS)}


def lora_flag(lora: tuple[Path, float]) -> str:
    """A LoRA as --lora takes it."""
    return f"{shown_path(lora[0])}:{lora[1]:g}"


class Shelf:
    """The models, and the LoRAs that people add to them.

    Args:
        args: the flags of the command.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._lock = threading.Lock()
        self._pipe: OmniAvatarPipeline | None = None
        self._loaded: tuple[str, int, LoRAs] | None = None
        """Name, `Model.written` and LoRAs of the loaded one."""
        self.loras: dict[str, LoRAs] = {}
        """What people add, by the model's name."""
        self.models: dict[str, Model] = {}
        self._checkpoints: dict[str, Model] = {}
        self.look()

    def look(self) -> None:
        """Look again which models are there."""
        names = [self._args.model] if self._args.model else PUBLISHED
        found = [_model(self._args, name) for name in dict.fromkeys((*names, *NANO_MODELS))]
        self.models = {model.name: model for model in found}

    def find(self, name: str | None) -> Model | None:
        """The model or added checkpoint of that name, if all of it is there."""
        model = self.models.get(name or "") or self._checkpoints.get(name or "")
        return None if model is None or model.lacks else model

    def add_checkpoint(self, name: str, checkpoint: Path) -> Model:
        """Take a checkpoint up under a name of its own, with the other parts of the model that it fits.

        Raises:
            ValueError, OSError: it cannot be read, or no model that is there has its sizes.
        """
        known = read_facts((checkpoint,))
        assert known is not None
        fitting = [model for model in self.models.values() if _fits(model, known)]
        if not fitting:
            raise ValueError(f"{name} fits no model that is there")
        base = next((model for model in fitting if model.dubs == has_masked_video(known.in_dim or 33)), fitting[0])
        own = argparse.Namespace(**vars(base.args) | {"omniavatar": shown_path(checkpoint)})
        model = Model(name, own, facts(own), "", checkpoint.stat().st_mtime_ns)
        self._checkpoints[name] = model
        return model

    def names(self, dubs: bool) -> list[str]:
        """The models that dub videos, or those that make portraits talk: the best first."""
        return [model.name for model in self.models.values() if not model.lacks and model.dubs == dubs]

    def loaded(self) -> str | None:
        """The name of the model that is loaded."""
        return None if self._loaded is None else self._loaded[0]

    @contextmanager
    def pipeline(self, name: str, loras: LoRAs) -> Iterator[OmniAvatarPipeline]:
        """A model with these LoRAs, loaded where it is not yet; it is the block's alone.

        Raises:
            ValueError, OSError: it cannot be loaded.
        """
        with self._lock:
            model = self.find(name)
            if model is None:
                raise ValueError(f"the model {name} is no longer there")
            args, wanted = model.args, (name, model.written)
            if hasattr(args, "quantize"):  # LoRAs go in before the weights become 8 bits
                args = argparse.Namespace(**vars(args) | {"lora": [*(args.lora or ()), *map(lora_flag, loras)]})
                is_loaded = self._loaded == (*wanted, loras)
            else:
                is_loaded = self._loaded is not None and self._loaded[:2] == wanted
            if not is_loaded:
                self._let_go()
                self._pipe = load_model(args)
                self._loaded = *wanted, loras if hasattr(args, "quantize") else ()
            assert self._pipe is not None and self._loaded is not None
            if self._loaded[2] != loras:
                self._change_loras(self._pipe, wanted, loras)
            yield self._pipe

    def _change_loras(self, pipe: OmniAvatarPipeline, loaded: tuple[str, int], loras: LoRAs) -> None:
        from ...generation.loras import add_lora, remove_loras

        remove_loras(pipe)
        self._loaded = *loaded, ()
        for number, (file, strength) in enumerate(loras, start=1):
            add_lora(pipe, file, strength)
            self._loaded = *loaded, loras[:number]

    def release(self) -> bool:
        """Free the memory of the loaded model; False where a job needs it."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._let_go()
        finally:
            self._lock.release()
        return True

    def _let_go(self) -> None:
        import torch

        self._pipe = self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _model(args: argparse.Namespace, name: str) -> Model:
    own = argparse.Namespace(**vars(args))
    own.model = name
    if name in NANO_MODELS and args.model != name:
        own.models_folder = own.lora = None
        for flag in set(MODEL_FLAGS) - set(OF_ALL_MODELS):
            if hasattr(own, flag):
                delattr(own, flag)
    try:
        lacks = _lacks(own, is_named=args.model == name)
        return Model(name, own, None if lacks else facts(own), lacks)
    except (ValueError, OSError, UnsupportedHostError) as error:
        return Model(name, own, None, str(error))


def _fits(model: Model, checkpoint: CheckpointConfig) -> bool:
    """Whether a checkpoint has the sizes of a model; those that do not tell theirs are of a published one."""
    if model.facts is None or model.lacks:
        return False
    own = PRESETS.get(model.name) or model.facts.model
    if checkpoint.model is None or own is None:
        return model.name in PUBLISHED and checkpoint.model is None
    return (own.dim, own.num_layers) == (checkpoint.model.dim, checkpoint.model.num_layers)


def _lacks(args: argparse.Namespace, is_named: bool) -> str:
    """What of a model is not on this machine; one that --model names is downloaded when it is first used.

    Raises:
        FileNotFoundError: files of a folder are missing.
    """
    files = model_files(args.model, args.models_folder, {part: getattr(args, part, None) for part in SMALL_FAMILY})
    hub = [source for source in needed_sources(files).values() if isinstance(source, HubFiles)]
    gigabytes = sum(source.gigabytes for source in hub if not source.downloaded())
    if not gigabytes or is_named:
        return ""
    return f"{gigabytes:.0f} GB are to be downloaded; start the page with --model {args.model} to do so"
