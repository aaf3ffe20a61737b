"""patches/apply.py changes everything asked for or nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from patch_files import PATCHES, apply_module, contents

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

DIFF = """Change two files

diff --git a/diffsynth/a.py b/diffsynth/a.py
--- a/diffsynth/a.py
+++ b/diffsynth/a.py
@@ -2,3 +2,4 @@
 2
-3
+drei
+und
 4
@@ -6,2 +7,1 @@
 6
-7
--- a/diffsynth/pipelines/b.py
+++ b/diffsynth/pipelines/b.py
@@ -1,2 +1,2 @@
-1
+eins
 2
"""
NUMBERS = "".join(f"{i}\n" for i in range(1, 9))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small vendored diffsynth of version 9.9, and the only patch there is for it."""
    root = tmp_path / "vendor" / "diffsynth"
    (root / "pipelines").mkdir(parents=True)
    (root / "__init__.py").touch()
    (root / "version.py").write_text("# released\n__version__ = '9.9'\n")
    for file in ("a.py", "pipelines/b.py"):
        (root / file).write_text(NUMBERS)
    (tmp_path / "patches" / "9.9").mkdir(parents=True)
    (tmp_path / "patches" / "9.9" / "two-files.patch").write_text(DIFF)
    monkeypatch.setattr(apply_module(), "FOLDER", tmp_path / "patches")
    yield root


def command(package: Path, *arguments: str) -> int:
    status: int = apply_module().main([*arguments, "--target", str(package)])
    return status


def test_apply_and_revert(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released = contents(package)
    assert command(package, "--check") == 0
    assert contents(package) == released
    assert command(package.parent, "two-files") == 0
    assert (package / "a.py").read_text() == "1\n2\ndrei\nund\n4\n5\n6\n8\n"
    assert (package / "pipelines" / "b.py").read_text() == NUMBERS.replace("1", "eins")
    assert command(package, "--all") == 0
    assert command(package, "--all", "--revert") == 0
    assert command(package, "--all", "--revert") == 0
    assert contents(package) == released
    said = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines() if "two-files" in line]
    assert said == ["fits", "applied", "already applied", "reverted", "not applied"]


def test_lines_that_have_moved_are_found(package: Path) -> None:
    (package / "a.py").write_text("0\n0\n" + NUMBERS + "9\n")
    assert command(package, "--all") == 0
    assert (package / "a.py").read_text() == "0\n0\n1\n2\ndrei\nund\n4\n5\n6\n8\n9\n"
    assert command(package, "--all", "--revert") == 0
    assert (package / "a.py").read_text() == "0\n0\n" + NUMBERS + "9\n"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ("1\n two\n3\n", "pipelines/b.py: the lines for line 1 are found 0 times"),
        ("0\n1\n2\n1\n2\n", "pipelines/b.py: the lines for line 1 are found 2 times"),
        ("1\r\n2\r\n", "pipelines/b.py: the lines for line 1 are found 0 times"),
        (None, "there is no pipelines/b.py"),
    ],
)
def test_a_patch_that_does_not_fit_changes_nothing(
    package: Path, capsys: pytest.CaptureFixture[str], changed: str | None, reason: str
) -> None:
    file = package / "pipelines" / "b.py"
    if changed is None:
        file.unlink()
    else:
        file.write_bytes(changed.encode())
    before = contents(package)
    for action in ([], ["--revert"]):
        assert command(package, "--all", *action) == 1
        assert "does not fit, nothing changed: " in capsys.readouterr().out
    assert command(package, "--check") == 1
    assert reason in capsys.readouterr().out
    assert contents(package) == before


def test_a_failed_write_is_taken_back(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released, replace = contents(package), Path.replace

    def fail_on_the_second(self: Path, target: Path) -> Path:
        if target.name == "b.py":
            raise PermissionError("read-only")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_the_second)
    assert command(package, "--all") == 1
    assert contents(package) == released


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the patches, or use --all"),
        (["--all", "two-files"], "name the patches, or use --all"),
        (["three-files"], "got three-files: DiffSynth 9.9 has the patches two-files"),
        (["--print", "three-files"], "got three-files"),
        (["--all", "--version", "1.0"], "got DiffSynth 1.0, wanted one of 9.9"),
        (["--all", "--target", "elsewhere"], "wanted a folder that holds diffsynth/"),
    ],
)
def test_wrong_questions(package: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        apply_module().main(["--target", str(package), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_copy_that_does_not_tell_its_version_needs_it_named(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "version.py").unlink()
    with pytest.raises(SystemExit):
        command(package, "--all")
    assert "give it with --version" in capsys.readouterr().err
    assert command(package, "--all", "--version", "9.9") == 0
    metadata = package.parent / "diffsynth-1.1.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: diffsynth\nVersion: 1.1.9\n")
    assert apply_module().find_version(package) == "1.1.9"


def test_print_gives_the_diff_as_it_is(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(package, "--print", "two-files") == 0
    assert capsys.readouterr().out == DIFF


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@@ -2,3 +2,4 @@", "@@ -2,5 +2,6 @@", "ends too early"),
        ("@@ -2,3 +2,4 @@", "@@ -2,2 +2,4 @@", "wanted -2"),
        ("+++ b/diffsynth/a.py", "+++ b/diffsynth/c.py", "the same path"),
        ("diffsynth/a.py", "diffsynth/../a.py", "the same path"),
        ("a/diffsynth/a.py", "a/other/a.py", "the same path"),
    ],
)
def test_malformed_diffs_are_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_module().parse(DIFF.replace(old, new))


def test_apply_needs_only_the_standard_library() -> None:
    command = [sys.executable, "-I", "-S", str(PATCHES / "apply.py"), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(apply_module().load_patches())
