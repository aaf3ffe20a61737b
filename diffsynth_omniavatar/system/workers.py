"""Work on many files by several processes, of which one may die."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Tell = Callable[[float], None]
"""Called by the work with the part of it that is done, 0 to 1."""


class WorkerDiedError(RuntimeError):
    """The process that worked on an item has ended in the middle of it, as by a crash of a decoder."""


@dataclass(frozen=True)
class Done(Generic[Item, Result]):
    """An item that has been worked on: with its result, or the error of a process that died."""

    item: Item
    result: Result | None
    error: WorkerDiedError | None = None


def work_through(
    work: Callable[[Item, Tell], Result],
    items: Sequence[Item],
    workers: int,
    on_progress: Callable[[Item, float], None] = lambda item, part: None,
) -> Iterator[Done[Item, Result]]:
    """Do some work on each item, in the order in which they get done.

    With one worker the work is done in this process. Others are started afresh, and started again if they die. Leaving
    the loop, by an interrupt too, ends them at once: the work has to write files whole or not at all.

    Args:
        work: a function, to be pickled, that raises nothing but bugs.
        items: to be pickled, as the results are.
        workers: number of processes.
        on_progress: called with an item and the part of it that is done.
    """
    if workers == 1:
        for item in items:

            def tell(part: float, item: Item = item) -> None:
                on_progress(item, part)

            yield Done(item, work(item, tell))
        return
    pool = _Pool(work, min(workers, len(items)))
    try:
        yield from pool.run(items, on_progress)
    finally:
        pool.end()


class _Pool:
    def __init__(self, work: Callable[[Any, Tell], Any], workers: int) -> None:
        self.context = multiprocessing.get_context("spawn")  # forking a process in which torch has threads can hang
        self.work = work
        self.workers = [self._start() for _ in range(workers)]

    def _start(self) -> _Worker:
        here, there = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(there, self.work), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    def run(self, items: Sequence[Any], on_progress: Callable[[Any, float], None]) -> Iterator[Done[Any, Any]]:
        waiting, left = deque(items), len(items)
        for worker in self.workers:
            worker.begin(waiting)
        while left:
            busy = {worker.link: worker for worker in self.workers if worker.items}
            for link in connection.wait(list(busy)):
                worker = busy[link]  # type: ignore[index]
                try:
                    kind, value = worker.link.recv()
                except (EOFError, OSError):
                    done: Done[Any, Any] = Done(worker.items[0], None, WorkerDiedError(worker.fate()))
                    self.workers[self.workers.index(worker)] = worker = self._start()
                else:
                    if kind == "progress":
                        on_progress(worker.items[0], value)
                        continue
                    if kind == "error":
                        raise value
                    done = Done(worker.items[0], value)
                worker.begin(waiting)
                left -= 1
                yield done

    def end(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()


class _Worker:
    def __init__(self, process: Any, link: connection.Connection) -> None:
        self.process, self.link = process, link
        self.items: list[Any] = []
        """The item that it works on, or nothing."""

    def begin(self, waiting: deque[Any]) -> None:
        self.items = [waiting.popleft()] if waiting else []
        if self.items:
            self.link.send(self.items[0])

    def fate(self) -> str:
        self.process.join()
        code = self.process.exitcode
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"the process that worked on it was ended {how}"


def _serve(link: connection.Connection, work: Callable[[Any, Tell], Any]) -> None:
    """What a worker's process does: items come in, parts that are done and results go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    while True:
        try:
            item = link.recv()
        except EOFError:
            return
        try:
            answer = "result", work(item, lambda part: link.send(("progress", part)))
        except Exception as error:
            answer = "error", error
        link.send(answer)
