"""One run alone writes to an output folder, however the one before ended."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from diffsynth_omniavatar.system.output_folder import check_output_folder, reserved


def forked(work: Callable[[], object]) -> int:
    """The process id of a copy of this process that does some work; its exit code is 1 if that raises a ValueError."""
    process = os.fork()
    if process == 0:
        code = 0
        try:
            work()
        except ValueError:
            code = 1
        finally:
            os._exit(code)
    return process


def reserve(folder: Path) -> None:
    with reserved(folder):
        pass


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_second_run_is_refused_as_long_as_the_first_runs(tmp_path):
    folder = tmp_path / "runs" / "a"
    with reserved(folder):
        assert exit_code(forked(lambda: reserve(folder))) == 1
        assert exit_code(forked(lambda: reserve(tmp_path / "runs" / "b"))) == 0
    assert exit_code(forked(lambda: reserve(folder))) == 0


def test_the_other_run_is_named(tmp_path):
    ready, tell = os.pipe()

    def hold() -> None:
        with reserved(tmp_path):
            os.write(tell, b"x")
            signal.pause()

    holder = forked(hold)
    os.read(ready, 1)
    with (
        pytest.raises(ValueError, match=rf"{tmp_path} is in use by another run \(process {holder} on "),
        reserved(tmp_path),
    ):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with reserved(tmp_path):  # what it left does not block
        pass
    assert not [*tmp_path.iterdir()]


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path):
    with reserved(tmp_path / "empty"):
        pass
    with reserved(tmp_path / "full"):
        (tmp_path / "full" / "x").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x"]


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
