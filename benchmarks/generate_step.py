"""How long a guided denoising step takes, by the ways of computing it, and how far its predictions are from the host's.

    python benchmarks/generate_step.py                                        # one GPU of 80 GB, 4 minutes
    python benchmarks/generate_step.py --only 1.3B small
    torchrun --nproc_per_node 2 benchmarks/generate_step.py                   # several GPUs to a step, 2.5 minutes

A guided step has two passes of the denoiser, with sound and prompt and without, and three where the sound has its own
guidance. Several GPUs share each pass's tokens, or make different passes, with all weights or a part of them each.
Random weights in bf16; 81 frames of 512x512 (21,504 tokens), small: 33 frames of 256x256 (2,304). Each way prints a
JSON line when it is done: seconds (median; the first step, which compiles, apart), the reference's seconds by them,
peak memory, and the relative norm of the difference of its predictions from the reference's; with several GPUs both
against one GPU too. A table comes last.

Which steps TeaCache skips is decided by the trained time embedding, which random weights do not have. So its computed
and its skipped steps are timed apart, and the time of 25 steps is told by how many are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from random_models import random_dit, random_inputs
from speed import clean

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.pipeline import TEA_CACHE_MODELS
from diffsynth_omniavatar.media.timeline import latent_frames
from diffsynth_omniavatar.model.blocks.memory_plan import GIB
from diffsynth_omniavatar.model.blocks.process_grid import ProcessGrid
from diffsynth_omniavatar.model.blocks.quantized import METHODS
from diffsynth_omniavatar.model.blocks.runner import BlockRunner
from diffsynth_omniavatar.model.blocks.sequence_parallel import SequenceParallel
from diffsynth_omniavatar.model.config import PRESETS
from diffsynth_omniavatar.model.dit import OmniAvatarDiT
from diffsynth_omniavatar.model.quantize import quantize_blocks

PARTS = {
    "14B": ("14B", (81, 512, 512)),
    "1.3B": ("1.3B", (81, 512, 512)),
    "small": ("1.3B", (33, 256, 256)),
}
"""Part -> model; frames, height, width."""
DEVICE = torch.device("cuda")
STEPS = 25
COLUMNS = ("part", "way", "seconds", "speedup", "peak", "first", "deviation", "of_one_gpu", "from_one_gpu")

Inputs = dict[str, torch.Tensor]


@dataclass
class Bench:
    """A denoiser, the inputs of the passes of a step, and what was measured."""

    part: str
    dit: OmniAvatarDiT
    passes: list[Inputs]
    """With prompt and sound; with neither; with the prompt alone."""
    repeats: int
    prints: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)
    predictions: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def make(cls, part: str, repeats: int, prints: bool = True) -> Bench:
        model, (frames, height, width) = PARTS[part]
        config = PRESETS[model]
        dit = gated_dit(part)
        latents = (latent_frames(frames), height // 8, width // 8)

        positive = random_inputs(config, latents)
        silent = {**positive, "audio_emb": torch.zeros_like(positive["audio_emb"])}
        passes = [positive, {**silent, "context": torch.randn_like(positive["context"])}, silent]
        return cls(part, dit, passes, repeats, prints)

    def measure(self, name: str, runner: BlockRunner | None, passes: int = 2, batched: bool = False) -> None:
        """Time a step; the first way is the reference."""
        inputs = self.passes[:passes]
        if batched:
            inputs = [{key: join([one[key] for one in inputs]) for key in inputs[0]}]
        seconds, first = [], 0.0
        for repeat in range(self.repeats + 1):
            if repeat == 1:
                torch.cuda.reset_peak_memory_stats()
            taken, predictions = self.step(runner, inputs)
            if repeat:
                seconds.append(taken)
            else:
                first = taken
        self.predictions[name] = predictions[:2]
        self.report(name, seconds, first=round(first, 1), peak=round(torch.cuda.max_memory_allocated() / GIB, 1))

    @torch.no_grad()
    def step(
        self, runner: BlockRunner | None, inputs: Sequence[Inputs], caches: Sequence[Any] = ()
    ) -> tuple[float, torch.Tensor]:
        """Seconds and predictions [pass, 16, T, h, w] of a step."""
        self.dit.runner = runner
        caches = caches or [None] * len(inputs)
        meet()
        start = time.perf_counter()

        def prediction(index: int) -> torch.Tensor:
            return self.dit(**inputs[index], tea_cache=caches[index])

        with contextlib.nullcontext() if runner is None else runner.sharing_passes(len(inputs)) as others:
            if others is None:
                found = [prediction(index) for index in range(len(inputs))]
            else:
                found = others.predictions(len(inputs), prediction)
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cat(found)

    def eight_bits(self, compiled: BlockRunner) -> None:
        """Layers and attention in 8 bits; the weights are gone afterwards."""
        attention = BlockRunner(compile=True, attention_fp8=True)
        self.attempt("attention", lambda: self.measure("compiled, attention fp8", attention))
        for method in METHODS:
            self.dit = None
            clean()
            self.dit = gated_dit(self.part)
            quantize_blocks(self.dit, method)
            clean()
            self.attempt(method, functools.partial(self.measure, method, compiled))
            if method == "fp8":
                self.attempt("both", lambda: self.measure("fp8, attention fp8", attention))

    def tea_cache(self, runner: BlockRunner) -> None:
        """Steps that TeaCache computes and skips, and what follows for a video."""
        computed, skipped = [], []
        for _ in range(self.repeats):
            model = TEA_CACHE_MODELS[self.dit.dim]
            caches = [host.TeaCache(STEPS, float("inf"), model) for _ in range(2)]  # skips all but the first and last
            computed.append(self.step(runner, self.passes[:2], caches)[0])
            skipped.append(self.step(runner, self.passes[:2], caches)[0])
        self.report("TeaCache, compiled, computed step", computed)
        self.report("TeaCache, compiled, skipped step", skipped)
        reference, all_steps = self.rows[0]["seconds"] * STEPS, {}
        for count in range(STEPS - 1):  # the first and the last are computed always
            all_steps[count] = (STEPS - count) * median(computed) + count * median(skipped)
        enough = [count for count, taken in all_steps.items() if taken <= reference / 2]
        self.say(
            {
                "part": self.part,
                f"seconds of {STEPS} steps, reference": round(reference, 1),
                "with TeaCache, by skipped steps": {n: round(taken, 1) for n, taken in all_steps.items() if n % 4 == 0},
                "skipped steps that halve the reference's time": enough[0] if enough else None,
            }
        )

    def report(self, name: str, seconds: list[float], **values: Any) -> None:
        row = {"part": self.part, "way": name, "seconds": round(median(seconds), 4), **values}
        row["speedup"] = round((self.rows[0] if self.rows else row)["seconds"] / row["seconds"], 3)
        if name in self.predictions and self.rows:
            row["deviation"] = self.deviation(name, self.rows[0]["way"])
            alone = next((row for row in self.rows if row["way"] == "one GPU"), None)
            if alone is not None:
                row["of_one_gpu"] = round(alone["seconds"] / row["seconds"], 3)
                row["from_one_gpu"] = self.deviation(name, "one GPU")
        self.rows.append(row)
        self.say(row)

    def deviation(self, name: str, other: str) -> float:
        """Relative norm of the difference of predictions."""
        mine, theirs = self.predictions[name].float(), self.predictions[other].float()
        return float(f"{((mine - theirs).norm() / theirs.norm()).item():.2e}")

    def attempt(self, name: str, measure: Callable[[], Any]) -> None:
        """Run a measurement; whatever stops it is printed, and the next one goes on."""
        clean()
        try:
            measure()
        except Exception:
            self.say({"part": self.part, "way": name, "failed": traceback.format_exc()[-1500:]})

    def say(self, values: dict[str, Any]) -> None:
        if self.prints:
            print(json.dumps(values), flush=True)

    def table(self) -> None:
        if not self.prints:
            return
        print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
        for row in self.rows:
            print("| " + " | ".join(str(row.get(name, "")) for name in COLUMNS) + " |")
        print(flush=True)


def gated_dit(part: str) -> OmniAvatarDiT:
    """The same random denoiser in each call, with gates of the size of one, so that every block matters."""
    torch.manual_seed(0)
    dit = random_dit(PRESETS[PARTS[part][0]], "cuda")
    for block in dit.blocks:
        torch.nn.init.normal_(block.modulation)
    return dit


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def join(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Inputs of several passes as a batch; the timestep is the same for all."""
    return values[0] if values[0].dim() == 1 else torch.cat(list(values))


