"""How far the gradients of compiled blocks are from those of DiffSynth's blocks, where autograd makes them, and LoRA's.

    python benchmarks/gradients.py             # 3 minutes of one GPU of 80 GB

Random weights at the widths of the small model, 1.3B and 14B; the published ones with four layers. All weights train in
float32 under bf16 autocast and in bf16, LoRA in bf16 under autocast. A line for each, with this package's blocks as
they are and compiled: the deviation of all gradients, relative, of their norm; the norm; the parameter that deviates
most; seconds of the first pass, which compiles, and milliseconds of later ones.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import torch
from random_models import add_random_lora, random_dit, random_inputs

from diffsynth_omniavatar.model.blocks.runner import BlockRunner
from diffsynth_omniavatar.model.config import PRESETS, OmniAvatarConfig
from diffsynth_omniavatar.model.dit import OmniAvatarDiT
from diffsynth_omniavatar.model.small_family import NANO

DEVICE = "cuda"
PASSES = 5
MODELS: dict[str, tuple[OmniAvatarConfig, int, tuple[int, int, int]]] = {
    "nano, batch of 64": (NANO.dit, 64, (9, 16, 16)),
    "nano, batch of 256": (NANO.dit, 256, (9, 16, 16)),
    "1.3B, 4 layers": (replace(PRESETS["1.3B"], num_layers=4), 1, (9, 32, 32)),
    "14B, 4 layers": (replace(PRESETS["14B"], num_layers=4), 1, (9, 32, 32)),
}
"""The model, clips in a batch, and latent frames, rows and columns."""
WAYS = {
    "all weights, float32, autocast": (torch.float32, True, False),
    "all weights, bf16": (torch.bfloat16, False, False),
    "LoRA, bf16, autocast": (torch.bfloat16, True, True),
}
"""Format of the weights, whether autocast is on, whether LoRA trains."""

Gradients = dict[str, torch.Tensor]


def make(config: OmniAvatarConfig, dtype: torch.dtype, lora: bool) -> OmniAvatarDiT:
    torch.manual_seed(0)
    dit = random_dit(config, DEVICE, dtype)
    if lora:
        add_random_lora(dit)
    else:
        dit.requires_grad_()
    return dit


def gradients(dit: OmniAvatarDiT, inputs: dict[str, torch.Tensor], autocast: bool) -> Gradients:
    dit.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        loss = (dit(**inputs).float() - inputs["x"].float()).square().mean()
    loss.backward()
    return {name: value.grad.float() for name, value in dit.named_parameters() if value.grad is not None}


def deviation(found: Gradients, wanted: Gradients) -> dict[str, object]:
    difference = sum((found[name] - value).square().sum() for name, value in wanted.items())
    norm = sum(value.square().sum() for value in wanted.values())
    single = {name: ((found[name] - value).norm() / value.norm()).item() for name, value in wanted.items()}
    worst = max(single, key=lambda name: single[name])
    return {
        "deviation": float(f"{(difference / norm) ** 0.5:.2e}"),
        "norm": float(f"{norm**0.5:.3g}"),
        "worst": f"{worst} {single[worst]:.1e}",
    }


def measure(model: str, way: str) -> None:
    config, batch, size = MODELS[model]
    dtype, autocast, lora = WAYS[way]
    dit, inputs = make(config, dtype, lora), random_inputs(config, size, batch, DEVICE, dtype)
    wanted = gradients(dit, inputs, autocast)
    for compiled in (False, True):
        torch._dynamo.reset()
        dit.runner = BlockRunner(compile=compiled)
        start = time.perf_counter()
        found = gradients(dit, inputs, autocast)
        torch.cuda.synchronize()
        first = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(PASSES):
            gradients(dit, inputs, autocast)
        torch.cuda.synchronize()
        later = (time.perf_counter() - start) / PASSES
        facts = {"model": model, "way": way, "compiled": compiled, **deviation(found, wanted)}
        print(json.dumps({**facts, "first, s": round(first, 1), "ms": round(1e3 * later)}), flush=True)


def main() -> None:
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)
    for model in MODELS:
        for way in WAYS:
            measure(model, way)


if __name__ == "__main__":
    main()
