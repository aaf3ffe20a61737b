"""Training steps through DiffSynth's own loop with random weights and cached inputs: seconds per step and peak memory.

    python benchmarks/train_step.py --model 14B --mode i2v v2v --steps 5
    python benchmarks/train_step.py --compile --activation_memory auto --stream_weights --offload --limit 24
    accelerate launch --config_file examples/accelerate/2gpus_fsdp.yaml benchmarks/train_step.py --save_and_resume

The denoiser is bf16 with LoRA of rank 128, patch embedding and audio modules trained, every block checkpointed; the
inputs are those of a cache (latents, audio features, text embedding).
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from random_models import made_on, random_dit, random_vae
from speed import clean, memory_limit

from diffsynth_omniavatar import host
from diffsynth_omniavatar.data.sample import TrainingSample
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.losses.decode import AUX_MEMORY, choose_memory
from diffsynth_omniavatar.losses.frozen import freeze
from diffsynth_omniavatar.losses.lpips import LpipsLoss
from diffsynth_omniavatar.losses.sync import SyncLoss
from diffsynth_omniavatar.losses.syncnet import StableSyncNet
from diffsynth_omniavatar.losses.trepa import TrepaLoss, VideoMAE
from diffsynth_omniavatar.media.timeline import SAMPLES_PER_FRAME, latent_frames, transformer_tokens
from diffsynth_omniavatar.model.blocks.gpu_memory import expandable_segments
from diffsynth_omniavatar.model.blocks.memory_plan import describe
from diffsynth_omniavatar.model.blocks.quantized import METHODS
from diffsynth_omniavatar.model.config import PRESETS, CheckpointConfig, Conventions, LoRAConfig, OmniAvatarConfig
from diffsynth_omniavatar.model.quantize import quantize_blocks
from diffsynth_omniavatar.training.accelerator import OmniAccelerator
from diffsynth_omniavatar.training.auxiliary import AuxiliaryLosses
from diffsynth_omniavatar.training.callbacks import TrainingLogger, find_checkpoints
from diffsynth_omniavatar.training.flags import memory_amount
from diffsynth_omniavatar.training.module import OmniAvatarTrainingModule, add_lora, trainable_parameters
from diffsynth_omniavatar.training.settings import LoopSettings, StepSettings

SAVED_STEP = 3
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
CHANNELS = {"i2v": 33, "v2v": 49, "v2v-reference": 65}


class RandomSamples(torch.utils.data.Dataset[TrainingSample]):
    """Cached samples of one size."""

    load_from_cache = False

    def __init__(self, config: OmniAvatarConfig, height: int, width: int, num_frames: int) -> None:
        self.config, self.height, self.width, self.num_frames = config, height, width, num_frames

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> TrainingSample:
        shape = (1, 16, latent_frames(self.num_frames), self.height // 8, self.width // 8)
        no = torch.zeros(1, dtype=torch.bool)
        v2v = self.config.has_masked_video
        return TrainingSample(
            sources=["random"],
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            prefix_frames=5,
            drop_text=no,
            drop_audio=no,
            drop_prefix=no,
            input_latents=torch.randn(shape, dtype=torch.bfloat16),
            reference_latents=torch.randn((1, 16, 1, *shape[3:]), dtype=torch.bfloat16),
            masked_latents=torch.randn(shape, dtype=torch.bfloat16) if v2v else None,
            mouth_mask_latents=torch.ones(1, 1, *shape[2:]) if v2v else None,
            reference_sequence_latents=(
                torch.randn(shape, dtype=torch.bfloat16) if self.config.has_reference_sequence else None
            ),
            audio_features=torch.randn(1, self.num_frames, self.config.audio_dim),
            context=torch.randn(1, 512, self.config.text_dim, dtype=torch.bfloat16),
            waveforms=[0.1 * torch.randn(self.num_frames * SAMPLES_PER_FRAME)],
        )


def random_auxiliary(names: Sequence[str], memory: str, dtype: torch.dtype) -> AuxiliaryLosses | None:
    """The losses of these names, with networks of the official sizes and random weights; VGG stays float32."""
    if not names:
        return None
    torch.manual_seed(0)
    with made_on("cuda", torch.float32):
        sync = SyncLoss(StableSyncNet()) if "sync" in names else None
        trepa = TrepaLoss(VideoMAE(checkpointing=True)) if "trepa" in names else None
    for judge in (sync, trepa):
        if judge is not None:
            freeze(judge.network, "cuda", dtype)
    vgg = None
    if "lpips" in names:
        import lpips

        vgg = LpipsLoss(lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False), window=4)
        freeze(vgg.network, "cuda", torch.float32)
    return AuxiliaryLosses(sync=sync, lpips=vgg, trepa=trepa, memory=choose_memory(memory, torch.device("cuda")))


def quantize(dit: torch.nn.Module, method: str) -> None:
    """As DiffSynth 2.x does with the weights that --quant_options names."""
    from diffsynth.core.quant.config import QuantizeConfig

    dit.quantize_config = QuantizeConfig(method=method)
    dit.quantize_config.quantize_model(dit)
    clean()


class MeasuringLogger(TrainingLogger):
    """Keeps the metrics of each step; writes checkpoints where that is asked for."""

    saves = False

    def write_metrics(self, metrics: Mapping[str, float], table: str) -> None:
        self.steps = [*getattr(self, "steps", []), dict(metrics)]
        if len(self.steps) == 1:  # what loading and sharding take is no part of a step
            self.start_gib = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            torch.cuda.reset_peak_memory_stats()

    def save(self) -> None:
        if self.saves:
            super().save()


def run(model: str, mode: str, args: argparse.Namespace, folder: str, resume: Path | None = None) -> dict[str, object]:
    """Train a few steps; the first one is left out of the median."""
    config = replace(PRESETS[model], in_dim=CHANNELS[mode])
    settings = LoopSettings(max_steps=args.steps + 1, resume=resume)
    accelerator = OmniAccelerator(settings)
    torch.manual_seed(0)  # the same weights in each process
    pipe = host.WanVideoPipeline(device="cuda", torch_dtype=torch.bfloat16)
    pipe.audio_encoder = None
    pipe.dit = random_dit(config)
    if args.quantize and args.quantize not in METHODS:
        quantize(pipe.dit, args.quantize)
    lora = LoRAConfig()
    add_lora(pipe.dit, lora)
    if args.quantize in METHODS:
        quantize_blocks(pipe.dit, args.quantize)
        clean()
    OmniAvatarPipeline.adopt(pipe, Conventions())
    options = StepSettings(
        use_gradient_checkpointing=True,
        use_gradient_checkpointing_offload=args.offload,
        compile=args.compile,
        activation_memory=args.activation_memory,
        stream_weights=args.stream_weights,
        quantize_attention=args.quantize_attention,
    )
    auxiliary = random_auxiliary(args.aux, args.aux_memory, DTYPES[args.aux_dtype])
    if auxiliary is not None:
        pipe.vae = random_vae().to("cuda", torch.bfloat16)
    checkpoint_config = CheckpointConfig(in_dim=config.in_dim, lora=lora, model=config)
    module = OmniAvatarTrainingModule(pipe, checkpoint_config, options, auxiliary)
    module.on_parts = accelerator.report_parts
    dataset = RandomSamples(config, args.height, args.width, args.num_frames)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    logger = MeasuringLogger(accelerator, module, folder, trained_tensors=module.trained_tensors, export=module.export)
    logger.saves = args.save_and_resume and resume is None
    flags = host.wan_parser().parse_args(["--dataset_base_path", folder])
    flags.num_epochs, flags.save_steps, flags.output_path = 1, SAVED_STEP, folder
    flags.dataset_num_workers = args.dataset_num_workers
    trainable = trainable_parameters(module)
    with memory_limit(args.limit):
        host.launch_training_task(accelerator, dataset, module, logger, args=flags)
    seconds = sorted(step["seconds_per_step"] for step in logger.steps[1:])
    return {
        "model": model,
        "mode": mode,
        "size": [args.num_frames, args.height, args.width],
        "tokens": transformer_tokens(args.num_frames, args.height, args.width),
        "trainable": trainable,
        "processes": f"{accelerator.num_processes} {accelerator.distributed_type.value}",
        "seconds_per_step": round(seconds[len(seconds) // 2], 3),
        "data_seconds": round(max(step["data_seconds"] for step in logger.steps[1:]), 4),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "peak_gib_with_start": max(logger.start_gib, round(torch.cuda.max_memory_allocated() / 2**30, 1)),
        "losses": [step["loss"] for step in logger.steps],
        "way": asdict(options.way),
        "limit_gib": args.limit,
        "quantised": args.quantize,
        "kept": [describe(plan) for plan in pipe.dit.runner.plans.values()] if pipe.dit.runner is not None else None,
        "aux": {name: round(logger.steps[-1][name], 4) for name in args.aux},
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "diffsynth": host.VERSION,
    }


def measure(model: str, mode: str, args: argparse.Namespace) -> None:
    """Print what a run gave, and where asked for, also what its second half gave when it was resumed."""
    shared = broadcast_object_list([tempfile.mkdtemp()])[0] if args.save_and_resume else tempfile.mkdtemp()
    checkpoints = [None, Path(shared, f"step-{SAVED_STEP}")] if args.save_and_resume else [None]
    for resume in checkpoints:
        for later in find_checkpoints(shared):
            if resume is not None and later != resume:
                shutil.rmtree(later, ignore_errors=True)
        PartialState().wait_for_everyone()
        result = run(model, mode, args, shared, resume)
        if PartialState().is_main_process:
            print(json.dumps({"resumed": resume is not None, **result}), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    PartialState().wait_for_everyone()
    shutil.rmtree(shared, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(PRESETS), nargs="+", default=["14B"])
    parser.add_argument("--mode", choices=list(CHANNELS), nargs="+", default=["i2v"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--num_frames", type=int, default=81)
    parser.add_argument("--dataset_num_workers", type=int, default=0)
    parser.add_argument("--offload", action="store_true", help="the blocks' inputs in CPU memory")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--activation_memory", type=memory_amount, help="GiB, or auto")
    parser.add_argument("--stream_weights", action="store_true")
    parser.add_argument("--quantize", help="frozen weights in 8 bits: a method of this package, or of DiffSynth")
    parser.add_argument("--quantize_attention", action="store_true")
    parser.add_argument("--limit", type=float, help="GiB of the GPU that the run may have")
    parser.add_argument("--aux", nargs="*", choices=["sync", "lpips", "trepa"], default=[], help="losses on frames")
    parser.add_argument("--aux_memory", choices=AUX_MEMORY, default="auto")
    parser.add_argument("--aux_dtype", choices=list(DTYPES), default="bfloat16", help="of StableSyncNet and VideoMAE")
    parser.add_argument("--save_and_resume", action="store_true", help="go on from a checkpoint, and compare losses")
    args = parser.parse_args()
    expandable_segments()
    PartialState()
    for model in args.model:
        for mode in args.mode:
            measure(model, mode, args)


if __name__ == "__main__":
    main()
