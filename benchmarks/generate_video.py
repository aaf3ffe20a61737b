"""Generate a video of several chunks end to end with random weights: seconds per step and peak memory.

    python benchmarks/generate_video.py --model 14B --seconds 5 --steps 4

The picture is noise; the work is that of the real model.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from random_models import random_pipeline

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.generate import generate
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.model.config import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(PRESETS), default="14B")
    parser.add_argument("--height", type=int, default=400)
    parser.add_argument("--width", type=int, default=720)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cfg_scale", type=float, default=4.5)
    parser.add_argument("--audio_cfg_scale", type=float)
    args = parser.parse_args()

    pipe = random_pipeline(PRESETS[args.model])
    step_seconds: list[float] = []
    step = pipe.scheduler.step

    def timed_step(*inputs: object, **kwargs: object) -> torch.Tensor:
        torch.cuda.synchronize()
        step_seconds.append(time.monotonic())
        return step(*inputs, **kwargs)

    pipe.scheduler.step = timed_step
    weights = torch.cuda.memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    noise = np.random.default_rng(0).standard_normal((1, int(16000 * args.seconds))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        result = generate(
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
            show_progress=False,
        )
        info = probe_video(result.path)
    gaps = [after - before for before, after in pairwise(step_seconds)]
    within_chunks = [gap for index, gap in enumerate(gaps, start=1) if index % args.steps]
    print(
        json.dumps(
            {
                "model": args.model,
                "size": [info.height, info.width],
                "frames": info.frames,
                "has_sound": info.has_sound,
                "chunks": result.chunks,
                "steps_per_chunk": args.steps,
                "seconds_per_step": round(float(np.median(within_chunks)), 3),
                "seconds_in_all": round(result.seconds, 1),
                "weights_gib": round(weights, 1),
                "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
                "gpu": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "diffsynth": host.VERSION,
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
