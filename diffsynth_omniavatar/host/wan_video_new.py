"""DiffSynth-Studio 1.1.9 under the names that the rest of the package uses."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffsynth.configs.model_config import model_loader_configs
from diffsynth.models.utils import convert_state_dict_keys_to_single_str
from diffsynth.models.wan_video_dit import WanModel, sinusoidal_embedding_1d
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vae import VideoVAE_, WanVideoVAE
from diffsynth.pipelines.wan_video_new import ModelConfig, TeaCache, WanVideoPipeline
from diffsynth.pipelines.wan_video_new import WanVideoUnit_PromptEmbedder as PromptEmbedder
from diffsynth.utils import PipelineUnit

__all__ = [
    "PIPELINE_MODULE",
    "ModelConfig",
    "PipelineUnit",
    "PromptEmbedder",
    "TeaCache",
    "VideoVAE_",
    "WanModel",
    "WanTextEncoder",
    "WanVideoPipeline",
    "WanVideoVAE",
    "add_model_entry",
    "declare_unit",
    "model_hash",
    "remove_model_entries",
    "sinusoidal_embedding_1d",
]

PIPELINE_MODULE = "diffsynth.pipelines.wan_video_new"


def declare_unit(unit: PipelineUnit, *, output_params: Sequence[str], **declarations: Any) -> None:
    """Initialise a PipelineUnit; this host has no unit graph and does not ask what a unit writes."""
    PipelineUnit.__init__(unit, **declarations)


def model_hash(shapes: Mapping[str, Sequence[int]]) -> str:
    """The hash by which the host recognises a file whose tensors have these names and shapes."""
    tensors = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    return hashlib.md5(convert_state_dict_keys_to_single_str(tensors).encode()).hexdigest()


def _resolve(dotted_path: str) -> Any:
    module, _, name = dotted_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


class _ModelEntry:
    """What this host's loader expects of a model class, made from a factory's dotted path."""

    def __init__(self, factory: str, converter: str | None, kwargs: Mapping[str, Any]) -> None:
        self.__name__ = self.factory = factory
        self.converter = converter
        self.kwargs = dict(kwargs)

    def __call__(self, **kwargs: Any) -> torch.nn.Module:
        return _resolve(self.factory)(**kwargs)

    def state_dict_converter(self) -> _ModelEntry:
        return self

    def from_civitai(self, state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return (state_dict if self.converter is None else _resolve(self.converter)(state_dict)), self.kwargs


def add_model_entry(hash_: str, slot: str, factory: str, converter: str | None, kwargs: Mapping[str, Any]) -> None:
    """Make the host's loader recognise a file by the hash of its keys and shapes.

    Args:
        hash_: what `model_hash` gives for the file.
        slot: the host's name of the kind of model, for instance "wan_video_dit".
        factory: dotted path of the class or function that builds the model from `kwargs`.
        converter: dotted path of a function state dict -> state dict, or None.
        kwargs: JSON-serialisable keyword arguments of the factory.
    """
    if all(entry[1] != hash_ for entry in model_loader_configs):
        model_loader_configs.append((None, hash_, [slot], [_ModelEntry(factory, converter, kwargs)], "civitai"))


def remove_model_entries(package: str) -> None:
    """Take back every entry whose factory lies in `package`."""
    model_loader_configs[:] = [
        entry
        for entry in model_loader_configs
        if not (isinstance(entry[3][0], _ModelEntry) and entry[3][0].factory.startswith(f"{package}."))
    ]
