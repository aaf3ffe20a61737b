"""How fast `omniavatar prepare` works on a video: the pass that looks, and the one that cuts.

    python benchmarks/prepare.py VIDEO --mode v2v --processes 1
    python benchmarks/prepare.py VIDEO --mode v2v --processes 16

Each process works on the same video with one thread, as the workers of `prepare` do. Frames per second of all processes
together by the clock, milliseconds of CPU time a frame, and hours of one core for an hour of video.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from diffsynth_omniavatar.data.figure_rules import Mode
from diffsynth_omniavatar.data.prepare.look import look_at
from diffsynth_omniavatar.data.prepare.process import SourceWork
from diffsynth_omniavatar.data.prepare.settings import PrepareSettings
from diffsynth_omniavatar.data.prepare.source_state import SourceState, file_facts
from diffsynth_omniavatar.data.prepare.sources import Source
from diffsynth_omniavatar.media.timeline import FRAME_RATE


def measure(video: str, mode: Mode) -> list[tuple[int, float, float]]:
    """Of both passes: frames, and seconds by the clock and of the CPU."""
    torch.set_num_threads(1)
    source = Source(path=Path(video))
    with tempfile.TemporaryDirectory() as folder:
        times = [(time.perf_counter(), time.process_time())]
        look = look_at(source.path)
        times.append((time.perf_counter(), time.process_time()))
        SourceState(source=source, out=Path(folder)).write_look(look, file_facts(source.path))
        record = SourceWork(out=Path(folder), settings=PrepareSettings(mode=mode))(source)
        times.append((time.perf_counter(), time.process_time()))
    frames = sum(clip.frames for clip in record.clips if clip.is_kept)
    counts = (look.frames, frames)
    return [
        (count, after[0] - before[0], after[1] - before[1])
        for count, before, after in zip(counts, times, times[1:], strict=False)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="with a clip that is kept")
    parser.add_argument("--mode", choices=["i2v", "v2v"], default="v2v")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(measure, arguments.video, arguments.mode) for _ in range(arguments.processes)]
        results = np.array([job.result() for job in jobs])
    print("| pass | frames/s | CPU ms / frame | core hours / hour |")
    print("| --- | --- | --- | --- |")
    for name, values in zip(("look", f"cut for {arguments.mode}"), results.swapaxes(0, 1), strict=True):
        frames, clock, cpu = values[:, 0].sum(), values[:, 1].max(), values[:, 2].sum()
        if frames:
            print(f"| {name} | {frames / clock:.1f} | {1000 * cpu / frames:.1f} | {FRAME_RATE * cpu / frames:.2f} |")
        else:
            print(f"| {name} | no clip was kept | | |")


if __name__ == "__main__":
    main()
