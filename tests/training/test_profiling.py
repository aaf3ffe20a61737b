"""A profile shows the steps that it is asked for, and they are the same steps."""

import gzip
import json

import pytest
from training_toy import Run, same

from diffsynth_omniavatar.training.profiling import SKIPPED, profiled
from diffsynth_omniavatar.training.settings import LoopSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own


def test_the_trace_has_the_steps_that_were_asked_for(tmp_path):
    settings = LoopSettings(max_steps=6, gradient_accumulation_steps=2)
    plain = Run(tmp_path / "plain", settings, save_steps=6).start()
    with profiled(tmp_path, 2) as on_step:
        run = Run(tmp_path / "run", settings, save_steps=6, options={"on_step": on_step}).start()
    assert same(run.state, plain.state) and run.module.trace == plain.module.trace
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = {event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep")}
    assert names == {f"ProfilerStep#{step}" for step in (SKIPPED, SKIPPED + 1)}
    losses = [event for event in events if event.get("name") == "aten::square"]
    assert len(losses) == 2 * 2  # of two samples in each step
    assert "Self CPU" in (tmp_path / "profile" / "operators.txt").read_text()
