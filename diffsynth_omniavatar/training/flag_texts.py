"""The help of the training flags: how it is laid out, and what it says of DiffSynth's own flags."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping

DESCRIPTION = """\
Train OmniAvatar with DiffSynth's training loop. For example:

    accelerate launch -m diffsynth_omniavatar.train \\
        --dataset_base_path data --dataset_metadata_path data/metadata.csv \\
        --model_id_with_origin_paths "Wan-AI/Wan2.1-T2V-1.3B:diffusion_pytorch_model*.safetensors,\\
Wan-AI/Wan2.1-T2V-1.3B:models_t5_umt5-xxl-enc-bf16.pth,Wan-AI/Wan2.1-T2V-1.3B:Wan2.1_VAE.pth" \\
        --wav2vec2_path pretrained_models/wav2vec2-base-960h \\
        --omniavatar_checkpoint pretrained_models/OmniAvatar-1.3B \\
        --use_gradient_checkpointing --max_steps 2000 --output_path runs/a

Most flags are DiffSynth's; the groups "OmniAvatar: ..." are added by this package. `--config FILE.yaml` sets
flags from a file, and the command line overrides it. `--dry_run` prints the plan and ends.
"""

HOST_HELP: Mapping[str, str] = {
    "dataset_base_path": "Folder that paths in the table are relative to; or the folder of a cache.",
    "dataset_metadata_path": "Tables of clips (.csv, .json, .jsonl), lists of prepared directories, or caches. An "
    "epoch has a table's clips WEIGHT times, with 0.5 another half of them each time. (default WEIGHT: 1)",
    "dataset_repeat": "How often each clip comes in an epoch.",
    "dataset_num_workers": "Processes that read and decode clips; 0 uses the training process.",
    "model_paths": "Files of the base model, as a JSON list.",
    "model_id_with_origin_paths": "Files of the base model to download, comma-separated, each repository:pattern, like "
    "Wan-AI/Wan2.1-T2V-1.3B:diffusion_pytorch_model*.safetensors.",
    "fp8_models": "Frozen models to hold in 8 bits, comma-separated, named as above; not the denoiser.",
    "offload_models": "Models to offload when a cache is written or read, comma-separated; not the denoiser.",
    "quant_options": "Hold frozen weights in 8 bits: FILES:METHOD with FILES as named above, like "
    "Wan-AI/Wan2.1-T2V-14B:diffusion_pytorch_model*.safetensors:torchao_fp8_w8a16; see docs/performance.md.",
    "learning_rate": "Learning rate of AdamW, after the warm-up.",
    "num_epochs": "Passes over the data; --max_steps overrides it.",
    "trainable_models": "dit trains all weights of the denoiser. (default: LoRA, audio modules and patch embedding)",
    "find_unused_parameters": "Let DDP look for parameters without a gradient.",
    "weight_decay": "Weight decay of AdamW.",
    "task": "sft trains; distill makes a student for few steps of a checkpoint; sft:data_process writes a cache, "
    "sft:train trains from it (DiffSynth 2.x).",
    "customized_optimizer": "Optimizer class, like bitsandbytes.optim.Adam8bit. (default: torch.optim.AdamW)",
    "output_path": "Folder for checkpoints, logs and validation videos.",
    "save_steps": "Optimizer steps between checkpoints. (default: one after each epoch)",
    "lora_target_modules": "Layers that get a LoRA, comma-separated.",
    "lora_rank": "Rank of a new LoRA.",
    "use_gradient_checkpointing": "Compute activations again in the backward pass: much less memory, slower.",
    "use_gradient_checkpointing_offload": "Also offload the blocks' inputs to CPU memory until the backward pass.",
    "gradient_accumulation_steps": "Batches per process in an optimizer step.",
    "enable_model_cpu_offload": "Offload all weights to CPU memory and load them layer by layer.",
    "enable_optimizer_cpu_offload": "With --enable_model_cpu_offload: run the optimizer on the CPU.",
    "cpu_offload_split_threshold": "With --enable_model_cpu_offload: split modules above this size in MB. "
    "(default: offload each layer by itself)",
    "enable_tensorboard_log": "Log to TensorBoard.",
    "enable_swanlab_log": "Log to SwanLab.",
    "swanlab_project": "Name of the SwanLab project.",
    "enable_wandb_log": "Log to Weights & Biases.",
    "wandb_project": "Name of the Weights & Biases project.",
    "enable_csv_log": "Log to loss.csv in --output_path.",
    "height": "Height of all samples in pixels, with --width. (default: by --image_sizes)",
    "width": "Width of all samples in pixels, with --height. (default: by --image_sizes)",
    "num_frames": "Most frames per sample, 4n+1. (default: limited by --max_tokens alone)",
    "max_timestep_boundary": "Cleanest noise level to train, as a fraction of the "
    "timestep table: 0 noisiest, 1 cleanest.",
    "min_timestep_boundary": "Noisiest noise level to train, as a fraction of the "
    "timestep table: 0 noisiest, 1 cleanest.",
}
"""Flag of DiffSynth's -> what it does here."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines, and adds the default to each flag that has one and does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        says_it = text is None or "(default:" in text or text == argparse.SUPPRESS
        if says_it or not action.option_strings or action.nargs == 0:
            return text
        if action.default in (None, "", math.inf, argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"
