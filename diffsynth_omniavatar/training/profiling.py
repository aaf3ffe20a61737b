"""A trace of some steps by torch's profiler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

logger = logging.getLogger(__name__)

FOLDER = "profile"
"""In the output path: `trace.json.gz`, for ui.perfetto.dev or chrome://tracing, and `operators.txt`."""
SKIPPED = 2
"""Steps before the first one in the trace: one that may compile, one in which the profiler starts."""
ROWS = 40
"""Operators in the table."""


@contextmanager
def profiled(output_path: str | Path, steps: int) -> Iterator[Callable[[], None]]:
    """Within it, steps are profiled after the first `SKIPPED`; gives what is to be called at the end of each step."""
    folder, has_gpu = Path(output_path, FOLDER), torch.cuda.is_available()
    folder.mkdir(exist_ok=True)

    def write(profiler: profile) -> None:
        trace = folder / "trace.json.gz"
        profiler.export_chrome_trace(str(trace))
        order = "self_cuda_time_total" if has_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
        (folder / "operators.txt").write_text(table, encoding="utf-8")
        logger.info("wrote a trace of the last %d steps: %s", min(steps, profiler.step_num - SKIPPED), trace)

    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])],
        schedule=schedule(wait=SKIPPED - 1, warmup=1, active=steps, repeat=1),
        on_trace_ready=write,
    ) as profiler:
        yield profiler.step
