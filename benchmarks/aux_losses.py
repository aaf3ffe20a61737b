"""Losses on decoded frames: seconds, peak memory and exactness of the ways to get their gradient, at full size.

    python benchmarks/aux_losses.py

The VAE is Wan's with random weights in bf16; the loss is LPIPS's network with random weights on the lower half of all
frames. The first row is the reference: a checkpoint for each latent frame, the loss of all frames at once. Deviations
are of the gradient, as norms: from the checkpointed row that takes the losses in the same windows, and from the
gradient with float32 weights.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from random_models import random_vae
from torch import Tensor, nn

from diffsynth_omniavatar import host
from diffsynth_omniavatar.losses import decode
from diffsynth_omniavatar.losses.decode import DecodedLosses, Window, decode_with_losses
from diffsynth_omniavatar.media.timeline import video_frames

STAGES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    label: str
    memory: str
    segment_frames: int = 1
    window: int = 9
    channels_last: bool = False
    cudnn_benchmark: bool = False
    first: int = 0
    last: int | None = None
    """Frames that the loss looks at: all, or first .. last-1."""


VARIANTS = (
    Variant("frame, loss of all frames at once", "frame", window=10**6),
    Variant("frame", "frame"),
    Variant("segments of 1", "segments"),
    Variant("offload, segments of 1", "offload"),
    Variant("offload, segments of 2", "offload", 2),
    Variant("offload, segments of 3", "offload", 3),
    Variant("offload, channels last", "offload", channels_last=True),
    Variant("offload, cudnn.benchmark", "offload", cudnn_benchmark=True),
    Variant("offload, channels last, cudnn.benchmark", "offload", channels_last=True, cudnn_benchmark=True),
    Variant("offload, 16 frames from 33", "offload", first=33, last=49),
)


class PerceptualLoss(nn.Module):
    """The arithmetic of LPIPS with VGG16: mean squared difference of normalised features of five stages."""

    def __init__(self) -> None:
        super().__init__()
        stages = []
        for number, widths in enumerate(STAGES):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
            for inputs, outputs in pairwise(widths):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, frames: Tensor, targets: Tensor) -> Tensor:
        """Of pictures [n, 3, H, W], the sum over n."""
        loss = frames.new_zeros(())
        for stage in self.stages:
            frames, targets = stage(frames), stage(targets)
            difference = nn.functional.normalize(frames, eps=1e-10) - nn.functional.normalize(targets, eps=1e-10)
            loss = loss + difference.square().sum(1).mean((1, 2)).sum()
        return loss


class Stopwatch:
    """Seconds of named stages; the device is waited for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            torch.cuda.synchronize()
            start = time.perf_counter()
            result = function(*args, **options)
            torch.cuda.synchronize()
            self.seconds[name] = time.perf_counter() - start
            return result

        return call

    @contextmanager
    def on_decode(self) -> Iterator[None]:
        """Within it, the stages of `decode_with_losses` are timed."""
        places = [
            (decode._Segments, "frames", "decode"),
            (decode._Checkpoints, "frames", "decode"),
            (decode._Segments, "backward", "backward"),
            (decode._Checkpoints, "backward", "backward"),
            (decode, "_take_losses", "loss"),
        ]
        originals = [getattr(owner, name) for owner, name, _ in places]
        for (owner, name, stage), original in zip(places, originals, strict=True):
            setattr(owner, name, self.timed(stage, original))
        try:
            yield
        finally:
            for (owner, name, _), original in zip(places, originals, strict=True):
                setattr(owner, name, original)


def windows_of(variant: Variant, targets: Tensor, perceptual: PerceptualLoss) -> list[Window]:
    """The mean of the lower half of all the frames that the variant looks at, in windows."""
    last = targets.shape[2] if variant.last is None else variant.last
    half = targets.shape[3] // 2

    def window(start: int, stop: int) -> Window:
        def loss(frames: Tensor) -> Tensor:
            pictures, wanted = (clip[0, :, :, half:].transpose(0, 1) for clip in (frames, targets[:, :, start:stop]))
            return perceptual(pictures, wanted) / (last - variant.first)

        return Window(name="lpips", start=start, stop=stop, loss=loss)

    starts = range(variant.first, last, variant.window)
    return [window(start, min(start + variant.window, last)) for start in starts]


