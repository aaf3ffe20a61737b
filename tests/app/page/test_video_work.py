"""A video in the queue tells how far it is, ends at the step after it was cancelled, and calls files as people do."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffsynth_omniavatar.app.page.video_work import Order, VideoWork
from diffsynth_omniavatar.app.page.work_queue import outcome

pytestmark = pytest.mark.one_host("the same calls with both")

PORTRAIT = Path("/srv/page/videos/1/portrait.png")
STEPS = [SimpleNamespace(chunk=chunk, chunks=2, step=step, steps=2) for chunk in (1, 2) for step in (1, 2)]


class Shelf:
    """Has the model `there` and lends it."""

    def loaded(self):
        return "there"

    @contextlib.contextmanager
    def pipeline(self, name, loras):
        yield name, loras


def work(make, model="there"):
    order = Order(
        tab="talk", title="a", model=model, loras=((Path("a.pt"), 0.5),), seed=1, command="", notes=(), form={},
        files={PORTRAIT: "the portrait"},
    )  # fmt: skip
    return VideoWork("", SimpleNamespace(make=make, out=Path("/nowhere.mp4")), order, Shelf())


def test_each_step_is_told():
    seen = []

    def make(pipe, show_progress, on_preview):
        assert pipe == ("there", ((Path("a.pt"), 0.5),)) and one.stage == "Reading the speech"
        for step in STEPS:
            on_preview(step)
            seen.append((one.stage, one.part_done))
            assert one.preview is step
        return "made"

    one = work(make)
    assert outcome(one) == "done" and one.made == "made"
    assert seen == [
        ("Chunk 1 of 2, step 2 of 2", 0.25),
        ("Chunk 1 of 2, turning latents into pictures", 0.5),
        ("Chunk 2 of 2, step 2 of 2", 0.75),
        ("Chunk 2 of 2, turning latents into pictures", 1.0),
    ]


def test_what_is_cancelled_ends_after_its_step():
    def make(pipe, show_progress, on_preview):
        on_preview(STEPS[0])
        one.stop()
        on_preview(STEPS[1])
        raise AssertionError("it goes on")

    one = work(make)
    assert outcome(one) == "stopped" and one.steps_done == 2 and one.video is None


def test_a_fault_calls_files_as_people_do():
    def make(pipe, show_progress, on_preview):
        raise FileNotFoundError(f"{PORTRAIT}: cannot be read")

    one = work(make, model="another")
    assert outcome(one) == "failed" and one.fault == "The portrait cannot be read"
    assert one.stage == "Reading the speech"
