"""What is marked `one_host` runs on DiffSynth 2.x alone, which is right where nothing of DiffSynth is imported."""

import ast
import functools
from pathlib import Path

import test_layers

TESTS = Path(__file__).resolve().parent
OF_THE_SMALL_MODEL = {
    "app/test_demo.py", "nano/test_batch.py", "nano/test_figures.py", "nano/test_long_videos.py", "nano/test_nano.py",
    "nano/test_nano_weights.py",
}  # fmt: skip
"""What the small model does, and tools that make and measure it. That both hosts compute the same bits is a law of
its own.
"""
OF_THE_LOSSES = {"training/test_auxiliary.py"}
"""How losses on decoded frames add up, which is the package's own; one of its tests meets each host's decoder."""
OF_DISTILLATION = {"training/test_distill.py", "training/test_trajectories.py"}
"""What losses and data of distillation are; the tests of its blocks, runs and checkpoints meet both hosts."""
OF_THE_COMPILER = {"model/test_blocks.py"}
"""What torch's compiler makes of pieces of blocks, which are the package's own."""

OF_WRITING = {"test_kills.py"}
"""How files are written, and what a killed process leaves: the package's own."""

OF_THE_PAGE = {
    *("app/page/test_checkpoints.py", "app/page/test_orders.py"),
    *("app/page/test_shelf.py", "app/page/test_training_form.py", "app/page/test_video_work.py"),
}
"""How filled-in fields become requests and commands, which are the same with both hosts."""
OF_COMFYUI = {"integrations/test_comfyui.py"}
"""What the nodes for ComfyUI hand to the package."""


@functools.cache
def imports(file: Path) -> list[str]:
    """Dotted names that a file of the package or of tests/ imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    is_own = file.is_relative_to(test_layers.PACKAGE)
    return test_layers.imports(file.relative_to(test_layers.PACKAGE).as_posix() if is_own else "", tree)


def imported_by(file: Path) -> set[Path]:
    """Files of the package and of tests/ that are imported when a test file is, and it."""
    beside = {path.stem: path for path in TESTS.rglob("*.py") if path.stem != "conftest"}
    found, waiting = set(), [file]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in imports(path):
            waiting += [test_layers.PACKAGE / own for own in test_layers.own_files(name)]
            waiting += [beside[part] for part in name.split(".")[:2] if part in beside]
    return found


def meets_the_host(file: Path) -> bool:
    host = test_layers.PACKAGE / "host"
    found = imported_by(file)
    return any(path.parent == host and path.name != "versions.py" for path in found) or any(
        name.split(".")[0] == "diffsynth" for path in found for name in imports(path)
    )


def test_what_runs_on_one_host_imports_nothing_of_it():
    files = [path for path in TESTS.rglob("test_*.py") if "mark.one_host(" in path.read_text(encoding="utf-8")]
    meeting = {path.relative_to(TESTS).as_posix() for path in files if meets_the_host(path)}
    known = (
        OF_THE_SMALL_MODEL | OF_THE_LOSSES | OF_DISTILLATION | OF_THE_COMPILER | OF_WRITING | OF_THE_PAGE | OF_COMFYUI
    )
    assert len(files) > 10 and meeting == known


def test_what_is_compiled_is_none_of_the_hosts_code():
    assert not meets_the_host(test_layers.PACKAGE / "model" / "blocks" / "pieces.py")


def test_imports_are_followed():
    assert meets_the_host(TESTS / "training" / "test_auxiliary.py")  # through training_runs
    assert meets_the_host(TESTS / "app" / "test_cli.py")
