"""The demo goes its whole way, twice in one folder; its page is complete by itself; its person is new to the model."""

import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from stand_in import write_nano_like_family

from diffsynth_omniavatar.app import cli, demo, demo_page
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.nano.measure import measure_mouth
from diffsynth_omniavatar.nano.speaker.clips import draw_clip
from diffsynth_omniavatar.nano.speaker.identity import draw_identity
from diffsynth_omniavatar.training import run

SMALL = {"FRAMES": 12, "TRAIN_CLIPS": 2, "TRAIN_FRAMES": 17, "SAMPLE_FRAMES": 17, "HELD_OUT_CLIPS": 1, "BATCH": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo's folder after a run that left things behind, and a whole one; its commands run in this process."""
    folder = tmp_path_factory.mktemp("demo")
    family = write_nano_like_family(folder / "family")
    commands = []

    def run_here(command):
        commands.append(command)
        if command[0] == "omniavatar":
            assert cli.main(command[1:]) == 0
        else:
            launch = launch_command_parser().parse_args(command[2:])
            assert launch.module and launch.training_script == "diffsynth_omniavatar.train"
            assert run.main(launch.training_script_args) == 0

    left = folder / "out" / "finetune" / "run" / "step-900" / "model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of an earlier run that was stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_run", run_here)
        for name, value in SMALL.items():
            patch.setattr(demo, name, value)
        page = demo.run_demo(folder / "out", family, steps=1, train_steps=3)
    return page, commands


class Page(HTMLParser):
    """Tags that are open at the end, videos, table cells, and addresses outside."""

    def __init__(self, text):
        super().__init__()
        self.open, self.videos, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "video":
            self.videos.append(dict(attrs)["src"])
        if tag not in ("meta", "rect", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.slow
def test_the_page_shows_videos_with_sound_and_the_figures(made):
    path, _ = made
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and page.videos == ["known.mp4", "before.mp4", "after.mp4", "drawn.mp4"]
    for name in page.videos:
        info = probe_video(path.parent / name)
        assert info.has_sound and info.frames == SMALL["FRAMES"]
    assert text.count("<svg") == 3
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    numbers = [float(cell) for index, cell in enumerate(page.cells) if index % 3]
    assert len(numbers) == 8 and all(map(math.isfinite, numbers))
    assert numbers[0] != numbers[1]  # training changed the model


@pytest.mark.slow
def test_training_is_by_the_launcher_and_left_its_checkpoint(made):
    path, (precompute, train) = made
    assert train[:2] == ["accelerate", "launch"] and precompute[1] == "precompute"
    losses = demo_page.training_losses(path.parent / "finetune" / "run" / "loss.csv")
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    steps = sorted(folder.name for folder in (path.parent / "finetune" / "run").glob("step-*"))
    assert steps[-1] == "step-3"  # nothing of the earlier run


@pytest.mark.slow
def test_the_commands_on_the_page_are_understood_and_work(made, tmp_path):
    path, _ = made
    text = re.search(r"<pre>(.*)</pre>", path.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    assert "accelerate launch" in text and "omniavatar generate" in text
    family = path.parent.parent / "family"
    again = demo.Demo(out=path.parent, family=family, sampling=demo.Sampling(steps=1), train_steps=3)
    assert cli.main([*again.generate_command()[1:], "--no-show_progress", "--device", "cpu"]) == 0
    assert (path.parent / "again.mp4").read_bytes() == (path.parent / "after.mp4").read_bytes()


def test_the_newcomer_is_unlike_all_in_training_and_its_mouth_can_be_read():
    clip = draw_clip(0, 25, split="train", identity=demo.NEWCOMER)
    openness, width = measure_mouth(clip.frames)
    assert demo.correlation(openness, clip.openness) > 0.98 and demo.correlation(width, clip.width) > 0.98
    drawn = [draw_identity(np.random.default_rng(seed), split="train") for seed in range(300)]
    for name in ("face_width", "jaw_width", "eye_distance", "eye_size", "brow_height", "brow_tilt", "fringe"):
        sizes = [getattr(person, name) for person in drawn]
        assert not min(sizes) <= getattr(demo.NEWCOMER, name) <= max(sizes), name


def test_missing_weights_and_failing_commands_are_told(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"has no omniavatar.model\.safetensors: give --family"):
        demo.run_demo(tmp_path / "out", tmp_path)
    monkeypatch.setattr(demo.sys, "executable", shutil.which("false"))
    with pytest.raises(ChildProcessError, match="`omniavatar precompute` ended with code 1; its output says why"):
        demo._run(["omniavatar", "precompute"])


def test_running_mean():
    mean = demo_page.running_mean
    assert mean([1, 2, 3, 5], 2)[1:] == [1.5, 2.5, 4] and math.isnan(mean([1], 2)[0])
