"""How fast the denoiser trains, and in how much memory, by the ways of computing its blocks.

    python benchmarks/speed.py                      # all, most important first; 6 minutes of one GPU of 140 GB
    python benchmarks/speed.py --only 14B 14B-small
    python benchmarks/speed.py --only 1.3B accuracy

Random weights in bf16, LoRA of rank 128 with patch embedding and audio modules trained, AdamW; 81 frames of 512x512
(21,504 tokens), batch 1. Each way prints a JSON line when it is done: seconds (median; the first step, which compiles,
apart), the GiB that were taken before it, at its peak, and by the allocator, how often the allocator had to give memory
back to go on, and how far the loss and gradients are from the reference's. A table of all comes last.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from random_models import add_random_lora, random_dit, random_inputs

from diffsynth_omniavatar.media.timeline import latent_frames
from diffsynth_omniavatar.model.blocks.gpu_memory import expandable_segments
from diffsynth_omniavatar.model.blocks.memory_plan import GIB, describe
from diffsynth_omniavatar.model.blocks.runner import BlockRunner
from diffsynth_omniavatar.model.config import PRESETS
from diffsynth_omniavatar.model.dit import OmniAvatarDiT

PARTS = ("14B", "14B-small", "1.3B", "accuracy")
DEVICE = torch.device("cuda")


@dataclass
class Bench:
    """A model with LoRA, its inputs, and what was measured."""

    model: str
    dit: OmniAvatarDiT
    inputs: dict[str, torch.Tensor]
    steps: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    truth: dict[str, torch.Tensor] = field(default_factory=dict)
    """Gradients of the reference, in CPU memory."""

    @classmethod
    def make(cls, model: str, steps: int, size: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16) -> Bench:
        config = PRESETS[model]
        torch.manual_seed(0)
        dit = random_dit(config, "cuda", dtype)
        add_random_lora(dit)
        latents = (latent_frames(size[0]), size[1] // 8, size[2] // 8)
        return cls(model, dit, random_inputs(config, latents, dtype=dtype), steps)

    def loss(self, **flags: bool) -> torch.Tensor:
        target = self.inputs["x"].float()
        return (self.dit(**self.inputs, **flags).float() - target).square().mean()

    def train(self, name: str, runner: BlockRunner | None, *, limit: float | None = None, **flags: bool) -> float:
        """Measure training steps; the peak in GiB. A learning rate of zero leaves the weights as they are."""
        self.dit.runner = runner
        trained = {name: value for name, value in self.dit.named_parameters() if value.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=0.0)
        seconds, first, deviation, retries = [], 0.0, {}, 0
        before = torch.cuda.memory_allocated() / GIB
        with memory_limit(limit):
            for step in range(self.steps + 1):
                if step == 1:
                    torch.cuda.reset_peak_memory_stats()
                    retries = torch.cuda.memory_stats()["num_alloc_retries"]
                start = time.perf_counter()
                loss = self.loss(**{"use_gradient_checkpointing": True, **flags})
                loss.backward()
                if step == 0:
                    torch.cuda.synchronize()
                    first = time.perf_counter() - start
                    deviation = self.compare(loss, trained)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                torch.cuda.synchronize()
                if step:
                    seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / GIB
        plan = list(runner.plans.values())[-1] if runner is not None and runner.plans else None
        self.report(
            name,
            seconds,
            limit=limit,
            before=round(before, 1),
            peak=round(peak, 1),
            retries=torch.cuda.memory_stats()["num_alloc_retries"] - retries,
            reserved=round(torch.cuda.max_memory_reserved() / GIB, 1),
            first=round(first, 1),
            kept=None if plan is None else describe(plan),
            **deviation,
        )
        return peak

    def compare(self, loss: torch.Tensor, trained: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Deviation from the first that was measured: relative, of the norm of all gradients; and their cosine."""
        if not self.truth:
            self.truth = {name: value.grad.cpu() for name, value in trained.items()}
            return {"loss": loss.item()}
        difference = product = found = wanted = torch.zeros((), device=DEVICE, dtype=torch.float64)
        for name, value in trained.items():
            mine, theirs = value.grad.float(), self.truth[name].to(DEVICE).float()
            difference = difference + (mine - theirs).square().sum()
            product = product + (mine * theirs).sum()
            found, wanted = found + mine.square().sum(), wanted + theirs.square().sum()
        cosine = product / (found * wanted).sqrt()
        return {
            "loss": loss.item(),
            "gradient_deviation": float(f"{(difference / wanted).sqrt().item():.2e}"),
            "one_minus_cosine": float(f"{1 - cosine.item():.1e}"),
        }

    def report(self, name: str, seconds: list[float], **values: Any) -> None:
        row = {"model": self.model, "way": name, "seconds": round(sorted(seconds)[len(seconds) // 2], 3), **values}
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def attempt(self, name: str, measure: Callable[[], Any]) -> Any:
        """Run a measurement; whatever stops it is printed, and the next one goes on."""
        clean()
        try:
            return measure()
        except Exception:
            reason = traceback.format_exc()[-1500:]
        self.dit.zero_grad(set_to_none=True)
        clean()
        left = round(torch.cuda.memory_allocated() / GIB, 1)
        print(json.dumps({"model": self.model, "way": name, "failed": reason, "left": left}), flush=True)
        return None


def clean() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


@contextmanager
def memory_limit(gib: float | None) -> Iterator[None]:
    """Within it, this process cannot have more of the GPU."""
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if gib is None else min(1.0, gib * GIB / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def fast(memory: Any) -> BlockRunner:
    return BlockRunner(compile=True, activation_memory=memory)


def train_14b(bench: Bench) -> None:
    """The reference, the ways within several limits of memory, and where the time goes."""
    reference = round(bench.attempt("reference", lambda: bench.train("reference", None)) or 44.5, 1)
    for gib in (120, reference, 80, 48):
        name = f"compiled, auto, {gib} GiB"
        bench.attempt(name, partial(bench.train, name, fast("auto"), limit=gib))
    bench.attempt("profile", partial(profile, bench, "compiled, auto", fast("auto")))
    bench.attempt("profile", partial(profile, bench, "reference", None))
    name, flags = (
        f"compiled, inputs in CPU memory, auto, {reference} GiB",
        {"use_gradient_checkpointing_offload": True},
    )
    bench.attempt(name, partial(bench.train, name, fast("auto"), limit=reference, **flags))


def profile(bench: Bench, name: str, runner: BlockRunner | None, kernels: int = 24) -> None:
    """Where a step's time goes, and what in it makes the process wait for the GPU; after a step that compiles."""
    bench.dit.runner = runner
    bench.loss(use_gradient_checkpointing=True).backward()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with warnings.catch_warnings(record=True) as caught, torch.profiler.profile(activities=activities) as trace:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            bench.loss(use_gradient_checkpointing=True).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    bench.dit.zero_grad(set_to_none=True)
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]
    averages = sorted(trace.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in averages)
    facts = {"kernels, s": round(total / 1e6, 3), "waits for the GPU": len(waits), "at": sorted(set(waits))[:5]}
    print(json.dumps({"profile": name, **facts}), flush=True)
    for row in averages[:kernels]:
        milliseconds = round(row.self_device_time_total / 1e3, 1)
        print(json.dumps({"profile": name, "ms": milliseconds, "calls": row.count, "kernel": row.key[:150]}))


def train_14b_small(bench: Bench) -> None:
    """24 GiB: the frozen weights come from CPU memory. Last: they do not come back."""
    runner = fast("auto")

    def measure() -> None:
        start = time.perf_counter()
        runner.stream_weights(bench.dit.blocks, DEVICE)
        clean()
        print(json.dumps({"seconds to move the weights": round(time.perf_counter() - start, 1)}), flush=True)
        name = "compiled, weights and inputs in CPU memory, auto, 24 GiB"
        bench.train(name, runner, limit=24, use_gradient_checkpointing_offload=True)

    bench.attempt("24 GiB", measure)


def accuracy(steps: int) -> None:
    """How far bf16 gradients are from those in float32: the host's blocks, and these."""
    size = (33, 256, 256)
    exact = Bench.make("1.3B", steps, size, torch.float32)
    exact.model = "1.3B, 2,304 tokens"
    exact.attempt("float32", lambda: exact.train("float32, reference", None))
    exact.dit.to(torch.bfloat16)
    exact.inputs = {name: value.to(torch.bfloat16) for name, value in exact.inputs.items()}
    exact.attempt("host", lambda: exact.train("bf16, reference", None))
    exact.attempt("own", lambda: exact.train("bf16, own blocks, eager", BlockRunner(activation_memory=0.0)))
    show(exact.rows)


def show(rows: list[dict[str, Any]]) -> None:
    measured = "seconds before peak reserved retries first gradient_deviation one_minus_cosine kept"
    names = ("model", "way", "limit", *measured.split())
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        print("| " + " | ".join("" if row.get(name) is None else str(row[name]) for name in names) + " |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    expandable_segments()
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    size = (81, 512, 512)
    if any(part.startswith("14B") for part in args.only):
        bench = Bench.make("14B", args.steps, size)
        print(json.dumps({"expandable": torch.cuda.memory_snapshot()[0].get("is_expandable")}), flush=True)
        if "14B" in args.only:
            train_14b(bench)
        if "14B-small" in args.only:
            train_14b_small(bench)
        show(bench.rows)
        del bench
    if "1.3B" in args.only:
        clean()
        torch._dynamo.reset()  # or the widths of the tokens would become variable
        small = Bench.make("1.3B", args.steps, size)
        small.attempt("reference", lambda: small.train("reference", None))
        small.attempt("auto", lambda: small.train("compiled, auto", fast("auto")))
        show(small.rows)
        del small
    if "accuracy" in args.only:
        clean()
        accuracy(1)


if __name__ == "__main__":
    main()