def meet() -> None:
    """Wait until the GPU, and those of the other processes, have nothing to do."""
    torch.cuda.synchronize()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.cuda.synchronize()


def one_gpu(part: str, repeats: int, eight_bits: bool) -> None:
    bench, compiled = Bench.make(part, repeats), BlockRunner(compile=True)
    bench.attempt("reference", lambda: bench.measure("reference", None))
    bench.attempt("compiled", lambda: bench.measure("compiled", compiled))
    if eight_bits:
        bench.eight_bits(compiled)
        bench.table()
        return
    bench.attempt("TeaCache", lambda: bench.tea_cache(compiled))
    bench.attempt("three passes", lambda: bench.measure("compiled, three passes", compiled, passes=3))
    bench.attempt("one batch", lambda: bench.measure("compiled, one batch", compiled, batched=True))
    bench.attempt("eager", lambda: bench.measure("own blocks, eager", BlockRunner()))
    bench.table()


def several_gpus(part: str, repeats: int, parallel: SequenceParallel) -> None:
    bench = Bench.make(part, repeats, prints=parallel.rank == 0)
    many = f"{parallel.ranks} GPUs"
    bench.attempt("reference", lambda: bench.measure("reference", None))
    bench.attempt("one GPU", lambda: bench.measure("one GPU", BlockRunner(compile=True)))
    tokens = BlockRunner(compile=True, parallel=parallel)
    passes = BlockRunner(compile=True, parallel=parallel, grid=ProcessGrid(parallel))
    ways = {"each pass by all": tokens, "passes shared": passes}
    for name, runner in ways.items():
        bench.attempt(name, functools.partial(bench.measure, f"{many}, {name}", runner))
    passes.shard_weights(bench.dit.blocks, DEVICE)
    tokens.streamed = passes.streamed
    for name, runner in ways.items():
        bench.attempt(name, functools.partial(bench.measure, f"{many}, {name}, sharded", runner))
    bench.table()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="all; with several GPUs 14B and 1.3B")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--eight_bits", action="store_true", help="layers and attention in 8 bits instead of the rest")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parallel = SequenceParallel.start("cuda") if "RANK" in os.environ else None
    if parallel is None or parallel.rank == 0:
        print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    for part in args.only or list(PARTS)[: None if parallel is None else 2]:
        clean()
        torch._dynamo.reset()  # or the widths of the tokens would become variable
        if parallel is None:
            one_gpu(part, args.repeats, args.eight_bits)
        else:
            several_gpus(part, args.repeats, parallel)


if __name__ == "__main__":
    main()
