"""How long jobs tell how far they are: one kind of progress bar for all commands, and lines that go above it."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(unit: str, show: bool = True, *, by_itself: bool = True) -> Progress:
    """A bar on stderr: what is done, how many `unit` of how many, elapsed and remaining time.

    Where stderr is no terminal, nothing is drawn (`disable` is true), so that a log file has lines only. While the bar
    is drawn, what is written to `sys.stdout` and `sys.stderr` appears above it.

    By itself it is drawn again ten times a second, by a thread. Where processes are forked meanwhile it must not be, as
    they would inherit that thread's locks: `refresh()` draws it then.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit},"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        auto_refresh=by_itself,
        disable=not (show and console.is_terminal),
    )


class StderrLines(logging.Handler):
    """Writes each message as a line to the stderr of the moment, which a progress bar replaces while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        print(self.format(record), file=sys.stderr)
