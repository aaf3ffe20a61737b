"""The best step, and the end of a run that gets no better; on the toy model."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load_file
from training_toy import Run, same

from diffsynth_omniavatar.training import callbacks
from diffsynth_omniavatar.training.best import Goal, Progress
from diffsynth_omniavatar.training.callbacks import TrainingLogger, ValidationResult, find_checkpoints
from diffsynth_omniavatar.training.log_table import read_table
from diffsynth_omniavatar.training.loop_state import load_state
from diffsynth_omniavatar.training.settings import LoopSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own
LOSS = Goal.parse("validation_loss")


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("validation_loss", Goal("validation_loss", False)),
        ("validation_sync_c", Goal("validation_sync_c", True)),
        ("validation_lmd", Goal("validation_lmd", False)),
        ("validation_mine:max", Goal("validation_mine", True)),
        ("validation_mine:min", Goal("validation_mine", False)),
    ],
)
def test_goals(text, goal):
    assert Goal.parse(text) == goal


@pytest.mark.parametrize("text", ["sync_c", "validation_", "validation_mine", "validation_mine:up", "loss:min", ""])
def test_goals_that_cannot_be(text):
    with pytest.raises(ValueError, match="validation_"):
        Goal.parse(text)


def test_an_absent_figure_is_no_better_and_counts_only_after_a_best_one():
    progress = Progress()
    assert not progress.judge(1, {}, LOSS) and progress.worse == 0
    assert not progress.judge(2, {"validation_loss": math.nan}, LOSS) and progress.worse == 0
    assert progress.judge(3, {"validation_loss": 2.0}, LOSS) and not progress.judge(4, {}, LOSS)
    assert not progress.judge(5, {"validation_loss": 2.0}, LOSS)
    assert (progress.step, progress.value, progress.worse, progress.validated) == (3, 2.0, 2, 5)


def scripted(folder: Any, values: list[float], steps: int = 8, **options: Any) -> Run:
    """A run whose validation after step n finds values[n]."""
    options = {"goal": LOSS, "validation_steps": 1, "checkpoints_total_limit": 2} | options
    options["validate"] = lambda step: ValidationResult({"validation_loss": values[step]}, [])
    return Run(folder, LoopSettings(max_steps=steps), options=options)


def test_patience_ends_a_run_at_its_step_and_the_best_stays(tmp_path, caplog):
    values = [9.0, 5.0, 3.0, 4.0, 3.0, 6.0, 2.0, 1.0, 0.0]
    with caplog.at_level("INFO"):
        run = scripted(tmp_path, values, patience=3).start()
    assert run.accelerator.steps_done == 5 == len(run.module.trace)  # 4, 3 and 6 are no better than 3
    assert "stops at step 5 of 8: validation_loss has been no better than 3, of step 2, in 3 validations" in caplog.text
    assert "validation at step 4: loss 3  (best loss 3 at step 2)" in caplog.text
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-4", "step-5"]
    assert load_state(tmp_path / "best")["step"] == 2 and Progress.read(tmp_path / "best").value == 3.0
    again = scripted(tmp_path, values, patience=3)
    settings = replace(again.settings, resume=tmp_path / "step-5")
    again = replace(again, settings=settings).start()  # it is at its end already
    assert again.accelerator.steps_done == 5 and again.module.trace == []
    assert scripted(tmp_path / "patient", values, patience=4).start().accelerator.steps_done == 8


def validated(folder: Any, **changes: Any) -> Run:
    """A run whose figure is one of its weights, which rises and falls."""
    settings = LoopSettings(max_steps=6, gradient_accumulation_steps=2)

    def validate(step: int) -> ValidationResult:
        return ValidationResult({"validation_loss": run.module.pipe.dit[0].bias[0].item()}, [])

    run = replace(Run(folder, settings), **changes)
    run.options = {"validate": validate, "validation_steps": 2, "goal": LOSS}
    return run


def tables(run: Run) -> list[Any]:
    return [read_table(run.folder / "validation.csv"), run.metric("loss")]


def same_best(left: Run, right: Run) -> bool:
    states = [load_state(run.folder / "best") for run in (left, right)]
    weights = [load_file(run.folder / "best" / "model.safetensors") for run in (left, right)]
    return (
        same(*states) and same(*weights) and Progress.read(left.folder / "best") == Progress.read(right.folder / "best")
    )


@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_run_finds_the_same_best_step(tmp_path, step):
    whole = validated(tmp_path / "whole").start()
    cut = validated(tmp_path / "cut", settings=replace(whole.settings, max_steps=step)).start()
    settings = replace(whole.settings, resume=cut.folder / f"step-{step}")
    resumed = validated(cut.folder, settings=settings).start()
    assert tables(resumed) == tables(whole) and same(resumed.state, whole.state)
    assert same_best(resumed, whole)
    ends = [Progress.read(run.folder / "step-6") for run in (resumed, whole)]
    assert ends[0] == ends[1] and ends[0].validated == 6


@pytest.mark.parametrize("place", ["run_validation", "tell_validation"])
def test_a_validation_that_was_killed_is_made_after_resuming(tmp_path, monkeypatch, place):
    """Killed before it had a result, and when its row was in the table."""
    whole = validated(tmp_path / "whole").start()
    killed = validated(tmp_path / "killed")
    original = getattr(TrainingLogger, place)

    def dying(logger: TrainingLogger, *given: Any) -> None:
        if logger.num_steps == 4:
            raise KeyboardInterrupt
        original(logger, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingLogger, place, dying)
        killed.start()
    resumed = validated(killed.folder, settings=replace(whole.settings, resume=killed.folder / "step-4")).start()
    assert tables(resumed) == tables(whole) and same_best(resumed, whole)


def test_a_best_checkpoint_that_was_being_replaced_gets_its_name_back(tmp_path):
    run = scripted(tmp_path, [3.0, 2.0, 1.0], steps=2).start()
    (tmp_path / "best").rename(tmp_path / ".best.removed")
    (tmp_path / ".best.partial").mkdir()
    callbacks.clear_unfinished(tmp_path)
    assert load_state(tmp_path / "best")["step"] == 2 and not [*tmp_path.glob(".best*")]
    assert json.loads((tmp_path / "best" / "validation.json").read_text())["value"] == 1.0
    (tmp_path / "best" / "validation.json").write_text('{"of": "another"}')
    with pytest.raises(ValueError, match=r"best/validation\.json is not what training writes"):
        Progress.read(run.folder / "best")
