"""How fast the denoiser trains and generates, and in how much memory, by the ways of computing its blocks.

    python benchmarks/speed.py                      # all, most important first; 8 minutes of one GPU of 140 GB
    python benchmarks/speed.py --only 14B-train 14B-generate
    python benchmarks/speed.py --only 14B-small 1.3B accuracy

Random weights in bf16, LoRA of rank 128 with patch embedding and audio modules trained, AdamW; 81 frames of 512x512
(21,504 tokens), batch 1. Each way prints a JSON line when it is done: seconds (median; the first step, which compiles,
apart), peak memory, and how far its loss and gradients are from the reference's. A table of all comes last.
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
from typing import Any

import torch
from random_models import random_dit

from diffsynth_omniavatar.blocks import GIB, BlockRunner
from diffsynth_omniavatar.config import PRESETS, LoRAConfig
from diffsynth_omniavatar.dit import OmniAvatarDiT
from diffsynth_omniavatar.memory_plan import describe
from diffsynth_omniavatar.timeline import latent_frames
from diffsynth_omniavatar.training.module import add_lora, select_trainable

PARTS = ("14B-train", "14B-generate", "14B-small", "1.3B", "accuracy")
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
    """Gradients of the reference, in main memory."""

    @classmethod
    def make(cls, model: str, steps: int, size: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16) -> Bench:
        config = PRESETS[model]
        torch.manual_seed(0)
        dit = random_dit(config, "cuda", dtype)
        add_lora(dit, LoRAConfig())
        select_trainable(dit, full=False)
        for name, value in dit.named_parameters():
            if "lora_B" in name:  # zeros at the start of a training, which leave the gradients of A zero
                torch.nn.init.normal_(value, std=0.01)
        frames, height, width = latent_frames(size[0]), size[1] // 8, size[2] // 8

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=DEVICE, dtype=dtype)

        inputs = {
            "x": random(1, 16, frames, height, width),
            "timestep": torch.tensor([500.0], device=DEVICE, dtype=dtype),
            "context": random(1, 512, config.text_dim),
            "y": random(1, config.in_dim - 16, frames, height, width),
            "audio_emb": random(1, size[0], config.audio_dim),
        }
        return cls(model, dit, inputs, steps)

    def loss(self, **flags: bool) -> torch.Tensor:
        target = self.inputs["x"].float()
        return (self.dit(**self.inputs, **flags).float() - target).square().mean()

    def train(self, name: str, runner: BlockRunner | None, *, limit: float | None = None, **flags: bool) -> float:
        """Measure training steps; the peak in GiB. A learning rate of zero leaves the weights as they are."""
        self.dit.runner = runner
        trained = {name: value for name, value in self.dit.named_parameters() if value.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=0.0)
        seconds, first, deviation = [], 0.0, {}
        with memory_limit(limit):
            for step in range(self.steps + 1):
                if step == 1:
                    torch.cuda.reset_peak_memory_stats()
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
            peak=round(peak, 1),
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

    @torch.no_grad()
    def generate(self, name: str, runner: BlockRunner | None, *, batched: bool) -> None:
        """Measure the two passes of a guided step."""
        self.dit.runner = runner
        passes = [self.inputs] * 2
        if batched:
            passes = [{key: value if key == "timestep" else torch.cat([value] * 2) for key, value in passes[0].items()}]
        seconds = []
        for step in range(self.steps + 1):
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            for inputs in passes:
                self.dit(**inputs)
            torch.cuda.synchronize()
            if step:
                seconds.append(time.perf_counter() - start)
            else:
                first = time.perf_counter() - start
        self.report(name, seconds, peak=round(torch.cuda.max_memory_allocated() / GIB, 1), first=round(first, 1))

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
            print(json.dumps({"model": self.model, "way": name, "failed": traceback.format_exc()[-1500:]}), flush=True)
            self.dit.zero_grad(set_to_none=True)
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
    """The reference, and the ways within several limits of memory."""
    reference = bench.attempt("reference", lambda: bench.train("reference", None)) or 44.5
    bench.attempt("120 GiB", lambda: bench.train("compiled, auto, 120 GiB", fast("auto"), limit=120))
    least = bench.attempt("0", lambda: bench.train("compiled, all recomputed", fast(0.0)))
    if least is not None:
        room = max(0.0, reference - least - 0.1)
        bench.attempt("same", lambda: bench.train(f"compiled, {room:.1f} GiB: the reference's memory", fast(room)))
        more = room + 40 * 21504 * 5120 * 2 / GIB - 1.5
        bench.attempt(
            "same, offload",
            lambda: bench.train(
                f"compiled, inputs in main memory, {more:.1f} GiB", fast(more), use_gradient_checkpointing_offload=True
            ),
        )
    bench.attempt("80 GiB", lambda: bench.train("compiled, auto, 80 GiB", fast("auto"), limit=80))
    bench.attempt("48 GiB", lambda: bench.train("compiled, auto, 48 GiB", fast("auto"), limit=48))
    bench.attempt("profile", lambda: profile(bench, fast("auto")))
    bench.attempt("eager", lambda: bench.train("own blocks, eager, recomputed", BlockRunner(activation_memory=0.0)))


def profile(bench: Bench, runner: BlockRunner) -> None:
    """Where a step's time goes, and what in it makes the process wait for the GPU."""
    bench.dit.runner = runner
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with warnings.catch_warnings(record=True) as caught, torch.profiler.profile(activities=activities) as trace:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            bench.loss(use_gradient_checkpointing=True).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    bench.dit.zero_grad(set_to_none=True)
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    print(json.dumps({"waits for the GPU in a step": len(waits), "at": sorted(set(waits))[:5]}), flush=True)
    print(trace.key_averages().table(sort_by="self_device_time_total", row_limit=22, max_name_column_width=70))


