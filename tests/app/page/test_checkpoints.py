"""Checkpoints that Compare offers: of models, of trainings, and others that the page may read."""

import shutil

import pytest

from diffsynth_omniavatar.app.cli import parse
from diffsynth_omniavatar.app.page.checkpoints import chosen_checkpoint, offered_checkpoints
from diffsynth_omniavatar.app.page.faults import FieldFaults
from diffsynth_omniavatar.app.page.pair import order_pair
from diffsynth_omniavatar.app.page.readable import Readable
from diffsynth_omniavatar.app.page.shelf import Shelf
from diffsynth_omniavatar.app.page.state import PageApp
from diffsynth_omniavatar.app.page.training_runs import Record, TrainingRuns
from diffsynth_omniavatar.model.files import NANO_I2V, NANO_V2V
from diffsynth_omniavatar.nano.family import write_random_family

pytestmark = pytest.mark.one_host("headers of files alone")


@pytest.fixture
def runs(tmp_path):
    run = tmp_path / "runs" / "a run"
    for name, file in (("step-4", NANO_I2V), ("step-20", NANO_I2V), ("best", NANO_V2V)):
        (run / name).mkdir(parents=True)
        shutil.copyfile(file, run / name / "model.safetensors")
    Record(command=("a",), max_steps=20, pid=2**22 + 1, started=1.0, log_start=0).write(run)
    return TrainingRuns(tmp_path / "runs")


def test_what_is_offered_can_be_chosen(runs, tmp_path):
    shelf, readable = Shelf(parse(["page"])), Readable([tmp_path / "runs"])
    assert offered_checkpoints(shelf, runs) == ["nano", "a run/step-20", "a run/step-4", "a run/best"]
    assert chosen_checkpoint("nano", shelf, runs, readable) is shelf.models["nano"]
    model = chosen_checkpoint("a run/step-4", shelf, runs, readable)
    assert shelf.find(model.name) is model and not model.dubs
    assert model.flags == {"model": "nano", "models_folder": None, "omniavatar": str(runs.root / "a run" / "step-4")}
    best = chosen_checkpoint("a run/best", shelf, runs, readable)
    assert best.name.startswith("a run/best of ") and best.dubs
    path = str(runs.root / "a run" / "step-20" / "model.safetensors")
    assert chosen_checkpoint(path, shelf, runs, readable).name == path
    shelf.look()
    assert shelf.find(path) is not None and path not in shelf.models


def test_what_cannot_be_compared_is_told(runs, tmp_path):
    shelf, readable = Shelf(parse(["page"])), Readable([tmp_path / "runs", tmp_path / "data"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.pt").write_bytes(b"no weights")
    write_random_family(tmp_path / "data" / "tiny")
    for text, told in (
        ("", "choose a checkpoint"),
        ("14B", "not in the folders"),
        ("a run/step-5", "not in the folders"),
        ("a run/../../x", "not in the folders"),
        (str(NANO_I2V), "not in the folders"),
        (str(tmp_path / "data" / "bad.pt"), "bad.pt"),
        (str(tmp_path / "data" / "tiny" / "omniavatar"), "fits no model that is there"),
    ):
        with pytest.raises((ValueError, OSError), match=told):
            chosen_checkpoint(text, shelf, runs, readable)


@pytest.mark.parametrize(
    ("a", "b", "fields"),
    [
        ("nano", "nano", {"checkpoint_b": "another one than A"}),
        ("nano-v2v", "", {"checkpoint_a": "for dubbing", "checkpoint_b": "Choose a checkpoint."}),
        ("nano", "a run/step-4", {"image": "Nothing here yet", "audio": "Nothing here yet"}),
    ],
)
def test_a_fault_is_told_at_its_field(runs, tmp_path, a, b, fields):
    app = PageApp.open(parse(["page"]), tmp_path)
    try:
        given = {"checkpoint_a": a, "checkpoint_b": b, "image": None, "audio": None, "prompt": "a", "preset": "draft"}
        with pytest.raises(FieldFaults) as caught:
            order_pair(app, "", given, runs, Readable(app.readable_folders))
        assert caught.value.faults.keys() == fields.keys()
        assert all(told in caught.value.faults[name] for name, told in fields.items())
        assert app.jobs.of("") == []
    finally:
        app.close()
