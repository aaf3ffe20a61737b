"""SIGTERM (`kill`, docker stop, a time limit) and SIGHUP (a closed terminal) end a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end; whatever Ctrl-C would save is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"got {signal.Signals(number).name}")
        self.number = number


def exit_code(interrupt: BaseException | None) -> int:
    """The shell's code for an interrupt: 128 and the signal's number, 130 for Ctrl-C."""
    while interrupt is not None:
        if isinstance(interrupt, Terminated):
            return 128 + interrupt.number
        interrupt = interrupt.__cause__ or interrupt.__context__
    return 128 + signal.SIGINT


@contextmanager
def interrupts() -> Iterator[None]:
    """Within this context the signals raise `Terminated`, the first one of them; the next ones end the process at once.

    What is ignored (SIGHUP under nohup) stays ignored, and forked processes end. Outside the main thread, where Python
    allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    process = os.getpid()
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]

    def raise_once(number: int, _: Any) -> None:
        if os.getpid() != process:  # a worker of a data loader, before it has handlers of its own
            os._exit(128 + number)
        for other in numbers:
            signal.signal(other, signal.SIG_DFL)
        raise Terminated(number)

    before = {number: signal.signal(number, raise_once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
