"""Generate a video end to end with random weights: seconds of each part, and peak memory.

    python benchmarks/generate_video.py --steps 4 --cfg_scale 1 --compile --quantize fp8 --quantize_attention
    python benchmarks/generate_video.py --compile --stream_weights --limit 12

The first video, which compiles, is not counted. The picture is noise; the work is that of the real model.
"""

from __future__ import annotations

import argparse
import json
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
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.placement import Placement, place
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.timeline import PIXELS_PER_TOKEN
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.model.blocks.quantized import METHODS
from diffsynth_omniavatar.model.blocks.runner import BlockRunner
from diffsynth_omniavatar.model.config import PRESETS
from diffsynth_omniavatar.model.quantize import layer_names

GIB = 2**30


def prepared_pipeline(args: argparse.Namespace) -> OmniAvatarPipeline:
    """The pipeline with its weights where the flags want them."""
    pipe = random_pipeline(PRESETS[args.model])
    pipe.dit.runner = BlockRunner(compile=args.compile, attention_fp8=args.quantize_attention)
    if not (args.compile or args.quantize_attention or args.stream_weights):
        pipe.dit.runner = None  # the host's own blocks
    placement = Placement(args.quantize, layer_names(args.keep_bf16), args.stream_weights)
    if placement.starts_on_cpu:
        pipe.to(device="cpu")
        pipe.dit.to("cpu")
        place(pipe, placement, "cuda")
    clean()
    return pipe


def timed(seconds: Counter[str], owner: Any, method: str, part: str) -> None:
    """Add the seconds of each call of a method to those of a part."""
    original = getattr(owner, method)

    def call(*inputs: Any, **kwargs: Any) -> Any:
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = original(*inputs, **kwargs)
        torch.cuda.synchronize()
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
        steps=args.steps,
        cfg_scale=args.cfg_scale,
        audio_cfg_scale=args.audio_cfg_scale,
        max_tokens=args.frames * args.height * args.width // PIXELS_PER_TOKEN,
        show_progress=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(PRESETS), default="14B")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=2.9, help="of sound; 2.9 are 81 frames")
    parser.add_argument("--frames", type=int, default=81, help="of a chunk")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg_scale", type=float, default=4.5, help="1 for one pass a step")
    parser.add_argument("--audio_cfg_scale", type=float)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quantize", choices=METHODS)
    parser.add_argument("--keep_bf16", default="")
    parser.add_argument("--quantize_attention", action="store_true")
    parser.add_argument("--stream_weights", action="store_true")
    parser.add_argument("--limit", type=float, help="GiB of the GPU that the run may have")
    args = parser.parse_args()

    pipe = prepared_pipeline(args)
    weights = torch.cuda.memory_allocated() / GIB
    seconds: Counter[str] = Counter()
    timed(seconds, pipe.dit, "forward", "denoiser")
    timed(seconds, pipe.vae, "decode", "VAE decode")
    timed(seconds, pipe.vae, "encode", "VAE encode")
    timed(seconds, pipe, "encode_prompt", "text")
    timed(seconds, pipe, "encode_speech", "speech")
    timed(seconds, VideoWriter, "write", "writing")
    with tempfile.TemporaryDirectory() as folder, memory_limit(args.limit):
        start = time.perf_counter()
        make(pipe, args, folder)
        first = time.perf_counter() - start
        seconds.clear()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = make(pipe, args, folder)
        whole = time.perf_counter() - start
        info = probe_video(result.path)
    print(
        json.dumps(
            {
                **{name: value for name, value in vars(args).items() if value},
                "frames": info.frames,
                "chunks": result.chunks,
                "seconds": round(whole, 2),
                "first video": round(first, 1),
                **{name: round(value, 2) for name, value in seconds.items()},
                "weights_gib": round(weights, 1),
                "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 1),
                "gpu": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "diffsynth": host.VERSION,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
