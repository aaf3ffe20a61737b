"""Generate a video end to end with random weights: seconds of each part, and peak memory.

    python benchmarks/generate_video.py --steps 4 --cfg_scale 1 --compile --quantize fp8 --quantize_attention
    python benchmarks/generate_video.py --sampler lightx2v4 --compile
    python benchmarks/generate_video.py --compile --stream_weights --limit 12
    torchrun --nproc_per_node 2 benchmarks/generate_video.py --compile --shard_weights
    python benchmarks/generate_video.py --model tiny --height 64 --width 64 --sampler lightx2v4    # without a GPU

A table has the parts, a line of JSON everything. The first video, which compiles, is not counted. The picture is noise;
the work is that of the real model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_models import random_pipeline
from speed import clean, memory_limit

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.generate import generate
from diffsynth_omniavatar.generation.loading import load_pipeline
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.placement import Placement, place
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.timeline import PIXELS_PER_TOKEN
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.model.blocks.memory_plan import GIB
from diffsynth_omniavatar.model.blocks.process_grid import ProcessGrid
from diffsynth_omniavatar.model.blocks.quantized import METHODS
from diffsynth_omniavatar.model.blocks.runner import BlockRunner
from diffsynth_omniavatar.model.blocks.sequence_parallel import SequenceParallel
from diffsynth_omniavatar.model.config import PRESETS
from diffsynth_omniavatar.model.quantize import layer_names
from diffsynth_omniavatar.model.sampling import SAMPLERS, SOLVERS
from diffsynth_omniavatar.nano.family import write_random_family

WRITING = "writing"


def prepared_pipeline(args: argparse.Namespace, folder: str) -> OmniAvatarPipeline:
    """The pipeline with its weights where the flags want them; `folder` is for those of the tiny model."""
    if args.model == "tiny":
        return load_pipeline(folder=write_random_family(folder), dtype="float32")
    pipe = random_pipeline(PRESETS[args.model])
    parallel = SequenceParallel.start("cuda") if "RANK" in os.environ else None
    grid = None if parallel is None else ProcessGrid(parallel)
    pipe.dit.runner = BlockRunner(
        compile=args.compile, parallel=parallel, grid=grid, attention_fp8=args.quantize_attention
    )
    if not (args.compile or args.quantize_attention or args.stream_weights or parallel):
        pipe.dit.runner = None  # the host's own blocks
    placement = Placement(args.quantize, layer_names(args.keep_bf16), args.stream_weights, args.shard_weights)
    if placement.starts_on_cpu:
        pipe.to(device="cpu")
        pipe.dit.to("cpu")
        place(pipe, placement, "cuda")
    clean()
    return pipe


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(seconds: Counter[str], whole: float) -> str:
    """Parts of a video, with how often they ran; what no part has is in the last line but one. Frames are written
    while the VAE decodes, so that its time has that of writing in it.
    """
    lines = [("part", "calls", "s a call", "s", "%")]
    parts = [part for part in seconds if not part.endswith(", calls")]
    for part in parts:
        calls, spent = seconds[f"{part}, calls"], seconds[part]
        lines.append((part, f"{calls:.0f}", f"{spent / calls:.3f}", f"{spent:.2f}", f"{100 * spent / whole:.0f}"))
    rest = whole - sum(seconds[part] for part in parts if part != WRITING)
    for name, spent in (("rest", rest), ("all", whole)):
        lines.append((name, "", "", f"{spent:.2f}", f"{100 * spent / whole:.0f}"))
    return "\n".join(f"{name:<12}{calls:>7}{each:>10}{spent:>9}{share:>5}" for name, calls, each, spent, share in lines)


def timed(seconds: Counter[str], owner: Any, method: str, part: str) -> None:
    """Add the seconds of each call of a method to those of a part. Writing must not wait for the GPU, which decodes."""
    original = getattr(owner, method)
    wait = wait_for_gpu if part != WRITING else lambda: None

    def call(*inputs: Any, **kwargs: Any) -> Any:
        wait()
        start = time.perf_counter()
        result = original(*inputs, **kwargs)
        wait()
        seconds[part] += time.perf_counter() - start
        seconds[f"{part}, calls"] += 1
        return result

    setattr(owner, method, call)


def make(pipe: OmniAvatarPipeline, args: argparse.Namespace, folder: str) -> Any:
    noise = np.random.default_rng(0).standard_normal((1, int(16000 * args.seconds))).astype(np.float32)
    return generate(
        pipe,
        prompt="A person speaks to the camera.",
        image=Image.new("RGB", (args.width, args.height), "gray"),
        audio=Sound(0.1 * noise, 16000),
        out=Path(folder) / "video.mp4",
        height=args.height,
        width=args.width,
        sampler=args.sampler,
        steps=args.steps,
        solver=args.solver,
        cfg_scale=args.cfg_scale,
        audio_cfg_scale=args.audio_cfg_scale,
        max_tokens=args.frames * args.height * args.width // PIXELS_PER_TOKEN,
        show_progress=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*PRESETS, "tiny"], default="14B")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=2.9, help="of sound; 2.9 are 81 frames")
    parser.add_argument("--frames", type=int, default=81, help="of a chunk")
    parser.add_argument("--sampler", choices=list(SAMPLERS), help="preset of the four flags below")
    parser.add_argument("--steps", type=int, help="default: 25")
    parser.add_argument("--solver", choices=SOLVERS)
    parser.add_argument("--cfg_scale", type=float, help="1 for one pass a step; default: 4.5")
    parser.add_argument("--audio_cfg_scale", type=float)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quantize", choices=METHODS)
    parser.add_argument("--keep_bf16", default="")
    parser.add_argument("--quantize_attention", action="store_true")
    parser.add_argument("--stream_weights", action="store_true")
    parser.add_argument("--shard_weights", action="store_true", help="with torchrun: a part of them on each GPU")
    parser.add_argument("--limit", type=float, help="GiB of the GPU that the run may have")
    args = parser.parse_args()
    if args.sampler is None and args.steps is None:
        args.steps = 25
    with tempfile.TemporaryDirectory() as folder:
        measure(args, folder)


def measure(args: argparse.Namespace, folder: str) -> None:
    """Make a video twice, and print what the second took."""
    on_gpu = torch.cuda.is_available()
    pipe = prepared_pipeline(args, folder)
    weights = torch.cuda.memory_allocated() / GIB if on_gpu else 0.0
    seconds: Counter[str] = Counter()
    timed(seconds, pipe, "encode_prompt", "text")
    timed(seconds, pipe, "encode_speech", "speech")
    timed(seconds, pipe.vae, "encode", "VAE encode")
    timed(seconds, pipe.dit, "forward", "denoiser")
    timed(seconds, pipe.vae, "decode", "VAE decode")
    timed(seconds, VideoWriter, "write", WRITING)
    with memory_limit(args.limit) if on_gpu else contextlib.nullcontext():
        start = time.perf_counter()
        make(pipe, args, folder)
        first = time.perf_counter() - start
        seconds.clear()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = make(pipe, args, folder)
        whole = time.perf_counter() - start
        frames = probe_video(result.path).frames if pipe.is_first_process else 0
    if not pipe.is_first_process:
        return
    print(table(seconds, whole))
    print(
        json.dumps(
            {
                **{name: value for name, value in vars(args).items() if value},
                "frames": frames,
                "chunks": result.chunks,
                "seconds": round(whole, 2),
                "first video": round(first, 1),
                **{name: round(value, 2) for name, value in seconds.items()},
                "weights_gib": round(weights, 1),
                "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 1) if on_gpu else None,
                "gpu": torch.cuda.get_device_name() if on_gpu else None,
                "torch": torch.__version__,
                "diffsynth": host.VERSION,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