def generate_14b(bench: Bench) -> None:
    for name, runner, batched in (
        ("guided step, reference", None, False),
        ("guided step, compiled", BlockRunner(compile=True), False),
        ("guided step, compiled, one batch", BlockRunner(compile=True), True),
    ):
        bench.attempt(name, lambda n=name, r=runner, b=batched: bench.generate(n, r, batched=b))


def train_14b_small(bench: Bench) -> None:
    """24 GiB: the frozen weights come from main memory. Last: they do not come back."""
    runner = fast("auto")

    def measure() -> None:
        start = time.perf_counter()
        runner.stream_weights(bench.dit.blocks, DEVICE)
        clean()
        print(json.dumps({"seconds to move the weights": round(time.perf_counter() - start, 1)}), flush=True)
        name = "compiled, weights and inputs in main memory, auto, 24 GiB"
        bench.train(name, runner, limit=24, use_gradient_checkpointing_offload=True)

    bench.attempt("24 GiB", measure)


def optimizers(bench: Bench) -> None:
    """AdamW alone, as the host makes it and fused."""
    values = [value for value in bench.dit.parameters() if value.requires_grad]
    for value in values:
        value.grad = torch.zeros_like(value)
    for name, options in (("AdamW", {}), ("AdamW, fused", {"fused": True})):
        optimizer = torch.optim.AdamW(values, lr=0.0, **options)
        seconds = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            optimizer.step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        bench.report(name, seconds)
    bench.dit.zero_grad(set_to_none=True)


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
    names = ("model", "way", "seconds", "peak", "first", "gradient_deviation", "one_minus_cosine", "kept")
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
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    size = (81, 512, 512)
    if any(part.startswith("14B") for part in args.only):
        bench = Bench.make("14B", args.steps, size)
        if "14B-train" in args.only:
            train_14b(bench)
            bench.attempt("optimizers", lambda: optimizers(bench))
        if "14B-generate" in args.only:
            generate_14b(bench)
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
