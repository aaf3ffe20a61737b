"""Work that several processes share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def process_map(processes: int) -> Iterator[Callable[..., list[Any]]]:
    """`map` over so many processes, as a list; with one, in this process. A script must use more than one under
    `if __name__ == "__main__"`.
    """
    if processes == 1:
        yield lambda work, items: list(map(work, items))
        return
    # Forking a process in which torch has started threads can hang.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda work, items: list(pool.map(work, items, chunksize=2))
