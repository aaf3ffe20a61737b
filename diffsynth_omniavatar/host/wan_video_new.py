"""DiffSynth-Studio 1.1.9 under the names that `host/__init__.py` lists; its functions do what `wan_video.py`'s do."""

# ruff: noqa: F401 (what is imported is what this module is for)

from __future__ import annotations

import argparse
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffsynth.configs.model_config import model_loader_configs
from diffsynth.models.utils import convert_state_dict_keys_to_single_str
from diffsynth.models.wan_video_dit import WanModel, flash_attention, sinusoidal_embedding_1d
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vae import VideoVAE_, WanVideoVAE
from diffsynth.pipelines.wan_video_new import ModelConfig, TeaCache, WanVideoPipeline
from diffsynth.pipelines.wan_video_new import WanVideoUnit_PromptEmbedder as PromptEmbedder
from diffsynth.trainers import utils as trainers
from diffsynth.trainers.utils import DiffusionTrainingModule
from diffsynth.utils import PipelineUnit

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
    """Make the host's loader recognise a file by the hash of its keys and shapes."""
    if all(entry[1] != hash_ for entry in model_loader_configs):
        model_loader_configs.append((None, hash_, [slot], [_ModelEntry(factory, converter, kwargs)], "civitai"))


def remove_model_entries(package: str) -> None:
    """Take back every entry whose factory lies in `package`."""
    model_loader_configs[:] = [
        entry
        for entry in model_loader_configs
        if not (isinstance(entry[3][0], _ModelEntry) and entry[3][0].factory.startswith(f"{package}."))
    ]


def hub_config(repository: str, pattern: str, source: str | None) -> ModelConfig:
    """Files that the host downloads; `source` is "modelscope" or "huggingface", None for the host's choice."""
    config = ModelConfig(model_id=repository, origin_file_pattern=pattern)
    config.download_resource = source or config.download_resource
    return config


def load_within(
    vram_limit: float, from_pretrained: Callable[..., WanVideoPipeline], arguments: Mapping[str, Any]
) -> WanVideoPipeline:
    """Load a pipeline that offloads weights to CPU memory above `vram_limit` GiB of GPU memory."""
    for config in arguments["model_configs"]:
        config.offload_device = "cpu"
    pipe = from_pretrained(**arguments)
    pipe.enable_vram_management(vram_limit=vram_limit)
    return pipe


def _with_accelerator(loop: Callable[..., None]) -> Callable[..., None]:
    """A loop of this host that gets its Accelerator first, as those of 2.x do; its own comes from a module global.

    It draws no progress bar: the host's counts the samples of a pass from 0.
    """

    def launch(accelerator: Accelerator, *inputs: Any, args: argparse.Namespace) -> None:
        original = trainers.Accelerator, trainers.tqdm
        trainers.Accelerator, trainers.tqdm = (lambda **_: accelerator), (lambda loader: loader)
        try:
            loop(*inputs, args=args)
        finally:
            trainers.Accelerator, trainers.tqdm = original

    return launch


launch_training_task = _with_accelerator(trainers.launch_training_task)
# Calls the module with return_inputs=True, which 2.x does not.
launch_data_process_task = _with_accelerator(trainers.launch_data_process_task)


def training_loss(pipe: WanVideoPipeline, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The host's flow-matching loss, a scalar; `inputs` are the model function's, with `input_latents` and `noise`."""
    models = {name: getattr(pipe, name) for name in pipe.in_iteration_models}
    return pipe.training_loss(**models, **inputs)


def wan_parser() -> argparse.ArgumentParser:
    """The host's own training flags for Wan, and those of DiffSynth-Studio 2.x that this package honours on both."""
    parser = trainers.wan_parser()
    parser.add_argument("--task", type=str, default="sft", help="Task type.")
    parser.add_argument("--use_gradient_checkpointing", action="store_true", help="Recompute activations in backward.")
    parser.add_argument("--enable_tensorboard_log", action="store_true", help="Enable tensorboard for logging.")
    parser.add_argument("--enable_csv_log", action="store_true", help="Enable CSV loss logging.")
    return parser


class TensorBoardLogger:
    """Writes scalars for tensorboard, as DiffSynth-Studio 2.x does."""

    def __init__(self, log_dir: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(log_dir=log_dir)

    def log(self, key: str, value: float, step: int) -> None:
        self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class ModelLogger(trainers.ModelLogger):
    """The host's ModelLogger with the `loggers` that DiffSynth-Studio 2.x has."""

    def __init__(
        self,
        output_path: str,
        *args: Any,
        enable_tensorboard_log: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(output_path, *args, **kwargs)
        self.enable_tensorboard_log = enable_tensorboard_log
        self.loggers: list[TensorBoardLogger] = []
        self.loggers_initialized = False

    def init_loggers(self) -> None:
        if self.enable_tensorboard_log:
            self.loggers.append(TensorBoardLogger(str(Path(self.output_path, "tensorboard_log"))))
        self.loggers_initialized = True


def set_tokenizer(pipe: WanVideoPipeline, folder: str) -> None:
    """Give a pipeline that was not made by `from_pretrained` its tokenizer."""
    pipe.prompter.fetch_models(pipe.text_encoder)
    pipe.prompter.fetch_tokenizer(folder)