@dataclass
class Result:
    losses: DecodedLosses
    seconds: dict[str, float]
    total: float
    peak: float


def measure(
    variant: Variant, vae: Any, x0: Tensor, targets: Tensor, perceptual: PerceptualLoss, repeats: int
) -> Result:
    """The fastest of `repeats` runs after one that is not counted; its peak over what was there before."""
    torch.backends.cudnn.benchmark = variant.cudnn_benchmark
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d if variant.channels_last else torch.contiguous_format)
    windows = windows_of(variant, targets, perceptual)
    results = []
    for _ in range(repeats + 1):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, watch = torch.cuda.memory_allocated(), Stopwatch()
        run = watch.timed("total", decode_with_losses)
        with watch.on_decode():
            losses = run(vae, x0, windows, variant.memory, variant.segment_frames)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        results.append(Result(losses, watch.seconds, watch.seconds["total"], peak))
    return min(results[1:], key=lambda result: result.total)


def deviation(gradient: Tensor, wanted: Tensor) -> str:
    return f"{((gradient - wanted).norm() / wanted.norm()).item():.1e}"


def true_gradient(vae: Any, x0: Tensor, targets: Tensor, perceptual: PerceptualLoss) -> Tensor:
    """With the same weights and latents in float32."""
    vae.float()
    perceptual.float()
    windows = windows_of(VARIANTS[3], targets.float(), perceptual)
    gradient = decode_with_losses(vae, x0, windows, "offload").gradient
    vae.bfloat16()
    perceptual.bfloat16()
    return gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent_frames", type=int, default=21)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--no_truth", action="store_true", help="leave the run in float32 out")
    args = parser.parse_args()
    torch.manual_seed(0)
    vae = random_vae().to("cuda", torch.bfloat16)
    vae.model.encoder = nn.Module()
    perceptual = PerceptualLoss().requires_grad_(False).to("cuda", torch.bfloat16)
    x0 = torch.randn(1, 16, args.latent_frames, args.height // 8, args.width // 8, device="cuda")
    x0 = x0.bfloat16().float()
    frames = video_frames(args.latent_frames)
    targets = torch.rand(1, 3, frames, args.height, args.width, device="cuda", dtype=torch.bfloat16) * 2 - 1
    truth = None if args.no_truth else true_gradient(vae, x0, targets, perceptual)

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, diffsynth {host.VERSION}")
    model = torch.cuda.memory_allocated() / 2**30
    print(f"{frames} frames of {args.height}x{args.width}; weights and targets take {model:.2f} GiB")
    print("| way | decode s | loss s | backward s | all s | ratio | peak GiB | loss | to same windows | to float32 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    reference: Result | None = None
    same_windows: dict[int, Tensor] = {}
    for variant in VARIANTS:
        try:
            result = measure(variant, vae, x0, targets, perceptual, args.repeats)
        except torch.cuda.OutOfMemoryError:
            print(f"| {variant.label} | out of memory |", flush=True)
            continue
        reference = reference or result
        gradient, seconds = result.losses.gradient, result.seconds
        same = variant.last is None
        if variant.memory == "frame":
            same_windows[variant.window] = gradient
        print(
            f"| {variant.label} | {seconds['decode']:.2f} | {seconds['loss']:.2f} | {seconds['backward']:.2f}"
            f" | {result.total:.2f} | {result.total / reference.total:.2f} | {result.peak:.2f}"
            f" | {result.losses.total.item():.5f}"
            f" | {deviation(gradient, same_windows[variant.window]) if same else '-'}"
            f" | {deviation(gradient, truth) if same and truth is not None else '-'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
