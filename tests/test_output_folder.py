"""One run at a time writes to a folder; where nothing can be written is told before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffsynth_omniavatar.output_folder import check_output_folder, reserved

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

TAKE = """
import sys
from pathlib import Path
from diffsynth_omniavatar.output_folder import reserved
with reserved(Path(sys.argv[1])):
    print("has it", flush=True)
    sys.stdin.read()
"""


def take(folder: Path) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", TAKE, str(folder)]
    other = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "has it\n"
    return other


def test_a_folder_is_reserved_for_one_process_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    other = take(tmp_path / "out")
    with (
        pytest.raises(ValueError, match=rf"out is in use by another run \(process {other.pid} on "),
        reserved(tmp_path / "out"),
    ):
        pass
    other.kill()
    other.communicate()
    with reserved(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(ValueError, match=f"{folder}: .*file is no folder"):
            check_output_folder(folder)
    check_output_folder(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be written"):
        check_output_folder(tmp_path / "new")
