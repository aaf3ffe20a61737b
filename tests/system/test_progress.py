"""Progress is a bar on a terminal and nothing elsewhere; lines go to the stderr of the moment."""

import contextlib
import io
import logging

import pytest
from rich.console import Console

from diffsynth_omniavatar.system import progress

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("show", [True, False])
def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, terminal: bool, show: bool) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=drawn, force_terminal=terminal, color_system=None, width=90)
    )
    with progress.progress_bar("steps", show, by_itself=False) as bar:
        task = bar.add_task("training", total=6, completed=2)
        bar.advance(task)
        bar.refresh()
    assert bar.disable == (not (terminal and show))
    assert ("3/6 steps," in drawn.getvalue()) == (terminal and show)


def test_lines_go_to_the_stderr_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    handler, later = progress.StderrLines(), io.StringIO()
    with contextlib.redirect_stderr(later):
        handler.emit(logging.makeLogRecord({"msg": "step 1"}))
    assert later.getvalue() == "step 1\n" and capsys.readouterr().err == ""
