"""What tests train on: small networks, two clips, flags that name them; a training module and a sample for it."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from synthetic_clips import write_table, write_texture

from diffsynth_omniavatar.data.sample import TrainingSample
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.model import checkpoint
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.small_family import family_configs
from diffsynth_omniavatar.nano.family import write_random_family
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.module import OmniAvatarTrainingModule
from diffsynth_omniavatar.training.settings import StepSettings

FRAMES, SIZE = 9, 32
"""Of `live_sample`."""
MODES = {
    "i2v": [],
    "v2v-known": ["--omniavatar_mode", "v2v", "--prefix_frames", "1", "--mouth_weight", "4"],
    "v2v-masked": ["--omniavatar_mode", "v2v", "--first_frame", "masked"],
    "v2v-reference": ["--omniavatar_mode", "v2v", "--use_ref_sequence", "--prefix_frames", "1,5", "--num_frames", "9"],
}


def write_inputs(folder: Path) -> Path:
    """Write a family of small networks and a table of two clips into the folder."""
    write_random_family(folder / "family")
    rows = [
        {"video": write_texture(folder / f"{index}.mp4", 25, seed=index).name, "prompt": f"speaker {index}"}
        for index in range(2)
    ]
    write_table(folder / "clips.csv", rows)
    return folder


def flags(folder, output, *more):
    """A command line that trains on the clips."""
    models = folder / "family"
    paths = [str(models / FILES[name]) for name in ("dit", "text_encoder", "vae")]
    return [
        "--dataset_base_path", str(folder), "--dataset_metadata_path", str(folder / "clips.csv"),
        "--model_paths", json.dumps(paths), "--tokenizer_path", str(models / FILES["tokenizer"]),
        "--wav2vec2_path", str(models / FILES["wav2vec2"]),
        "--omniavatar_checkpoint", str(models / FILES["omniavatar"]),
        "--output_path", str(output), "--height", "32", "--width", "32", "--num_frames", "17", "--dtype", "float32",
        "--learning_rate", "1e-3", "--seed", "7", "--enable_csv_log", *more,
    ]  # fmt: skip


def run_all(commands):
    """Trainings, one after the other, on all processes that are launched together."""
    assert [run.main(command) for command in commands] == [0] * len(commands)


def make_module(folder, settings=None, conventions=None, **replaced):
    configs = family_configs(folder)
    pipe = OmniAvatarPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", omniavatar_lora="adapters", **configs
    )
    pipe.conventions = conventions or Conventions(leading_audio_rows=0)
    loaded = checkpoint.load_checkpoint(folder / FILES["omniavatar"])
    config = replace(loaded.config, model=pipe.dit.config, conventions=pipe.conventions, **replaced)
    return OmniAvatarTrainingModule(pipe, config, settings or StepSettings(use_gradient_checkpointing=False))


def live_sample(**changed):
    generator = torch.Generator().manual_seed(5)
    no = torch.zeros(1, dtype=torch.bool)
    pixels = (torch.rand((1, FRAMES, SIZE, SIZE, 3), generator=generator) * 255).to(torch.uint8)
    fields = {
        "sources": ["clip"],
        "num_frames": FRAMES,
        "height": SIZE,
        "width": SIZE,
        "prefix_frames": 5,
        "drop_text": no,
        "drop_audio": no,
        "drop_prefix": no,
        "target_video": pixels,
        "reference_image": pixels[:, 7],
        "waveforms": [0.1 * torch.randn(640 * 12, generator=generator)],
        "prompts": ["a man"],
    }
    return TrainingSample(**{**fields, **changed})
