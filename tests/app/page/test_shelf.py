"""Models stay loaded between jobs and are let go on demand; LoRAs change with each job."""

import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffsynth_omniavatar.app.cli import parse
from diffsynth_omniavatar.app.page import shelf as shelves
from diffsynth_omniavatar.app.page.command_lines import command_line
from diffsynth_omniavatar.app.page.orders import model_words
from diffsynth_omniavatar.app.page.shelf import Shelf
from diffsynth_omniavatar.generation import loras
from diffsynth_omniavatar.model.files import NANO_I2V

pytestmark = pytest.mark.one_host("the same calls with both")

A, B = (Path("/loras/a.safetensors"), 0.5), (Path("/loras/b.safetensors"), 1.0)


@pytest.fixture
def make(monkeypatch):
    """A shelf of such flags; what it loads and adds is in `make.log`."""
    log = []

    def add(pipe, file, strength):
        if file.name == "bad.safetensors":
            raise ValueError("no LoRA")
        log.append(("add", file.name, strength))

    def load(args):
        log.append(("load", args.model, args.lora))
        return SimpleNamespace(name=args.model)

    monkeypatch.setattr(shelves, "load_model", load)
    monkeypatch.setattr(loras, "add_lora", add)
    monkeypatch.setattr(loras, "remove_loras", lambda pipe: log.append(("remove",)))

    def make(*flags):
        return Shelf(parse(["page", *flags]))

    make.log = log
    return make


def use(shelf, name, loras=()):
    with shelf.pipeline(name, loras) as pipe:
        assert pipe.name == name and shelf.loaded() == name and not shelf.release()


def test_a_model_is_loaded_once_and_let_go_on_demand(make):
    shelf = make()
    for name in ("nano", "nano", "nano-v2v"):
        use(shelf, name)
    assert make.log == [("load", "nano", None), ("load", "nano-v2v", None)]
    assert shelf.release() and shelf.loaded() is None
    use(shelf, "nano-v2v")
    assert len(make.log) == 3


def test_a_checkpoint_that_was_written_again_is_loaded_again(make, tmp_path):
    shelf, checkpoint = make(), tmp_path / "step-4"
    checkpoint.mkdir()
    for seconds in (1, 1, 2):
        shutil.copyfile(NANO_I2V, checkpoint / "model.safetensors")
        os.utime(checkpoint, (seconds, seconds))
        with shelf.pipeline(shelf.add_checkpoint("run/step-4", checkpoint).name, ()):
            assert shelf.loaded() == "run/step-4"
    assert len(make.log) == 2


def test_loras_change_on_the_loaded_model(make):
    shelf = make()
    for chosen in ((A,), (A,), (B, A), ()):
        use(shelf, "nano", chosen)
    first, second = ("add", "a.safetensors", 0.5), ("add", "b.safetensors", 1.0)
    assert make.log[1:] == [("remove",), first, ("remove",), second, first, ("remove",)]


def test_a_lora_that_fails_leaves_the_model_for_the_next_job(make):
    shelf = make()
    with pytest.raises(ValueError, match="no LoRA"), shelf.pipeline("nano", (A, (Path("bad.safetensors"), 1.0))):
        pass
    use(shelf, "nano", ())
    assert make.log[-1] == ("remove",) and [one[0] for one in make.log].count("load") == 1


def test_a_model_in_8_bits_is_loaded_with_its_loras(make):
    shelf = make("--model", "nano", "--quantize", "int8")
    for chosen in ((), (A,), (A,)):
        use(shelf, "nano", chosen)
    assert make.log == [("load", "nano", []), ("load", "nano", ["/loras/a.safetensors:0.5"])]


def test_the_small_models_are_offered_and_have_only_flags_of_the_machine(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shelf = make("--models_folder", str(tmp_path), "--compile", "--device", "cpu")
    assert shelf.names(dubs=False) == ["nano"] and shelf.names(dubs=True) == ["nano-v2v"]
    assert set(shelf.models) == {"14B", "1.3B", "nano", "nano-v2v"} and "missing" in shelf.models["14B"].lacks
    assert shelf.models["nano"].flags == {"model": "nano", "models_folder": None, "device": "cpu"}
    assert "GB are to be downloaded" in make().models["14B"].lacks
    named = make("--model", "14B").models
    assert set(named) == {"14B", "nano", "nano-v2v"} and not named["14B"].lacks


def test_the_command_line_names_the_model_as_the_page_loads_it(make, tmp_path):
    shelf = make("--model", "14B", "--dit", "a b.safetensors", "c.safetensors", "--compile", "--lora", "x:0.5")
    line = command_line(["generate"], model_words(shelf.models["14B"], (A,)))
    args = parse(shlex.split(line)[1:])
    assert (args.model, args.dit, args.compile) == ("14B", ["a b.safetensors", "c.safetensors"], True)
    assert args.lora == ["x:0.5", "/loras/a.safetensors:0.5"]
