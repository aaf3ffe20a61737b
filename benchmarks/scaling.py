"""Seconds and memory of a training step against the length and the size of a clip, and the table of `omniavatar plan`.

    python benchmarks/scaling.py --out build/scaling | tee scaling.jsonl         # 5 minutes of one GPU of 140 GB
    python benchmarks/scaling.py --write_table speed.jsonl scaling.jsonl         # no GPU: writes measured.json

The 14B model of `speed.py` with random weights, LoRA of rank 128, batch 1, in two ways: DiffSynth's blocks, and
compiled ones that keep what fits. One step is measured after one that warms up. A JSON line for each; what runs out of
memory or time is printed as such. The plots come last.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from speed import DEVICE, Bench, clean, fast

from diffsynth_omniavatar import host
from diffsynth_omniavatar.app import measured
from diffsynth_omniavatar.app.prediction import ATTENTION_BACKWARD
from diffsynth_omniavatar.media.timeline import latent_frames
from diffsynth_omniavatar.metrics.plots import line_plot
from diffsynth_omniavatar.model.blocks.attention import Attention
from diffsynth_omniavatar.model.blocks.gpu_memory import expandable_segments
from diffsynth_omniavatar.model.blocks.memory_plan import GIB
from diffsynth_omniavatar.model.config import PRESETS

FRAMES, SIDES = (41, 81, 121, 161), (384, 512, 640, 720)
BASE = (81, 512, 512)
SIZES = (BASE, *((f, 512, 512) for f in FRAMES if f != 81), *((81, s, s) for s in (384, 640, 720)))
"""Frames, height, width; most important first."""
WAYS = ("reference", "compiled, auto")
TABLE = Path(measured.__file__).with_name("measured.json")


@dataclass
class SizedBench(Bench):
    """A part of the inputs of a larger bench."""

    size: tuple[int, int, int] = BASE

    @classmethod
    def of(cls, bench: Bench, size: tuple[int, int, int]) -> SizedBench:
        frames, height, width = latent_frames(size[0]), size[1] // 8, size[2] // 8
        inputs = dict(bench.inputs)
        for name in ("x", "y"):
            inputs[name] = inputs[name][:, :, :frames, :height, :width].contiguous()
        inputs["audio_emb"] = inputs["audio_emb"][:, : size[0]]
        return cls(bench.model, bench.dit, inputs, steps=1, size=size)

    def report(self, name: str, seconds: list[float], **values: Any) -> None:
        super().report(name, seconds, size=self.size, **values)


def measure_machine() -> None:
    """Rates of attention and of copies from CPU memory, and what CUDA itself takes of the GPU."""
    tokens, dim, heads = 21504, 5120, 40
    q, k, v, grad = (torch.randn(1, tokens, dim, device=DEVICE, dtype=torch.bfloat16) for _ in range(4))

    def attend() -> None:
        Attention(q, k, v, heads).backward(grad, q, k, v)

    operations = 4 * tokens**2 * dim * (1 + ATTENTION_BACKWARD)
    pinned = torch.empty(2 * GIB, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(pinned, device=DEVICE)
    rates = {
        "attention_tflops": round(operations / 1e12 / seconds_of(attend), 1),
        "copy_gib_per_second": round(2 / seconds_of(lambda: there.copy_(pinned, non_blocking=True)), 1),
    }
    free, total = torch.cuda.mem_get_info()
    rates["context_gib"] = round((total - free - torch.cuda.memory_reserved()) / GIB, 2)
    versions = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__.split("+")[0],
        "diffsynth": host.VERSION,
    }
    print(json.dumps({**versions, **rates}), flush=True)


def seconds_of(work: Any) -> float:
    """The least of five runs."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(minutes: float, sizes: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """The sizes in both ways, as far as time allows."""
    end = time.monotonic() + 60 * minutes
    measure_machine()
    clean()
    whole = Bench.make("14B", 1, (max(FRAMES), max(SIDES), max(SIDES)))
    rows = []
    for size in sizes:
        bench = SizedBench.of(whole, size)
        for way in WAYS:
            if time.monotonic() > end:
                print(json.dumps({"way": way, "size": size, "skipped": f"{minutes:g} minutes are over"}), flush=True)
                continue
            runner = None if way == "reference" else fast("auto")
            bench.attempt(f"{way}, {size}", lambda bench=bench, way=way, runner=runner: bench.train(way, runner))
        rows += bench.rows
    return rows


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Four plots: seconds and peak over frames and over the side of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    axes: dict[str, tuple[Sequence[int], str, Any]] = {
        "frames": (FRAMES, "frames of 512x512", lambda n: (n, 512, 512)),
        "side": (SIDES, "pixels a side, 81 frames", lambda n: (81, n, n)),
    }
    found = {(row["way"], tuple(row["size"])): row for row in rows}
    for axis, (sizes, label, size) in axes.items():
        places = [n for n in sizes if any((way, size(n)) in found for way in WAYS)]
        if len(places) < 2:
            print(json.dumps({"plots": f"over {axis}", "skipped": f"{len(places)} measured"}), flush=True)
            continue
        for what, unit in (("seconds", "seconds a step"), ("peak", "GiB")):
            series = {w: [found.get((w, size(n)), {}).get(what, math.nan) for n in places] for w in WAYS}
            svg = line_plot(series, title=f"14B, {what}", x_label=label, y_label=unit, x=places)
            (folder / f"scaling_{what}_{axis}.svg").write_text(svg, encoding="utf-8")


def table_rows(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `measured.json` from those of `speed.py` and this program: the training steps of the published sizes."""
    for row in rows:
        if row.get("model") not in PRESETS or "kept" not in row:
            continue
        way = row["way"]
        frames, height, width = row.get("size", BASE)
        kept = re.findall(r"(\w+) (\d+)", (row["kept"] or "").split(" of ")[0])
        entry = {
            "model": row["model"],
            "frames": frames,
            "height": height,
            "width": width,
            "blocks": "host" if way.startswith("reference") else "eager" if "eager" in way else "compiled",
            "offload": "inputs in CPU memory" in way,
            "stream": "weights" in way and "CPU memory" in way,
            "kept": {name: int(count) for name, count in kept},
            "limit_gib": row["limit"],
            "seconds": row["seconds"],
            "peak_gib": row["peak"],
        }
        yield {name: value for name, value in entry.items() if value}


def write_table(files: Sequence[str]) -> None:
    """Put what the files say into the package."""
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    entries: list[dict[str, Any]] = []
    for file in files:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.startswith("{")]
        for row in rows:
            content |= {key: row[key] for key in content if key != "steps" and key in row}
        entries += table_rows(rows)
    content["torch"] = content["torch"].split("+")[0]
    content["date"] = date.today().isoformat()
    steps = ",\n    ".join(map(json.dumps, entries))
    head = json.dumps({key: value for key, value in content.items() if key != "steps"}, indent=2)
    TABLE.write_text(f'{head[:-2]},\n  "steps": [\n    {steps}\n  ]\n}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="begin no measurement after that")
    parser.add_argument("--only", nargs="+", type=int, metavar="N", help="of the sizes those with N frames or pixels")
    parser.add_argument("--out", type=Path, default=Path("build/scaling"), help="folder of the plots")
    parser.add_argument("--write_table", nargs="+", metavar="FILE", help="write measured.json from these JSON lines")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.write_table:
        write_table(args.write_table)
    else:
        expandable_segments()
        sizes = [size for size in SIZES if size[0] in args.only or size[1] in args.only] if args.only else SIZES
        draw(measure(args.minutes, sizes), args.out)


if __name__ == "__main__":
    main()
