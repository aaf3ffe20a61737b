"""Checkpoints that Talk, Dub and Compare offer: of models, of trainings, and others that the page may read."""

import os
import shlex
import shutil

import pytest

from diffsynth_omniavatar.app.cli import parse
from diffsynth_omniavatar.app.page.checkpoints import chosen_checkpoint, offered_checkpoints
from diffsynth_omniavatar.app.page.examples import talk_example
from diffsynth_omniavatar.app.page.faults import FieldFaults
from diffsynth_omniavatar.app.page.orders import chosen_model
from diffsynth_omniavatar.app.page.pair import order_pair
from diffsynth_omniavatar.app.page.state import PageApp
from diffsynth_omniavatar.app.page.talk import order_talk
from diffsynth_omniavatar.app.page.training_runs import Record
from diffsynth_omniavatar.app.page.work_queue import QueueFull, Work
from diffsynth_omniavatar.model.files import NANO_I2V, NANO_V2V
from diffsynth_omniavatar.nano.family import write_random_family

pytestmark = pytest.mark.one_host("headers of files alone")


def write_run(run):
    for name, file in (("step-4", NANO_I2V), ("step-20", NANO_I2V), ("best", NANO_V2V)):
        (run / name).mkdir(parents=True)
        shutil.copyfile(file, run / name / "model.safetensors")


@pytest.fixture
def app(tmp_path):
    """A page with a run of its own, and in --data one of the command line; its jobs are not done."""
    write_run(tmp_path / "page" / "runs" / "a run")
    Record(command=("a",), max_steps=20, pid=2**22 + 1, started=1.0, log_start=0).write(
        tmp_path / "page" / "runs" / "a run"
    )
    write_run(tmp_path / "data" / "other")
    app = PageApp.open(parse(["page", "--data", str(tmp_path / "data")]), tmp_path / "page")
    app.close()
    return app


def test_what_is_offered_can_be_chosen_and_does_what_its_tab_does(app, tmp_path):
    other = str(tmp_path / "data" / "other")
    talks, dubs = offered_checkpoints(app, False), offered_checkpoints(app, True)
    assert talks == ["nano", "a run/step-20", "a run/step-4", f"{other}/step-20", f"{other}/step-4"]
    assert dubs == ["nano-v2v", "a run/best", f"{other}/best"]
    for text in (*talks, *dubs):
        model = chosen_model(app, text, text in dubs)
        assert app.shelf.find(model.name) is model
        with pytest.raises(FieldFaults, match="wanted one that"):
            chosen_model(app, text, text not in dubs)
    best = tmp_path / "data" / "other" / "best"
    shutil.rmtree(best)
    best.mkdir()
    shutil.copyfile(NANO_I2V, best / "model.safetensors")  # a better one has taken its place
    os.utime(best, (1, 1))
    assert str(best) in offered_checkpoints(app, False) and str(best) not in offered_checkpoints(app, True)
    assert chosen_checkpoint(app, "nano") is app.shelf.models["nano"]
    run = tmp_path / "page" / "runs" / "a run"
    assert chosen_checkpoint(app, "a run/step-4").flags["omniavatar"] == str(run / "step-4")
    best = chosen_checkpoint(app, "a run/best")
    assert best.name.startswith("a run/best of ") and best.flags["model"] == "nano-v2v"
    path = str(run / "step-20" / "model.safetensors")
    assert chosen_checkpoint(app, path).name == path
    app.shelf.look()
    assert app.shelf.find(path) is not None and path not in app.shelf.models


def test_the_command_of_a_trained_checkpoint_names_it(app):
    example = talk_example(app.uploads)
    fields = {"image": str(example[0]), "audio": str(example[1]), "prompt": "a", "preset": "draft"}
    work = order_talk(app, "", {**fields, "model": "a run/step-20"})
    args = parse(shlex.split(work.order.command)[1:])
    assert (args.model, args.omniavatar) == ("nano", str(app.runs.root / "a run" / "step-20"))
    assert work.order.form["model"] == "a run/step-20"


def test_what_cannot_be_chosen_is_told(app, tmp_path):
    (tmp_path / "data" / "bad.pt").write_bytes(b"no weights")
    write_random_family(tmp_path / "data" / "tiny")
    (tmp_path / "data" / "broken" / "step-1").mkdir(parents=True)
    assert not any("broken" in name for dubs in (True, False) for name in offered_checkpoints(app, dubs))
    for text, told in (
        ("", "choose a checkpoint"),
        ("14B", "14B is not there: .* GB are to be downloaded"),
        ("a run/step-5", "the run a run has no step-5: choose another"),
        ("b/step-5", "there is no run b: choose another"),
        ("a run/../../x", "not in the folders"),
        ("../x", "not in the folders"),
        (str(NANO_I2V), "not in the folders"),
        (str(tmp_path / "data" / "bad.pt"), "bad.pt"),
        (str(tmp_path / "data" / "tiny" / "omniavatar"), "fits no model that is there"),
    ):
        with pytest.raises((ValueError, OSError), match=told):
            chosen_checkpoint(app, text)


@pytest.mark.parametrize(
    ("a", "b", "fields"),
    [
        ("nano", "nano", {"checkpoint_b": "another one than A"}),
        ("nano-v2v", "", {"checkpoint_a": "wanted one that makes", "checkpoint_b": "Choose a checkpoint."}),
        ("nano", "a run/step-4", {"image": "Nothing here yet", "audio": "Nothing here yet"}),
    ],
)
def test_a_fault_is_told_at_its_field(app, a, b, fields):
    given = {"checkpoint_a": a, "checkpoint_b": b, "image": None, "audio": None, "prompt": "a", "preset": "draft"}
    with pytest.raises(FieldFaults) as caught:
        order_pair(app, False, given, lambda one: order_talk(app, "", one))
    assert caught.value.faults.keys() == fields.keys()
    assert all(told in caught.value.faults[name] for name, told in fields.items())
    assert app.jobs.of("") == []


def test_two_checkpoints_get_the_same_fields_and_seed(app):
    ordered = []
    given = {"checkpoint_a": "nano-v2v", "checkpoint_b": "a run/best", "prompt": "a", "seed": ""}
    order_pair(app, True, given, lambda fields: ordered.append(fields) or fields)
    first, second = ordered
    assert (first.pop("model"), second.pop("model")) == ("nano-v2v", "a run/best")
    assert first == second and isinstance(first["seed"], int) and first.keys() == {"prompt", "seed"}


class Idle(Work):
    def run(self):
        raise AssertionError("it is not made")


def test_where_the_second_job_is_refused_the_first_is_not_made(app):
    def order(fields):
        if fields["model"] == "a run/best":
            raise QueueFull("20 jobs wait already")
        work = Idle("")
        app.jobs.add(work)
        return work

    with pytest.raises(QueueFull):
        order_pair(app, True, {"checkpoint_a": "nano-v2v", "checkpoint_b": "a run/best"}, order)
    assert [work.state for work in app.jobs.of("")] == ["stopped"]
