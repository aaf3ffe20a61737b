"""What `omniavatar evaluate --checkpoints` tells of figures over steps, and what it refuses."""

import math

import pytest

from diffsynth_omniavatar.app import evaluate_checkpoints
from diffsynth_omniavatar.app.cli import main

MEASURED = {
    10: {"validation_loss": 0.5, "validation_sync_c": 2.0, "validation_mouth_openness": 0.2, "validation_seconds": 1.0},
    20: {"validation_loss": 0.3, "validation_sync_c": 4.0, "validation_mouth_openness": 0.3, "validation_seconds": 1.0},
    30: {"validation_loss": 0.3, "validation_mouth_openness": 0.4, "validation_seconds": 1.0},
}


def test_the_best_step_is_that_of_the_better_end():
    best = {name: evaluate_checkpoints.best_step(MEASURED, name) for name in MEASURED[10]}
    assert best["validation_loss"] == best["validation_sync_c"] == 20 and best["validation_mouth_openness"] is None


def test_the_table_and_the_page(tmp_path, capsys):
    evaluate_checkpoints.print_table(MEASURED)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0] == ["validation_loss", "0.5", "0.3", "0.3", "20"]
    assert rows[1] == ["sync_c", "2", str(math.nan), "4", "20"] and rows[2] == ["mouth_openness", "0.2", "0.4"]
    page = evaluate_checkpoints.report(MEASURED, tmp_path / "<run>")
    assert page.count("<svg") == 3 and "&lt;run&gt;" in page and "best at step 20" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoints", "{folder}"], "has no step-N with config.yaml beside it"),
        (["--checkpoints", "{folder}", "--nano"], "or --checkpoints RUN, or --nano"),
        (["a.mp4", "--validation_data", "x"], "belong to --checkpoints RUN"),
    ],
)
def test_faults_are_told(tmp_path, capsys, flags, message):
    assert main(["evaluate", *(flag.format(folder=tmp_path) for flag in flags), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
