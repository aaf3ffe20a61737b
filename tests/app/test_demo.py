"""The demo goes its whole way, twice in one folder; its page is complete by itself; its person is new to the model."""

import html
import math
import re
import shlex
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from stand_in import write_nano_like_family

from diffsynth_omniavatar.app import cli, demo, demo_dub, demo_page
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.nano.measure import measure_mouth
from diffsynth_omniavatar.nano.speaker.clips import draw_clip
from diffsynth_omniavatar.nano.speaker.identity import draw_identity
from diffsynth_omniavatar.nano.speaker.splits import belongs
from diffsynth_omniavatar.training import run

pytestmark = pytest.mark.one_host("the page of the small model; its commands are tested on both hosts elsewhere")

SMALL = {"FRAMES": 9, "TRAIN_CLIPS": 2, "TRAIN_FRAMES": 17, "SAMPLE_FRAMES": 17, "HELD_OUT_CLIPS": 1, "BATCH": 1}
FILM_FRAMES = 12


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
        patch.setattr(demo_dub, "FRAMES", FILM_FRAMES)
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
        if tag not in ("meta", "rect", "path", "input"):
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
    assert not page.open and page.videos == ["before.mp4", "after.mp4", "drawn.mp4", "film.mp4", "film_dubbed.mp4"]
    for name, frames in zip(page.videos, [*[SMALL["FRAMES"]] * 3, *[FILM_FRAMES] * 2], strict=True):
        info = probe_video(path.parent / name)
        assert info.has_sound and info.frames == frames
    assert text.count("<svg") == 5 and text.count("<canvas") == 5 and str(path.parent) not in text
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    *lines, losses = [page.cells[start + 1 : start + 4] for start in range(0, len(page.cells), 4)]
    assert len(lines) == 4 and all(math.isfinite(float(cell)) for line in lines for cell in line)
    assert len(losses) == 2 and losses[0] != losses[1]  # training changed the model
    openness = lines[0]
    assert f"openness with the true one from {openness[0]} to {openness[1]}," in text


@pytest.mark.slow
def test_training_is_by_the_launcher_and_left_its_checkpoint(made):
    path, (precompute, train) = made
    assert train[:2] == ["accelerate", "launch"] and precompute[1] == "precompute"
    losses = demo_page.training_losses(path.parent / "finetune" / "run" / "loss.csv")
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    steps = sorted(folder.name for folder in (path.parent / "finetune" / "run").glob("step-*"))
    assert steps[-1] == "step-3"  # nothing of the earlier run


@pytest.mark.slow
def test_the_commands_on_the_page_do_the_same_in_its_folder_wherever_that_is(made, tmp_path, monkeypatch):
    path, run = made
    text = re.search(r"<pre>(.*)</pre>", path.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    before, *middle, after, dub = [shlex.split(line) for line in html.unescape(text).split("\n\n")]
    *train, folder = middle.pop()
    wanted = [[word.removeprefix(f"{path.parent}/") for word in command] for command in run]
    assert [*middle, [*train, "finetune/run"]] == wanted and folder == "finetune/again"
    moved = shutil.copytree(path.parent, tmp_path / "moved")
    monkeypatch.chdir(moved)
    for name, command in {"before.mp4": before, "after.mp4": after, "film_dubbed.mp4": dub}.items():
        (moved / name).unlink()
        assert cli.main([*command[1:], "--no-show_progress", "--device", "cpu"]) == 0
        assert (moved / name).read_bytes() == (path.parent / name).read_bytes()


def test_the_newcomer_is_unlike_all_in_training_and_its_mouth_can_be_read():
    clip = draw_clip(0, 25, split="train", identity=demo.NEWCOMER)
    openness, width = measure_mouth(clip.frames)
    assert demo.correlation(openness, clip.openness) > 0.98 and demo.correlation(width, clip.width) > 0.98
    assert belongs(demo.NEWCOMER.look, "evaluation")
    drawn = [draw_identity(np.random.default_rng(seed), split="train") for seed in range(300)]
    new = ("face_width", "jaw_width", "eye_distance", "eye_size", "brow_height", "brow_tilt", "nose_length", "fringe")
    for name in (*new, "mouth_drop"):
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
