"""Work that the server does, one piece after the other, whether or not somebody watches."""

from __future__ import annotations

import logging
import secrets
import threading
from abc import ABC, abstractmethod
from typing import Literal

from ...host.versions import UnsupportedHostError

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "stopped", "failed"]

MOST_WAITING = 20
"""Pieces of work of all people that can wait or run."""
MOST_KEPT = 200
"""Pieces of work that are remembered; the oldest finished ones are forgotten."""


class QueueFull(ValueError):
    """There is too much work already."""


class Stopped(Exception):
    """Somebody has cancelled the work."""


class Work(ABC):
    """One piece of work. The queue's thread writes its state, others read it.

    Args:
        owner: who started it; "" where the page asks for no name.
    """

    def __init__(self, owner: str) -> None:
        self.id = secrets.token_hex(8)
        self.owner = owner
        self.state: State = "waiting"
        self.fault = ""
        """What went wrong, in a sentence."""
        self._stopping = threading.Event()

    @abstractmethod
    def run(self) -> None:
        """Do it; calls `go_on` often."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is to come."""
        return self.state not in ("waiting", "running")

    @property
    def is_stopping(self) -> bool:
        """Whether it was cancelled; it ends at its next step."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Cancel it."""
        self._stopping.set()

    def go_on(self) -> None:
        """Raises `Stopped` where it was cancelled."""
        if self._stopping.is_set():
            raise Stopped


class WorkQueue:
    """Work in the order in which it came, by a thread of its own.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._works: list[Work] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, work: Work) -> None:
        """Put work at the end.

        Raises:
            QueueFull: there is too much.
        """
        with self._changed:
            if sum(not other.is_over for other in self._works) >= MOST_WAITING:
                raise QueueFull(f"{MOST_WAITING} jobs wait already: try again when some are done.")
            self._works.append(work)
            over = [other for other in self._works if other.is_over]
            for old in over[: max(len(self._works) - MOST_KEPT, 0)]:
                self._works.remove(old)
            self._changed.notify_all()

    def find(self, owner: str, id: str) -> Work | None:
        """Somebody's work, or None."""
        return next((work for work in self.of(owner) if work.id == id), None)

    def of(self, owner: str) -> list[Work]:
        """All that somebody has started and that is remembered, the oldest first."""
        with self._changed:
            return [work for work in self._works if work.owner == owner]

    def position(self, work: Work) -> int:
        """How many are to be done before it, the running one too; 0 where it runs or is over."""
        with self._changed:
            if work.state != "waiting":
                return 0
            return sum(not other.is_over for other in self._works[: self._works.index(work)])

    def is_busy(self) -> bool:
        """Whether something runs or waits."""
        with self._changed:
            return any(not work.is_over for work in self._works)

    def stop(self, work: Work) -> None:
        """Cancel work; what waits ends at once, what runs at its next step."""
        with self._changed:
            work.stop()
            if work.state == "waiting":
                work.state = "stopped"

    def close(self, seconds: float) -> None:
        """Cancel all, and wait so long for the running one to keep what it has."""
        with self._changed:
            self._closed = True
            for work in self._works:
                work.stop()
            self._changed.notify_all()
        self._thread.join(seconds)

    def _next(self) -> Work | None:
        with self._changed:
            while not self._closed:
                work = next((work for work in self._works if work.state == "waiting"), None)
                if work is not None:
                    work.state = "running"
                    return work
                self._changed.wait()
        return None

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work.state = outcome(work)


def outcome(work: Work) -> State:
    """What becomes of work; faults are kept in it, those that nobody foresaw go to the log too."""
    try:
        work.go_on()
        work.run()
    except Stopped:
        return "stopped"
    except (ValueError, OSError, UnsupportedHostError) as error:
        work.fault = str(error)
        return "failed"
    except Exception as error:  # one broken job must not end the queue
        logger.exception("A job of the page failed")
        is_memory = type(error).__name__ == "OutOfMemoryError"
        work.fault = (
            "There is not enough GPU memory: lower the longest chunk (max_tokens), or start the page with "
            "--stream_weights."
            if is_memory
            else f"Something broke: {type(error).__name__}: {error}. The terminal of the page shows where."
        )
        return "failed"
    return "done"
