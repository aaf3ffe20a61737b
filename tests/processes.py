"""Functions in processes of their own that need not import anything: they are forked from a server that has.

That server has computed no gradient either, after which torch computes none in a forked process.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import TCPStore

PRELOADED = ["pytest", "training_toy", "sequence_parallel_worker", "diffsynth_omniavatar.data.precompute"]
PATIENCE = 300
"""Seconds after which processes that wait for each other are ended."""


def run_in_processes(function: Callable[..., object], *arguments: Any, processes: int) -> None:
    """Call `function(*arguments)` in each of several processes, which find in their environment what torchrun says.

    Raises:
        ProcessRaisedException: one of them failed; with its traceback.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # as torchrun has one: its port is free
    place = {"WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": store.port}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0, "ACCELERATE_USE_CPU": "true"}
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = torch.multiprocessing.start_processes(
        _call, (place, function, arguments), processes, join=False, start_method="forkserver"
    )
    end = time.monotonic() + PATIENCE
    while not context.join(timeout=max(0.0, end - time.monotonic())):
        if time.monotonic() >= end:
            for process in context.processes:
                process.kill()


def _call(rank: int, place: dict[str, Any], function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    place |= {"RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    function(*arguments)
