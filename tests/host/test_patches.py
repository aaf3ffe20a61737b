"""Each patch in patches/ cures the defect that it names.

One process of its own observes every defect of the installed DiffSynth, as released and with its patch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from patch_cases import CASES, RELEASED, observe_all
from patch_files import PATCHES, apply_module, contents, installed_version
from processes import run_in_processes


def copy_package(root: Path) -> Path:
    """Copy the sources of the installed diffsynth, and what is compiled of them, to root/diffsynth."""
    package = apply_module().find_package(None)

    def other(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if not name.endswith((".py", ".pyc")) and not Path(folder, name).is_dir()]

    shutil.copytree(package, root / "diffsynth", ignore=other)
    return root / "diffsynth"


def own_patches() -> list[Any]:
    return [patch for patch in apply_module().load_patches() if patch.version == installed_version()]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By patch: what its case sees as released, and with the patch."""
    folder = tmp_path_factory.mktemp("copies")
    results = tmp_path_factory.mktemp("results") / "results.json"
    copy_package(folder / RELEASED)
    for patch in own_patches():
        shutil.copytree(folder / RELEASED, folder / patch.name)
        assert apply_module().run(patch, folder / patch.name / "diffsynth") == "applied"
    run_in_processes(observe_all, folder, results, processes=1)
    loaded: dict[str, list[Any]] = json.loads(results.read_text())
    return loaded


@pytest.mark.parametrize("patch", apply_module().load_patches(), ids=lambda patch: f"{patch.version}-{patch.name}")
@pytest.mark.slow
@pytest.mark.forks
def test_patch_cures_its_defect(patch: Any, request: pytest.FixtureRequest) -> None:
    if patch.version != installed_version():
        pytest.skip(f"belongs to DiffSynth {patch.version}; installed is {installed_version()}")
    before, after = request.getfixturevalue("seen")[patch.name]
    _, defective, right = CASES[patch.name]
    assert defective(before), before
    assert right(after), after


@pytest.mark.skipif(not own_patches(), reason=f"there are no patches for DiffSynth {installed_version()}")
def test_all_patches_of_the_host_fit_together_in_any_order_and_revert_to_the_same_bytes(tmp_path: Path) -> None:
    run = apply_module().run
    package = copy_package(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    released = contents(package)
    for patch in own_patches():
        assert run(patch, package) == "applied"
    for patch in reversed(own_patches()):
        assert run(patch, tmp_path / "b" / "diffsynth") == "applied"
    assert contents(package) == contents(tmp_path / "b" / "diffsynth") != released
    for patch in own_patches():
        assert run(patch, package) == "already applied"
        assert run(patch, package, revert=True) == "reverted"
        assert run(patch, package, revert=True) == "not applied"
    assert contents(package) == released


def test_every_patch_has_a_case_and_a_line_in_the_readme() -> None:
    patches = apply_module().load_patches()
    readme = (PATCHES / "README.md").read_text()
    assert {patch.name for patch in patches} == set(CASES)
    for patch in patches:
        assert f"`{patch.version}/{patch.name}.patch`" in readme
        assert patch.files and all(patch.files.values()) and patch.subject
