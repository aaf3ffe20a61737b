"""From what the tab Train asks for to the launcher's command, and what is wrong with the clips before it starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...data.scan import Fault, check_dataset
from ...model.config import PRESETS
from ...model.files import NANO_MODELS, HubFiles, ModelFiles, Source, model_files
from ...training.flags import parse_arguments
from ...training.run import clip_settings, conventions_of, recipe_of
from ..measured import Size, Task, measured_table
from ..plan import report
from ..prediction import fastest, predict_all
from .training_data import TrainingData

MODES = ("i2v", "v2v")
NANO_SIZE = Size(128, 128, 33)
PROCESSES_FLAGS = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
"""As in examples/accelerate: the weights' number format is the launcher's --dtype."""
VALIDATIONS = 5
"""In a run; the checkpoints are written at the same steps."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is to be trained."""

    data: TrainingData
    mode: str
    model: str
    """A published size, or "nano"."""
    models_folder: Path | None
    checkpoint: Path | None
    """To start from; None for the model's own."""
    size: Size
    steps: int
    rank: int
    learning_rate: float
    batch: int
    videos: int
    """At each validation."""
    gpus: int
    """0 for the CPU."""
    gpu_memory: float
    """GiB of one."""

    @property
    def is_nano(self) -> bool:
        """Whether it is the small model."""
        return self.model not in PRESETS

    @property
    def interval(self) -> int:
        """Steps between checkpoints, and between validations."""
        return max(1, -(-self.steps // VALIDATIONS))

    def files(self) -> ModelFiles:
        """Of the model."""
        name = "nano-v2v" if self.is_nano and self.mode == "v2v" else self.model
        return model_files(name, self.models_folder)


def has_files(model: str, folder: Path | None) -> bool:
    """Whether all files of a model are on this machine."""
    files = model_files(model, None if model in NANO_MODELS else folder)
    return not files.missing() and all(_local(source) for source in files.sources.values())


def _local(source: Source) -> list[Path]:
    return source.downloaded() if isinstance(source, HubFiles) else list(source)


def plan_of(training: Training) -> tuple[str, list[str]]:
    """What `omniavatar plan` says of it, and the flags that it advises; none for the small model and without a GPU."""
    if training.is_nano:
        where = "a GPU" if training.gpus else "the CPU"
        return f"The small model trains on {where}, in less than 2 GiB; nothing has to be planned.", []
    task = Task(
        model=training.model,
        size=training.size,
        mode=training.mode,
        lora_rank=training.rank,
        batch=training.batch,
    )
    table = measured_table()
    best = fastest(predict_all(task, training.gpu_memory, table), training.gpu_memory)
    return report(task, training.gpu_memory, table), [] if best is None else best.flags.split()


def command_of(training: Training, folder: Path) -> list[str]:
    """The launcher's command, without --resume; tables that it reads are written into the run's folder.

    Raises:
        ValueError: files of the model are not there.
    """
    data = training.data
    table, held_out = data.write(folder)
    samples = None
    if training.videos and not data.is_cache:
        samples = data.write_samples(folder, training.videos, is_v2v=training.mode == "v2v")
    validates = samples is not None or held_out is not None
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
        *(plan_of(training)[1]),
        *(("--offload_frozen",) if not training.is_nano and not data.is_cache else ()),
        *(("--validation_steps", str(training.interval)) if validates else ()),
        *(("--validation_loss_data", str(held_out), "--best_by", "validation_loss") if held_out is not None else ()),
        *(("--validation_data", str(samples)) if samples is not None else ()),
        *(("--validation_num_inference_steps", "10") if samples is not None and training.is_nano else ()),
        *("--output_path", str(folder)),
    ]


def _launcher(gpus: int) -> list[str]:
    words = ["accelerate", "launch", "--quiet", "--num_processes", str(max(1, gpus)), *PROCESSES_FLAGS]
    if gpus == 0:
        words += ["--cpu", "--num_cpu_threads_per_process", str(torch.get_num_threads())]
    elif gpus > 1:
        words += ["--multi_gpu"]
    return [*words, "-m", "diffsynth_omniavatar.train"]


def _model_flags(training: Training, *, live: bool) -> list[str]:
    """Where the parts of the model lie; of the encoders where clips are live."""
    paths = {part: _local(source) for part, source in training.files().sources.items()}
    lacking = [part for part in paths if not paths[part]]
    if lacking:
        raise ValueError(
            f"{training.model}: the files of {', '.join(lacking)} are not there; the tab Models tells how to get them"
        )
    checkpoint = training.checkpoint or _whole(paths["omniavatar"])
    named = [] if paths["dit"] == [checkpoint] else [paths["dit"]]
    if live:
        named += [paths["text_encoder"], paths["vae"]]
    words = ["--model_paths", json.dumps([_one(group) for group in named])]
    if live:
        words += ["--tokenizer_path", str(_whole(paths["tokenizer"]))]
        words += ["--wav2vec2_path", str(_whole(paths["wav2vec2"]))]
    return [*words, "--omniavatar_checkpoint", str(checkpoint)]


def _one(paths: Sequence[Path]) -> str | list[str]:
    names = [str(path.absolute()) for path in paths]
    return names[0] if len(names) == 1 else names


def _whole(paths: Sequence[Path]) -> Path:
    """A part that is one file or folder; a download is all files of its folder."""
    return (paths[0] if len(paths) == 1 else paths[0].parent).absolute()


def clip_faults(training: Training, command: Sequence[str], on_clip: Callable[[], None] | None = None) -> list[Fault]:
    """What is wrong with the clips that train, and those that validate, as `omniavatar check` finds it.

    Args:
        training: what is to be trained.
        command: of it.
        on_clip: called after each clip, from several threads.

    Raises:
        ValueError: the command has flags that cannot be, or a cache does not fit the model.
    """
    args = parse_arguments(command[command.index("diffsynth_omniavatar.train") + 1 :])
    conventions = conventions_of(args)
    settings = clip_settings(args, conventions)
    if training.mode == "v2v" and not training.is_nano and not training.data.is_cache:
        settings = replace(settings, faces="checked")
    clips = [*training.data.clips, *training.data.held_out]
    return check_dataset(clips, settings, recipe_of(args, conventions), on_clip=on_clip)
