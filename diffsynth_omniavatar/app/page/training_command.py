"""From what is to be trained to the launcher's command, and what is wrong with the clips before it starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...data.scan import Fault, check_dataset
from ...model.checkpoint import needed_sources
from ...model.files import HubFiles, ModelFiles, Source
from ...training.flags import parse_arguments
from ...training.run import clip_settings, conventions_of, recipe_of
from ..measured import Size
from .training_data import SAMPLES, TrainingData

MODULE = "diffsynth_omniavatar.train"
PROCESS_FLAGS = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
"""As in examples/accelerate: the weights' number format is the launcher's --dtype."""
VALIDATIONS = 5
"""In a run; checkpoints are written at the same steps."""
NANO_VIDEO_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is to be trained."""

    data: TrainingData
    mode: str
    files: ModelFiles
    """Of the model."""
    is_nano: bool
    size: Size
    steps: int
    rank: int
    learning_rate: float
    batch: int
    videos: int
    """At each validation."""
    gpus: int
    """0 for the CPU."""
    memory_flags: tuple[str, ...] = ()
    """What `omniavatar plan` advises."""

    @property
    def interval(self) -> int:
        """Steps between checkpoints, and between validations."""
        return max(1, -(-self.steps // VALIDATIONS))

    @property
    def is_v2v(self) -> bool:
        """Whether mouths of videos are changed."""
        return self.mode == "v2v"


def command_of(training: Training, folder: Path) -> list[str]:
    """The launcher's command, without --resume.

    Args:
        training: what is to be trained.
        folder: of the run, into which `TrainingData.write` writes what is to be read.

    Raises:
        ValueError: files of the model are not there.
    """
    data = training.data
    table, held_out = data.tables_in(folder)
    shows = bool(data.shown(training.videos))
    validates = shows or held_out is not None
    return [
        *_launcher(training.gpus),
        *("--omniavatar_mode", training.mode),
        *("--dataset_metadata_path", str(table), "--dataset_base_path", str(table if data.is_cache else table.parent)),
        *_model_flags(training, live=not data.is_cache or validates),
        *("--dtype", "float32" if training.is_nano else "bfloat16"),
        *("--height", str(training.size.height), "--width", str(training.size.width)),
        *("--num_frames", str(training.size.frames), "--lora_rank", str(training.rank)),
        *("--learning_rate", f"{training.learning_rate:g}", "--warmup_steps", str(min(100, training.steps // 10))),
        *("--max_grad_norm", "1.0", "--batch_size", str(training.batch), "--max_steps", str(training.steps)),
        *("--save_steps", str(training.interval), "--checkpoints_total_limit", "3", "--enable_csv_log"),
        *training.memory_flags,
        *(("--offload_frozen",) if not training.is_nano and not data.is_cache else ()),
        *(("--validation_steps", str(training.interval)) if validates else ()),
        *(("--validation_loss_data", str(held_out), "--best_by", "validation_loss") if held_out is not None else ()),
        *(("--validation_data", str(folder / SAMPLES)) if shows else ()),
        *(("--validation_num_inference_steps", str(NANO_VIDEO_STEPS)) if shows and training.is_nano else ()),
        *("--output_path", str(folder)),
    ]


def _launcher(gpus: int) -> list[str]:
    words = ["accelerate", "launch", "--quiet", "--num_processes", str(max(1, gpus)), *PROCESS_FLAGS]
    if gpus == 0:
        words += ["--cpu", "--num_cpu_threads_per_process", str(torch.get_num_threads())]
    elif gpus > 1:
        words += ["--multi_gpu"]
    return [*words, "-m", MODULE]


def _model_flags(training: Training, *, live: bool) -> list[str]:
    """Where the parts of the model lie; of the encoders where clips are live."""
    paths = {part: _local(source) for part, source in needed_sources(training.files).items()}
    if lacking := [part for part in paths if not paths[part]]:
        raise ValueError(f"the files of {', '.join(lacking)} are not there; the tab Models tells how to get them")
    checkpoint = _whole(paths["omniavatar"])
    named = [paths["dit"]] if "dit" in paths else []
    if live:
        named += [paths["text_encoder"][:1], paths["vae"][:1]]  # a hub may have brought them in two forms
    words = ["--model_paths", json.dumps([_one(group) for group in named])]
    if live:
        words += ["--tokenizer_path", str(_whole(paths["tokenizer"]))]
        words += ["--wav2vec2_path", str(_whole(paths["wav2vec2"]))]
    return [*words, "--omniavatar_checkpoint", str(checkpoint)]


def _local(source: Source) -> list[Path]:
    return [path.absolute() for path in (source.downloaded() if isinstance(source, HubFiles) else source)]


def _one(paths: Sequence[Path]) -> str | list[str]:
    names = [str(path) for path in paths]
    return names[0] if len(names) == 1 else names


def _whole(paths: Sequence[Path]) -> Path:
    """A part that is one file or folder; a download is all files of its folder."""
    return paths[0] if len(paths) == 1 else paths[0].parent


def clip_faults(training: Training, folder: Path, on_clip: Callable[[], None] | None = None) -> list[Fault]:
    """What is wrong with the clips that train, and those that validate, as `omniavatar check` finds it.

    Args:
        training: what is to be trained.
        folder: of the run; it need not be there yet.
        on_clip: called after each clip, from several threads.

    Raises:
        ValueError: the flags are none that training takes, or a cache does not fit the model.
    """
    command = command_of(training, folder)
    args = parse_arguments(command[command.index(MODULE) + 1 :])
    conventions = conventions_of(args)
    settings = clip_settings(args, conventions)
    if training.is_v2v and not training.is_nano and not training.data.is_cache:
        settings = replace(settings, faces="checked")  # the small model's people are drawn
    clips = [*training.data.clips, *training.data.held_out]
    return check_dataset(clips, settings, recipe_of(args, conventions), on_clip=on_clip)
