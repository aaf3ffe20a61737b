"""DiffSynth-Studio 2.1.x under the names that `host/__init__.py` lists."""

# ruff: noqa: F401 (what is imported is what this module is for)

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffsynth.configs.model_configs import MODEL_CONFIGS
from diffsynth.configs.vram_management_module_maps import VRAM_MANAGEMENT_MODULE_MAPS
from diffsynth.core.loader.config import ModelConfig
from diffsynth.core.loader.file import convert_keys_dict_to_single_str
from diffsynth.diffusion import parsers, runner
from diffsynth.diffusion.base_pipeline import PipelineUnit
from diffsynth.diffusion.logger import ModelLogger, TensorBoardLogger
from diffsynth.diffusion.loss import FlowMatchSFTLoss
from diffsynth.diffusion.runner import launch_data_process_task
from diffsynth.diffusion.training_module import DiffusionTrainingModule
from diffsynth.models.wan_video_dit import WanModel, flash_attention, sinusoidal_embedding_1d
from diffsynth.models.wan_video_text_encoder import HuggingfaceTokenizer, WanTextEncoder
from diffsynth.models.wan_video_vae import VideoVAE_, WanVideoVAE
from diffsynth.pipelines.wan_video import TeaCache, WanVideoPipeline
from diffsynth.pipelines.wan_video import WanVideoUnit_PromptEmbedder as PromptEmbedder

PIPELINE_MODULE = "diffsynth.pipelines.wan_video"

_HOST_CLASSES = {
    "wan_video_dit": "diffsynth.models.wan_video_dit.WanModel",
    "wan_video_text_encoder": "diffsynth.models.wan_video_text_encoder.WanTextEncoder",
    "wan_video_vae": "diffsynth.models.wan_video_vae.WanVideoVAE",
}
"""Slot -> the class whose modules this host knows how to keep in CPU memory."""


def declare_unit(unit: PipelineUnit, *, output_params: Sequence[str], **declarations: Any) -> None:
    """Initialise a PipelineUnit; `output_params` tells the host's unit graph what the unit writes."""
    PipelineUnit.__init__(unit, output_params=tuple(output_params), **declarations)


def model_hash(shapes: Mapping[str, Sequence[int]]) -> str:
    """The hash by which the host recognises a file whose tensors have these names and shapes."""
    return hashlib.md5(convert_keys_dict_to_single_str(dict(shapes)).encode()).hexdigest()


def add_model_entry(hash_: str, slot: str, factory: str, converter: str | None, kwargs: Mapping[str, Any]) -> None:
    """Make the host's loader recognise a file by the hash of its keys and shapes.

    Args:
        hash_: what `model_hash` gives for the file.
        slot: the host's name of the kind of model, for instance "wan_video_dit".
        factory: dotted path of the class or function that builds the model from `kwargs`.
        converter: dotted path of a function state dict -> state dict, or None.
        kwargs: JSON-serialisable keyword arguments of the factory.
    """
    entry = {"model_hash": hash_, "model_name": slot, "model_class": factory, "extra_kwargs": dict(kwargs)}
    if converter is not None:
        entry["state_dict_converter"] = converter
    if entry not in MODEL_CONFIGS:
        MODEL_CONFIGS.append(entry)
    if slot in _HOST_CLASSES:
        VRAM_MANAGEMENT_MODULE_MAPS.setdefault(factory, VRAM_MANAGEMENT_MODULE_MAPS[_HOST_CLASSES[slot]])


def remove_model_entries(package: str) -> None:
    """Take back every entry whose factory lies in `package`."""
    MODEL_CONFIGS[:] = [entry for entry in MODEL_CONFIGS if not entry["model_class"].startswith(f"{package}.")]
    for factory in [factory for factory in VRAM_MANAGEMENT_MODULE_MAPS if factory.startswith(f"{package}.")]:
        del VRAM_MANAGEMENT_MODULE_MAPS[factory]


def hub_config(repository: str, pattern: str, source: str | None) -> ModelConfig:
    """Files that the host downloads; `source` is "modelscope" or "huggingface", None for the host's choice."""
    return ModelConfig(model_id=repository, origin_file_pattern=pattern, download_source=source)


def load_within(
    vram_limit: float, from_pretrained: Callable[..., WanVideoPipeline], arguments: Mapping[str, Any]
) -> WanVideoPipeline:
    """Load a pipeline that offloads weights to CPU memory above `vram_limit` GiB of GPU memory."""
    dtype, device = arguments["torch_dtype"], arguments["device"]
    for config in arguments["model_configs"]:
        config.offload_dtype = config.onload_dtype = config.preparing_dtype = config.computation_dtype = dtype
        config.offload_device = config.onload_device = "cpu"
        config.preparing_device = config.computation_device = device
    return from_pretrained(**arguments, vram_limit=vram_limit)


def launch_training_task(*inputs: Any, args: argparse.Namespace) -> None:
    """The host's training loop without its progress bar, which counts the samples of a pass from 0."""
    original = runner.tqdm
    runner.tqdm = lambda loader: loader
    try:
        runner.launch_training_task(*inputs, args=args)
    finally:
        runner.tqdm = original


def training_loss(pipe: WanVideoPipeline, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The host's flow-matching loss, a scalar; `inputs` are the model function's, with `input_latents`."""
    return FlowMatchSFTLoss(pipe, **inputs)


def wan_parser() -> argparse.ArgumentParser:
    """The host's own training flags for Wan; the package ships them in parts, its example joins them like this."""
    parser = argparse.ArgumentParser()
    parsers.add_video_size_config(parsers.add_general_config(parser))
    parser.add_argument("--max_timestep_boundary", type=float, default=1.0, help="Cleanest training timestep, 0..1.")
    parser.add_argument("--min_timestep_boundary", type=float, default=0.0, help="Noisiest training timestep, 0..1.")
    return parser


def set_tokenizer(pipe: WanVideoPipeline, folder: str) -> None:
    """Give a pipeline that was not made by `from_pretrained` its tokenizer."""
    pipe.tokenizer = HuggingfaceTokenizer(name=folder, seq_len=512, clean="whitespace")
