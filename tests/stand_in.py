"""A folder like that of the trained small model, with the tiny family's random weights, to be quick."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from diffsynth_omniavatar.generation.loading import load_pipeline
from diffsynth_omniavatar.model.checkpoint import load_checkpoint, read_config, save_safetensors, weight_files
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.files import NANO_FOLDER, NANO_I2V, NANO_V2V
from diffsynth_omniavatar.model.small_family import TINY
from diffsynth_omniavatar.nano.family import write_random_checkpoint, write_random_family

CONVENTIONS = Conventions(
    leading_audio_rows=0, prefix_frames=(1,), image_sizes=((128, 128),), max_tokens=144, aligned=True
)
"""Chunks of 9 frames that overlap by one, to be quick."""


def write_nano_like_family(folder: Path) -> Path:
    """I2V as a full checkpoint, V2V as a LoRA on it."""
    write_random_family(folder, conventions=CONVENTIONS)
    pipe = load_pipeline(folder=folder, device="cpu", dtype="float32")
    lora = folder / "omniavatar"
    config = replace(read_config(weight_files(lora)), lora=None)
    for file in lora.iterdir():
        file.unlink()
    i2v, v2v = (folder / path.relative_to(NANO_FOLDER) for path in (NANO_I2V, NANO_V2V))
    save_safetensors(i2v, dict(pipe.dit.state_dict()), config)
    scratch = folder / "scratch"
    write_random_checkpoint(scratch, replace(TINY.dit, in_dim=49), torch.Generator().manual_seed(1), CONVENTIONS)
    checkpoint = load_checkpoint(scratch)
    v2v.parent.mkdir()
    save_safetensors(v2v, checkpoint.tensors, checkpoint.config)
    shutil.rmtree(scratch)
    return folder
