"""A run is shown as it stands, whatever its files say."""

import math
from xml.etree import ElementTree

import pytest

from diffsynth_omniavatar.app.page.training_runs import Record, RunState, TrainingRun
from diffsynth_omniavatar.app.page.training_view import POINTS, clock, loss_curve, status, validation_curve

pytestmark = pytest.mark.one_host("nothing of DiffSynth")


@pytest.fixture
def run(tmp_path):
    Record(command=("a",), max_steps=20, pid=2**22 + 1, started=1.0, log_start=0).write(tmp_path)
    return TrainingRun(tmp_path)


def rows(count, **more):
    return [{"step": step, "loss": 1 / step, "seconds_per_step": 2.0, **more} for step in range(1, count + 1)]


def test_the_state_is_told_with_step_and_time_left(run):
    assert "the model is being loaded" in status(run, RunState("running"), [])
    told = status(run, RunState("running"), rows(5))
    assert "step 5 of 20, 2 s a step, about 30 s left" in told and 'value="5"' in told
    assert "step 5 of 20." in status(run, RunState("stopped"), rows(5))
    told = status(run, RunState("failed", "<img src=x onerror=alert(1)> ${1}"), [])
    assert "&lt;img" in told and "<img" not in told and "${" not in told
    assert [clock(seconds) for seconds in (40, 600, 3 * 3600)] == ["40 s", "10 min", "3.0 h"]


def test_a_long_curve_is_thinned_to_means():
    root = ElementTree.fromstring(loss_curve(rows(7 * POINTS)))
    curves = [path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("d").count("L") > 9]
    assert len(curves) == 2 and all(curve.count("L") < POINTS for curve in curves)
    assert "up to step" in root.get("aria-label")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1e300])
def test_what_no_plot_can_show_is_left_out(value):
    damaged = [*rows(30), {"step": 31, "loss": value}]
    assert ElementTree.fromstring(loss_curve(damaged)).tag == "div"
    assert loss_curve([{"step": 1, "loss": value}]) == "" == loss_curve([]) == loss_curve([{"step": 3}])
    assert validation_curve([{"step": 4, "validation_loss": value}]) == ""
    assert "<circle" in validation_curve([{"step": 4, "validation_loss": 0.3}])
