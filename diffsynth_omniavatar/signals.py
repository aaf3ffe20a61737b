"""SIGTERM (`kill`, docker stop, a time limit) and SIGHUP (a closed terminal) end a command as Ctrl-C does."""

from __future__ import annotations

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

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_once(number: int, _: Any) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        raise Terminated(number)

    before = {number: signal.signal(number, raise_once) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
