"""What happens between the steps of DiffSynth's training loop: checkpoints, validation, metrics.

A checkpoint is a folder `step-N` of the output path: the trained weights in `model.safetensors`, as the export
writes them for use, and in `loop.pt` all that resuming needs. It is written under another name and renamed when
complete, and only then are older ones removed: what is called `step-N` can always be resumed.
"""

from __future__ import annotations

import copy
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import flush
from ..host import DiffusionTrainingModule, ModelLogger
from ..media.video import filmstrip
from ..tensor_files import write_pickle
from .accelerator import STATE_FILE, OmniAccelerator
from .loader import rng_state, set_rng_state

WEIGHTS_FILE = "model.safetensors"
_CHECKPOINT = re.compile(r"step-(\d+)")
_UNFINISHED = re.compile(r"\.step-\d+\.(partial|removed)")

logger = logging.getLogger(__name__)


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step at which a checkpoint folder was written, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def find_checkpoints(output_path: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folders = [path for path in Path(output_path).glob("step-*") if path.is_dir() and _CHECKPOINT.fullmatch(path.name)]
    return sorted(folders, key=checkpoint_step)


def find_latest(output_path: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(reversed(find_checkpoints(output_path)), None)


def begin_checkpoint(output_path: str | Path, step: int) -> Path:
    """The folder in which the checkpoint of a step is being written."""
    return Path(output_path, f".step-{step}.partial")


def finish_checkpoint(partial: Path, keep: int | None) -> Path:
    """Call what was written `step-<step>`, then remove all but the newest `keep` checkpoints; None keeps all."""
    output_path = partial.parent
    flush(partial)
    folder = partial.rename(output_path / partial.name.removeprefix(".").removesuffix(".partial"))
    flush(output_path)
    for old in find_checkpoints(output_path)[: -keep if keep is not None else 0]:
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.removed")))
    return folder


def forget_later_rows(table: Path, step: int) -> None:
    """Take what a broken-off run logged behind a step out of the host's `loss.csv`: it is done, and logged, again."""
    if table.exists():
        lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines[1:] if int(line.partition(",")[0]) <= step]
        partial = table.with_suffix(".partial")
        partial.write_text("".join(lines[:1] + kept), encoding="utf-8")
        partial.replace(table)


@contextmanager
def untouched_training_state(pipe: Any, module: torch.nn.Module) -> Iterator[None]:
    """A context in which the pipeline may generate; what training goes on from is as before at its end.

    That is: the random generators, the train/eval flag of every module (all are in eval mode inside), the
    pipeline's whole scheduler (generating changes its timesteps, and on DiffSynth 1.1.9 its shift), its units and
    its model function.
    """
    modules = [*dict.fromkeys([*module.modules(), *pipe.modules()])]
    flags = [part.training for part in modules]
    scheduler = copy.deepcopy(vars(pipe.scheduler))
    units, post_units, model_fn = [*pipe.units], [*pipe.post_units], pipe.model_fn
    rng = rng_state()
    try:
        for part in modules:
            part.training = False
        yield
    finally:
        set_rng_state(rng)
        for part, flag in zip(modules, flags, strict=True):
            part.training = flag
        vars(pipe.scheduler).clear()
        vars(pipe.scheduler).update(scheduler)
        pipe.units, pipe.post_units, pipe.model_fn = units, post_units, model_fn


@dataclass(frozen=True)
class ValidationResult:
    """What a validation found."""

    metrics: dict[str, float]
    """Means over the videos, by `validation_<name>`."""
    videos: list[Path]


class TrainingLogger(ModelLogger):
    """The ModelLogger that DiffSynth's `launch_training_task` gets, beside an `OmniAccelerator`.

    Checkpoints are written at every `save_steps`-th optimizer step (if the host's arguments have none: at the first
    step that ends with or after an epoch) and after the last step.

    Args:
        accelerator: the one that the loop gets.
        module: the training module, with its pipeline in `pipe`.
        output_path: of checkpoints and logs.
        trained_tensors: the trained weights by their names in the file, sharded or whole.
        export: writes them whole, for use, to the file that it is given; called on the main process only.
        checkpoints_total_limit: how many checkpoints to keep; None keeps all.
        validate: called with the number of steps done, on **every** process, in `untouched_training_state` and without
            gradients, by the module's own call, in which sharded weights are brought together; what it returns on the
            main process is logged.
        validation_steps: optimizer steps between validations; one also precedes the first step of a new run.
        log_steps: optimizer steps between lines on the console; other logs get every step.
        host_options: of the host's ModelLogger, for instance `enable_csv_log`, `enable_tensorboard_log`.

    Raises:
        ValueError: a limit or an interval is less than 1, or exactly one of validate and validation_steps is given.
    """

    def __init__(
        self,
        accelerator: OmniAccelerator,
        module: DiffusionTrainingModule,
        output_path: str | Path,
        *,
        trained_tensors: Callable[[], Mapping[str, Tensor]],
        export: Callable[[Path, Mapping[str, Tensor]], None],
        checkpoints_total_limit: int | None = None,
        validate: Callable[[int], ValidationResult | None] | None = None,
        validation_steps: int | None = None,
        log_steps: int = 1,
        **host_options: Any,
    ) -> None:
        super().__init__(str(output_path), **host_options)
        for name, value in [
            ("checkpoints_total_limit", checkpoints_total_limit),
            ("validation_steps", validation_steps),
            ("log_steps", log_steps),
        ]:
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if (validate is None) != (validation_steps is None):
            raise ValueError("validate and validation_steps go together; give both or neither")
        self.accelerator = accelerator
        self.module = module
        self.trained_tensors = trained_tensors
        self.export = export
        self.checkpoints_total_limit = checkpoints_total_limit
        self.validate = validate
        self.validation_steps = validation_steps
        self.log_steps = log_steps
        self.save_due = False
        self.saved_step = 0
        accelerator.on_begin = self.on_training_begin

    def on_training_begin(self) -> None:
        """Clear away what a crash left, and validate a new run.

        Raises:
            ValueError: the output path holds checkpoints of later steps than the one that this run goes on from.
        """
        self.num_steps = self.saved_step = self.accelerator.steps_done
        later = [path for path in find_checkpoints(self.output_path) if checkpoint_step(path) > self.num_steps]
        if later:
            raise ValueError(
                f"{self.output_path} holds {later[-1].name}, but this run starts at step {self.num_steps}; "
                "resume from the latest checkpoint, choose another --output_path, or remove the later checkpoints"
            )
        if self.accelerator.is_main_process:
            forget_later_rows(Path(self.output_path, "loss.csv"), self.num_steps)
            self.init_loggers()
            for path in Path(self.output_path).glob(".step-*"):
                if _UNFINISHED.fullmatch(path.name):
                    shutil.rmtree(path)
        if self.num_steps == 0:
            self.run_validation()
        self.clock = time.perf_counter()

    def on_step_end(
        self, accelerator: OmniAccelerator, model: torch.nn.Module, save_steps: int | None = None, **_: Any
    ) -> None:
        """The host calls it after every sample; things happen after those that ended an optimizer step."""
        if not accelerator.sync_gradients:
            return
        self.num_steps = accelerator.steps_done
        self.log_step()
        if self.save_due or (save_steps is not None and self.num_steps % save_steps == 0):
            self.save()
        if self.validation_steps is not None and self.num_steps % self.validation_steps == 0:
            self.run_validation()
        self.clock = time.perf_counter()

    def on_epoch_end(self, accelerator: OmniAccelerator, model: torch.nn.Module, epoch_id: int) -> None:
        """The host calls it if there is no `save_steps`."""
        self.save_due = True
        if accelerator.sync_gradients:
            self.save()

    def on_training_end(
        self, accelerator: OmniAccelerator, model: torch.nn.Module, save_steps: int | None = None
    ) -> None:
        """Save the last step, if it is not saved yet, and close the logs."""
        self.save()
        for log in self.loggers:
            log.close()

    def log_step(self) -> None:
        """Write the metrics of the last step; the loss is the mean over all processes."""
        seconds = time.perf_counter() - self.clock
        loss = torch.tensor(self.accelerator.metrics["loss"], dtype=torch.float64, device=self.accelerator.device)
        metrics = self.accelerator.metrics | {
            "loss": float(self.accelerator.reduce(loss, "mean")),
            "seconds_per_step": seconds,
            "data_seconds": self.accelerator.loader.waited,
        }
        self.accelerator.loader.waited = 0.0
        self.write_metrics(metrics)
        if self.accelerator.is_main_process and self.num_steps % self.log_steps == 0:
            logger.info(
                "step %d/%d  loss %.4f  lr %.3g  grad norm %.3g  %.2f s, %.2f of them for data",
                self.num_steps,
                self.accelerator.settings.max_steps,
                *(metrics[name] for name in ("loss", "lr", "grad_norm", "seconds_per_step", "data_seconds")),
            )

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Give metrics of the current step to the host's loggers, which exist on the main process only."""
        for name, value in metrics.items():
            for log in self.loggers:
                log.log(name, value, self.num_steps)

    def write_videos(self, videos: Sequence[Path]) -> None:
        """Show validation videos in TensorBoard (frames in a row) and Weights & Biases (as they are)."""
        for log in self.loggers:
            kind = type(log).__name__
            for path in videos:
                if kind == "TensorBoardLogger":
                    log.writer.add_image(f"validation/{path.stem}", filmstrip(path), self.num_steps, dataformats="HWC")
                elif kind == "WandbLogger":
                    log.wandb.log({f"validation/{path.stem}": log.wandb.Video(str(path))}, step=self.num_steps)

    def save(self) -> None:
        """Write a checkpoint of the last step, unless there is one. Every process must call it.

        Raises:
            OSError: it cannot be written; nothing of it is left, and the older ones are as they were.
        """
        self.save_due = False
        if self.num_steps == self.saved_step:
            return
        accelerator = self.accelerator
        state = accelerator.loop_state(self.module)
        weights = accelerator.whole_weights(self.module, self.trained_tensors)
        partial = begin_checkpoint(self.output_path, self.num_steps)
        try:
            if accelerator.is_main_process:
                partial.mkdir(parents=True)
                self.export(partial / WEIGHTS_FILE, weights)
                write_pickle(partial / STATE_FILE, state)
            accelerator.wait_for_everyone()
            accelerator.write_shards(partial)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                logger.info("saved %s", finish_checkpoint(partial, self.checkpoints_total_limit))
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk it would be in the way of the next one
            raise
        self.saved_step = self.num_steps
        self.accelerator.wait_for_everyone()

    def run_validation(self) -> None:
        """Validate, if asked to. Every process must call it."""
        if self.validate is None:
            return
        with untouched_training_state(self.module.pipe, self.module), torch.no_grad():
            result = self.module(partial(self.validate, self.num_steps))
        self.accelerator.window.clear()  # should the validation have gone through the training module
        if result is not None:
            self.write_metrics(result.metrics)
            self.write_videos(result.videos)
        self.accelerator.wait_for_everyone()
