"""`loss.csv`: a row a step, whatever broke off before."""

import pytest
from training_toy import Run

from diffsynth_omniavatar.training.log_table import StepTable, read_table
from diffsynth_omniavatar.training.settings import LoopSettings


def test_a_row_a_step_under_a_header_that_stands_from_the_start(tmp_path):
    table = StepTable(tmp_path / "loss.csv", ("loss", "lr"), 0)
    assert (tmp_path / "loss.csv").read_text() == "step,loss,lr\n"
    table.write(1, {"lr": 1e-5, "loss": 0.1})
    table.write(2, {"loss": 1 / 3})
    table.write(3, {"loss": 2.0, "sync": 0.5})
    table.close()
    assert (tmp_path / "loss.csv").read_text() == (
        "step,loss,lr,sync\n1,0.1,1e-05,\n2,0.3333333333333333,,\n3,2.0,,0.5\n"
    )


def test_a_run_goes_on_over_what_a_crash_left(tmp_path):
    path = tmp_path / "loss.csv"
    path.write_text("step,loss,lr\n1,0.5,1\n\n2,0.25\nrubbish\n2,0.25,1\n3,0.125,1\n4,0.06")
    table = StepTable(path, ("loss", "lr"), 2)
    table.write(3, {"loss": 7.0, "lr": 1.0})
    table.close()
    assert read_table(path) == [
        {"step": 1, "loss": 0.5, "lr": 1},
        {"step": 2, "loss": 0.25, "lr": 1},
        {"step": 3, "loss": 7.0, "lr": 1},
    ]


def test_a_table_of_another_kind_is_left_alone(tmp_path):
    path = tmp_path / "loss.csv"
    for content in ("step,key,value\n1,loss,0.5\n", "name,age\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"loss\.csv has the columns .*move it away"):
            StepTable(path, ("loss",), 1)
        assert path.read_text() == content


def test_the_bar_counts_the_steps_of_the_whole_run(tmp_path):
    settings = LoopSettings(max_steps=6, gradient_accumulation_steps=2)
    run = Run(tmp_path / "run", settings, save_steps=4).start()
    resumed = run.resumed(4, tmp_path / "resumed")
    for logger in (run.logger, resumed.logger):
        (task,) = logger.bar.tasks
        assert (task.total, task.completed) == (6, 6)
    assert [row["step"] for row in read_table(tmp_path / "resumed" / "loss.csv")] == [5, 6]
