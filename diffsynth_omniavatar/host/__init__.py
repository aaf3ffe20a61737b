"""The one room that imports DiffSynth-Studio: the same names for both of its generations.

The names below are those of `wan_video.py` or `wan_video_new.py`, imported when the first of them is used, so that
`versions` can be read where DiffSynth is missing or cannot be imported. The generation is chosen by the version of the
installed distribution, not by trying imports: DiffSynth 1.1.9 also has a module `diffsynth.pipelines.wan_video`, which
is its legacy pipeline.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .versions import check_transformers, host_generation, host_version

if TYPE_CHECKING:
    from .wan_video import *  # noqa: F403

NAMES = (
    "PIPELINE_MODULE",
    "DiffusionTrainingModule",
    "ModelConfig",
    "ModelLogger",
    "PipelineUnit",
    "PromptEmbedder",
    "TeaCache",
    "TensorBoardLogger",
    "VideoVAE_",
    "WanModel",
    "WanTextEncoder",
    "WanVideoPipeline",
    "WanVideoVAE",
    "add_model_entry",
    "declare_unit",
    "flash_attention",
    "hub_config",
    "launch_data_process_task",
    "launch_training_task",
    "load_within",
    "model_hash",
    "remove_model_entries",
    "set_tokenizer",
    "sinusoidal_embedding_1d",
    "training_loss",
    "wan_parser",
)
"""What both generations have."""


@functools.cache
def _generation() -> ModuleType:
    """The module of the installed generation.

    Raises:
        UnsupportedHostError: DiffSynth is missing, of another version, or beside a transformers that it does not fit.
    """
    version = host_version()
    check_transformers(version, importlib.metadata.version("transformers"))
    return importlib.import_module(f".{host_generation(version)}", __name__)


def __getattr__(name: str) -> Any:
    if name == "VERSION":
        return host_version()
    if name == "GENERATION":
        return host_generation(host_version())
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_generation(), name)
