"""What happens between the steps of DiffSynth's training loop: checkpoints, validation, metrics.

A checkpoint is a folder `step-N` of the output path: the trained weights in `model.safetensors`, as the export
writes them for use, and in `loop.pt` all that resuming needs. It is written under another name and renamed when
complete, and only then are older ones removed: what is called `step-N` can always be resumed. The folder `best` is
such a checkpoint too, of the step that a figure of the validations found best. `validation.json` in each says what the
validations up to its step, that step's own included, have shown.
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
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..host import DiffusionTrainingModule, ModelLogger
from ..media.video import filmstrip
from ..system.atomic import flush
from ..system.messages import counted
from ..system.progress import progress_bar
from ..system.tensor_files import write_pickle
from .accelerator import OmniAccelerator
from .best import PREFIX, Goal, Progress
from .loader import rng_state, set_rng_state
from .log_table import StepTable
from .loop_state import STATE_FILE
from .step_samples import StepSamples

WEIGHTS_FILE = "model.safetensors"
COLUMNS = ("loss", "lr", "grad_norm", "seconds_per_step", "data_seconds")
"""What `loss.csv` always has beside the step."""
BEST = "best"
"""The folder of the best checkpoint."""
_CHECKPOINT = re.compile(r"step-(\d+)")
_UNFINISHED = re.compile(rf"\.(step-\d+|{BEST})\.(partial|removed)")

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


def begin_checkpoint(output_path: str | Path, name: str) -> Path:
    """The folder in which a checkpoint, `step-<step>` or `best`, is being written."""
    return Path(output_path, f".{name}.partial")


def finish_checkpoint(partial: Path, keep: int | None) -> Path:
    """Give what was written its name, then remove all but the newest `keep` `step-N`; None keeps all."""
    output_path = partial.parent
    flush(partial)
    folder = output_path / partial.name.removeprefix(".").removesuffix(".partial")
    replaced = [folder.rename(_removed(folder))] if folder.is_dir() else []
    partial.rename(folder)
    flush(output_path)
    replaced += [old.rename(_removed(old)) for old in find_checkpoints(output_path)[: -keep if keep is not None else 0]]
    for old in replaced:
        shutil.rmtree(old)
    return folder


def _removed(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.removed")


def clear_unfinished(output_path: str | Path) -> None:
    """Remove what a crash left of checkpoints; a `best` that was about to be replaced gets its name back."""
    best = Path(output_path, BEST)
    if _removed(best).is_dir() and not best.exists():
        _removed(best).rename(best)
    for path in Path(output_path).glob(".*"):
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)


def refuse_later_checkpoints(output_path: str | Path, step: int) -> None:
    """Raise ValueError if the output path holds checkpoints of later steps than the one that a run goes on from."""
    later = [path for path in find_checkpoints(output_path) if checkpoint_step(path) > step]
    if later:
        raise ValueError(
            f"{output_path} holds {later[-1].name}, but this run starts at step {step}; resume from the latest "
            "checkpoint (--resume latest), choose another --output_path, or remove the later checkpoints"
        )


def refuse_old_best(output_path: str | Path) -> None:
    """Raise ValueError if the output path holds the best checkpoint of an earlier run, where a new one begins."""
    best = Path(output_path, BEST)
    if best.is_dir():
        raise ValueError(
            f"{output_path} holds {BEST}/ of an earlier run, but this run starts at step 0; go on from it "
            f"(--resume {best}), choose another --output_path, or remove it"
        )


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
    """By `validation_<name>`: `validation_loss`, and means over the videos."""
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
        goal: the figure of the validations by which `best` is chosen; None for no such checkpoint.
        patience: end the run after so many validations in a row without a better figure; None for never.
        log_steps: optimizer steps between lines on the console; other logs get every step.
        loss_parts: names of the losses that a loss is made of: columns of `loss.csv`.
        samples: collects the samples of each step; None if nothing is told of them.
        on_step: called after each optimizer step.
        enable_csv_log: write `loss.csv`, a row a step, and `validation.csv`.
        host_options: of the host's ModelLogger, for instance `enable_tensorboard_log`.

    Raises:
        ValueError: a limit or an interval is less than 1, exactly one of validate and validation_steps is given, or
            patience without a goal.
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
        goal: Goal | None = None,
        patience: int | None = None,
        log_steps: int = 1,
        loss_parts: Sequence[str] = (),
        samples: StepSamples | None = None,
        on_step: Callable[[], None] | None = None,
        enable_csv_log: bool = False,
        **host_options: Any,
    ) -> None:
        super().__init__(str(output_path), **host_options)
        for name, value in [
            ("checkpoints_total_limit", checkpoints_total_limit),
            ("validation_steps", validation_steps),
            ("patience", patience),
            ("log_steps", log_steps),
        ]:
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        if (validate is None) != (validation_steps is None):
            raise ValueError("validate and validation_steps go together; give both or neither")
        if patience is not None and goal is None:
            raise ValueError("patience needs a goal")
        self.accelerator = accelerator
        self.module = module
        self.trained_tensors = trained_tensors
        self.export = export
        self.checkpoints_total_limit = checkpoints_total_limit
        self.validate = validate
        self.validation_steps = validation_steps
        self.goal = goal
        self.patience = patience
        self.progress = Progress()
        self.log_steps = log_steps
        self.loss_parts = loss_parts
        self.samples = StepSamples() if samples is None else samples
        self.on_step = on_step
        self.writes_tables = enable_csv_log
        self.tables: dict[str, StepTable] = {}
        self.bar = progress_bar("steps", show=accelerator.is_main_process, by_itself=False)  # the loader forks
        self.save_due = False
        self.saved_step = 0
        accelerator.on_begin = self.on_training_begin

    def on_training_begin(self) -> None:
        """Clear away what a crash left; validate a new run, and one that was killed before it had validated its step.

        Raises:
            ValueError: the output path holds checkpoints of later steps than the one that this run goes on from.
        """
        self.num_steps = self.saved_step = self.accelerator.steps_done
        refuse_later_checkpoints(self.output_path, self.num_steps)
        resume = self.accelerator.settings.resume
        if resume is not None:
            self.progress = Progress.read(resume)
        is_due = self.is_validation_due() and self.progress.validated != self.num_steps
        if self.accelerator.is_main_process:
            if self.writes_tables:
                self.tables["loss"] = self.table(
                    "loss", self.num_steps, *COLUMNS, *self.loss_parts, *self.samples.columns
                )
                if self.validate is not None:
                    self.tables["validation"] = self.table("validation", self.num_steps - is_due)
            self.init_loggers()
            clear_unfinished(self.output_path)
        if is_due:
            self.run_validation()
        elif self.is_patience_over():
            self.stop()
        total = self.accelerator.settings.max_steps
        self.task = self.bar.add_task("training", total=total, completed=self.num_steps)
        self.clock = self.begun = time.perf_counter()
        self.begun_at = self.num_steps

    def table(self, name: str, step: int, *columns: str) -> StepTable:
        """A table in the output path, with the rows up to a step."""
        return StepTable(Path(self.output_path, f"{name}.csv"), columns, step)

    def is_validation_due(self) -> bool:
        """Whether a validation belongs to the last step."""
        return self.validation_steps is not None and self.num_steps % self.validation_steps == 0

    def on_step_end(
        self, accelerator: OmniAccelerator, model: torch.nn.Module, save_steps: int | None = None, **_: Any
    ) -> None:
        """The host calls it after every sample; things happen after those that ended an optimizer step."""
        if not accelerator.sync_gradients:
            return
        self.num_steps = accelerator.steps_done
        self.bar.advance(self.task)
        self.log_step()
        self.bar.refresh()
        if self.save_due or (save_steps is not None and self.num_steps % save_steps == 0):
            self.save()
        if self.is_validation_due():
            self.run_validation()
        if self.on_step is not None:
            self.on_step()
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
        for log in (*self.loggers, *self.tables.values()):
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
        work, by_level = self.samples.finish(self.num_steps, self.accelerator)
        self.write_metrics({**metrics, **by_level}, "loss")
        if self.accelerator.is_main_process and self.num_steps % self.log_steps == 0:
            logger.info(
                "step %d/%d  loss %.4f  lr %.3g  grad norm %.3g  %.2f s, %.2f of them for data%s%s",
                self.num_steps,
                self.accelerator.settings.max_steps,
                *(metrics[name] for name in ("loss", "lr", "grad_norm", "seconds_per_step", "data_seconds")),
                work.per_second(seconds),
                self.time_left(),
            )

    def time_left(self) -> str:
        """Words for the console: when the run ends, by its mean pace without its first step, which may compile."""
        now, done = time.perf_counter(), self.num_steps - self.begun_at
        if done == 1:
            self.begun = now
        left = self.accelerator.settings.max_steps - self.num_steps
        if done < 2 or not left:
            return ""
        return f"  {timedelta(seconds=round(left * (now - self.begun) / (done - 1)))} left"

    def write_metrics(self, metrics: Mapping[str, float], table: str) -> None:
        """Give metrics of the current step to the logs, which exist on the main process only."""
        if table in self.tables:
            self.tables[table].write(self.num_steps, metrics)
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
        self.write_checkpoint(f"step-{self.num_steps}")
        self.saved_step = self.num_steps

    def write_checkpoint(self, name: str) -> None:
        """Write a checkpoint of the last step into a folder of this name. Every process must call it.

        Raises:
            OSError: it cannot be written; nothing of it is left, and the older ones are as they were.
        """
        accelerator = self.accelerator
        partial = begin_checkpoint(self.output_path, name)
        try:
            if accelerator.is_main_process:
                partial.mkdir(parents=True)
            with accelerator.averaged(self.module):
                weights = accelerator.whole_weights(self.module, self.trained_tensors)
                if accelerator.is_main_process:  # within, for on a CPU they are the module's own
                    self.export(partial / WEIGHTS_FILE, weights)
            state = accelerator.loop_state(self.module)
            if accelerator.is_main_process:
                write_pickle(partial / STATE_FILE, state)
                if self.validate is not None:
                    self.progress.write(partial)
            accelerator.wait_for_everyone()
            accelerator.write_shards(partial)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                logger.info("saved %s", finish_checkpoint(partial, self.checkpoints_total_limit))
        finally:
            if accelerator.is_main_process:  # on a full disk what is there of it would be in the way
                shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()

    def run_validation(self) -> None:
        """Validate, if asked to, and keep the best step. Every process must call it."""
        if self.validate is None:
            return
        averaged = self.accelerator.averaged(self.module)
        with averaged, untouched_training_state(self.module.pipe, self.module), torch.no_grad():
            result = self.module(partial(self.validate, self.num_steps))
        self.accelerator.window.clear()  # should the validation have gone through the training module
        (figures,) = broadcast_object_list([None if result is None else result.metrics])  # one judgement for all
        is_best = self.progress.judge(self.num_steps, figures, self.goal) if figures is not None else False
        if result is not None:
            self.write_metrics(result.metrics, "validation")
            self.write_videos(result.videos)
            self.tell_validation(result.metrics)
        if is_best:
            self.write_checkpoint(BEST)
        folder = Path(self.output_path, f"step-{self.num_steps}")
        if self.accelerator.is_main_process and folder.is_dir():  # saved before, should validating fail
            self.progress.write(folder)
        self.accelerator.wait_for_everyone()
        if self.is_patience_over():
            self.stop()

    def tell_validation(self, metrics: Mapping[str, float]) -> None:
        """A line on the console."""
        if self.accelerator.is_main_process:
            told = "  ".join(f"{name.removeprefix(PREFIX)} {value:.5g}" for name, value in metrics.items())
            best = self.progress
            if best.step is not None and best.figure is not None:
                told += f"  (best {best.figure.removeprefix(PREFIX)} {best.value:.5g} at step {best.step})"
            logger.info("validation at step %d: %s", self.num_steps, told)

    def is_patience_over(self) -> bool:
        """Whether there were too many validations without a better figure."""
        return self.patience is not None and self.progress.worse >= self.patience

    def stop(self) -> None:
        """End the run after the last step, and say why. Every process must call it."""
        self.accelerator.stop()
        if self.accelerator.is_main_process:
            best = self.progress
            logger.info(
                "stops at step %d of %d: %s has been no better than %.5g, of step %s, in %s",
                self.num_steps,
                self.accelerator.settings.max_steps,
                best.figure,
                best.value,
                best.step,
                counted(best.worse, "validation"),
            )
