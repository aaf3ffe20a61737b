"""How a run ends before its last step: signals as an exception, errors in a line, exit codes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..host.versions import UnsupportedHostError
from .accelerator import DivergedError

FAILED, WRONG_INPUT = 1, 2
"""Exit codes: the run failed; what was given is wrong."""
WRONG_INPUTS = (
    ValueError,
    UnsupportedHostError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
FAILURES = (OSError, DivergedError, torch.OutOfMemoryError, ModuleNotFoundError)


class Stopped(KeyboardInterrupt):
    """A signal asks the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise `Stopped` where Ctrl-C does; what is ignored (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, _: Any) -> None:
        if os.getpid() != process:  # a worker process, before it has handlers of its own
            os._exit(128 + number)
        raise Stopped(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(error: Exception) -> int | None:
    """Of an error that is told in a line; None for one that is a defect of the program."""
    if isinstance(error, WRONG_INPUTS):
        return WRONG_INPUT
    killed_worker = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    return FAILED if killed_worker or isinstance(error, FAILURES) else None
