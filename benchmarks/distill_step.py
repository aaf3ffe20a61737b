"""A whole cycle of distillation through DiffSynth's own loop, random weights and cached inputs: seconds, peak memory.

    python benchmarks/distill_step.py                                              # the 14B, critic 5 : student 1
    python benchmarks/distill_step.py --compile --activation_memory auto --limit 80
    torchrun --nproc_per_node 2 benchmarks/distill_step.py --compile --activation_memory auto
    ACCELERATE_USE_CPU=true python benchmarks/distill_step.py --model toy --height 64 --width 64 --num_frames 17

The teacher is bf16 and guided, text and sound together, so that the student's step has two passes of it, one of the
critic, and its own rollout of 1 to 4. Two LoRAs of rank 64 train, every block is checkpointed or keeps what
--activation_memory says. The first cycle, which compiles, is left out. Exit steps are drawn, the same in each run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace

import torch
from accelerate import PartialState
from accelerate.utils import DistributedDataParallelKwargs
from random_models import random_dit
from speed import memory_limit
from train_step import CHANNELS, RandomSamples

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.media.timeline import transformer_tokens
from diffsynth_omniavatar.model.blocks.gpu_memory import expandable_segments
from diffsynth_omniavatar.model.blocks.memory_plan import GIB, describe
from diffsynth_omniavatar.model.blocks.quantized import METHODS
from diffsynth_omniavatar.model.config import PRESETS, CheckpointConfig, Conventions, LoRAConfig
from diffsynth_omniavatar.model.sampling import SOLVERS
from diffsynth_omniavatar.model.small_family import TINY
from diffsynth_omniavatar.training.accelerator import OmniAccelerator
from diffsynth_omniavatar.training.callbacks import TrainingLogger
from diffsynth_omniavatar.training.distill import ADAPTERS, DistillationModule
from diffsynth_omniavatar.training.distill_settings import DistillSettings
from diffsynth_omniavatar.training.flags import memory_amount
from diffsynth_omniavatar.training.module import add_lora, trainable_parameters
from diffsynth_omniavatar.training.settings import LoopSettings, StepSettings

MODELS = {**PRESETS, "toy": TINY.dit}


class CycleLogger(TrainingLogger):
    """Keeps seconds and peak memory of each step."""

    def on_training_begin(self) -> None:
        super().on_training_begin()
        self.steps: list[dict[str, float]] = []
        reset_peak()

    def write_metrics(self, metrics: Mapping[str, float], table: str) -> None:
        self.steps.append({**metrics, "peak": peak()})
        reset_peak()

    def save(self) -> None:
        """Nothing."""


def peak() -> float:
    """GiB that were allocated at most."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0


def reset_peak() -> None:
    """Begin to watch the memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def make_module(args: argparse.Namespace, device: torch.device) -> DistillationModule:
    """The module with random weights; both LoRAs as at a training's start."""
    config = replace(MODELS[args.model], in_dim=CHANNELS[args.mode])
    dtype = torch.bfloat16
    torch.manual_seed(0)  # the same weights in each process
    pipe = host.WanVideoPipeline(device=str(device), torch_dtype=dtype)
    pipe.audio_encoder = None
    pipe.dit = random_dit(config, str(device), dtype)
    lora = LoRAConfig(rank=args.rank, alpha=float(args.rank))
    add_lora(pipe.dit, lora, 0, ADAPTERS)
    OmniAvatarPipeline.adopt(pipe, Conventions())
    settings = StepSettings(
        use_gradient_checkpointing=True,
        use_gradient_checkpointing_offload=args.offload,
        compile=args.compile,
        activation_memory=args.activation_memory,
        stream_weights=args.stream_weights,
        quantize=args.quantize,
        mouth_weight=4.0 if args.mode != "i2v" else None,
    )
    distillation = DistillSettings(
        student_steps=args.student_steps, student_solver=args.solver, critic_updates=args.critic_updates
    )
    checkpoint = CheckpointConfig(in_dim=config.in_dim, lora=lora, model=config)
    module = DistillationModule(pipe, checkpoint, settings, distillation)
    module.negative_context = torch.randn(1, 512, config.text_dim, dtype=dtype, device=device)
    return module


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Train some cycles."""
    cycle = args.critic_updates + 1
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    accelerator = OmniAccelerator(LoopSettings(max_steps=(args.cycles + 1) * cycle), kwargs_handlers=handlers)
    module = make_module(args, accelerator.device)
    module.progress = lambda: (accelerator.steps_done, accelerator.loader.position)
    module.on_parts = accelerator.report_parts
    accelerator.companion = module
    dataset = RandomSamples(module.pipe.dit.config, args.height, args.width, args.num_frames)
    folder = tempfile.mkdtemp()
    logger = CycleLogger(accelerator, module, folder, trained_tensors=module.trained_tensors, export=module.export)
    flags = host.wan_parser().parse_args(["--dataset_base_path", folder])
    flags.num_epochs, flags.output_path, flags.save_steps, flags.dataset_num_workers = 1, folder, None, 0
    with nullcontext() if args.limit is None else memory_limit(args.limit):
        host.launch_training_task(accelerator, dataset, module, logger, args=flags)
    steps: dict[str, list[dict[str, float]]] = {"critic": [], "student": []}
    for number, step in enumerate(logger.steps):
        if number >= cycle:
            steps[module.distillation.role(number)].append(step)
    seconds = {role: sum(one["seconds_per_step"] for one in of) / len(of) for role, of in steps.items()}
    runner = module.pipe.dit.runner
    return {
        "model": args.model,
        "mode": args.mode,
        "size": [args.num_frames, args.height, args.width],
        "tokens": transformer_tokens(args.num_frames, args.height, args.width),
        "trainable": trainable_parameters(module),
        "processes": accelerator.num_processes,
        "seconds": {role: round(value, 3) for role, value in seconds.items()},
        "seconds_per_cycle": round(args.critic_updates * seconds["critic"] + seconds["student"], 2),
        "first_cycle_seconds": round(sum(one["seconds_per_step"] for one in logger.steps[:cycle]), 1),
        "peak_gib": {role: round(max(one["peak"] for one in of), 1) for role, of in steps.items()},
        "losses": [round(one["loss"], 4) for one in logger.steps],
        "way": asdict(module.settings.way),
        "limit_gib": args.limit,
        "quantised": args.quantize,
        "kept": None if runner is None else [describe(plan) for plan in runner.plans.values()],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "diffsynth": host.VERSION,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="14B")
    parser.add_argument("--mode", choices=list(CHANNELS), default="i2v")
    parser.add_argument("--cycles", type=int, default=2, help="cycles that are measured, behind the first")
    parser.add_argument("--rank", type=int, default=64, help="of each LoRA")
    parser.add_argument("--critic_updates", type=int, default=5)
    parser.add_argument("--student_steps", type=int, default=4)
    parser.add_argument("--solver", choices=SOLVERS, default="renoise")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--num_frames", type=int, default=81)
    parser.add_argument("--offload", action="store_true", help="the blocks' inputs in CPU memory")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--activation_memory", type=memory_amount, help="GiB, or auto")
    parser.add_argument("--stream_weights", action="store_true")
    parser.add_argument("--quantize", choices=METHODS, help="frozen weights in 8 bits")
    parser.add_argument("--limit", type=float, help="GiB of the GPU that the run may have")
    args = parser.parse_args()
    expandable_segments()
    result = measure(args)
    if PartialState().is_main_process:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
