"""What several processes do together: final latents of some clips, and a video."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from synthetic_clips import portrait, speech

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.generation import generate, loading  # noqa: F401  the command imports generate late
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.model.small_family import family_configs

PROCESSES = 3
QUANTIZED = "fp8.safetensors"
"""The model of the I2V folder in 8 bits."""
SIZE = 64
FRAMES = 13  # 64 tokens, which three processes cannot share equally; they share the family's three heads
CLIPS = {
    "two passes": {},
    "three passes": {"audio_cfg_scale": 3.0},  # each by a process
    "passes of some steps": {"audio_cfg_scale": 3.0, "guidance_to": 0.5, "num_inference_steps": 2},  # all by all
    "one pass": {"cfg_scale": 1.0},
    # It always computes the first and the last step.
    "TeaCache": {"tea_cache_l1_thresh": 1e9, "tea_cache_model_id": "Wan2.1-T2V-1.3B", "num_inference_steps": 3},
    "prefix": {"prefix_video": 5},
}


def load(folder, use_usp, **more):
    return OmniAvatarPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", use_usp=use_usp, **more, **family_configs(folder)
    )


def final_latents(i2v, v2v, use_usp):
    """The latents that are decoded, of each of `CLIPS` and of a dubbed one; and two samples in one batch."""
    results = {}
    pipe = load(i2v, use_usp)
    for name, settings in CLIPS.items():
        results[name] = clip(pipe, input_image=portrait(64), **settings)
    results["batch"] = batch(pipe.dit)
    generator = torch.Generator().manual_seed(3)
    video = torch.randint(0, 255, (FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    pipe = load(v2v, use_usp, omniavatar_shard_weights=use_usp)
    for name, settings in {"V2V": {}, "V2V, three passes": {"audio_cfg_scale": 3.0}}.items():
        results[name] = clip(pipe, input_video=video, **settings)
    file = i2v / QUANTIZED
    # Products in 8 bits would round the tokens, whose last bits differ, to other numbers.
    options = {"quantize": "fp8_weights", "dtype": "float32", "device": "cpu"}
    pipe = loading.load_pipeline("nano", i2v, omniavatar=file, use_usp=use_usp, **options)
    results["8 bits"] = clip(pipe, input_image=portrait(64))
    return results


def clip(pipe, prefix_video=None, **settings):
    decoded, decode = [], pipe.vae.decode

    def keep(latents, **_):
        decoded.append(latents)
        return torch.zeros(1, 3, FRAMES, SIZE, SIZE)

    pipe.vae.decode = keep
    if prefix_video is not None:
        prefix_video = torch.rand(3, prefix_video, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) * 2 - 1
    settings = {"num_inference_steps": 1, **settings}
    pipe(prompt="a man", input_audio=speech(0.6), prefix_video=prefix_video, height=SIZE, width=SIZE, num_frames=FRAMES,
         seed=5, output_type="floatpoint", progress_bar_cmd=iter, **settings)  # fmt: skip
    pipe.vae.decode = decode
    return decoded[0].contiguous()


@torch.no_grad()
def batch(dit):
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(2, channels, 4, 8, 8, generator=generator) for channels in (16, 17))
    text = torch.randn(2, 7, dit.config.text_dim, generator=generator)
    audio = torch.randn(2, FRAMES, dit.config.audio_dim, generator=generator)
    return dit(x, torch.tensor([700.0, 200.0]), text, y, audio)


def work(i2v: Path, v2v: Path, folder: Path, flags: Sequence[str]) -> None:
    """Leave the latents of this process, what the command says and the frames of its video."""
    rank = os.environ["RANK"]
    save_file(final_latents(i2v, v2v, use_usp=True), folder / f"latents.{rank}.safetensors")
    with (folder / f"said.{rank}.txt").open("w") as said, contextlib.redirect_stdout(said):
        code, frames = written_frames([*flags, "--use_usp"])
    assert code == 0
    torch.save(frames, folder / f"frames.{rank}.pt")


def written_frames(flags: Sequence[str]) -> tuple[int, list[torch.Tensor]]:
    """The exit code of the command, and what it gives the writer of the video, [frame, height, width, 3]; not coded."""
    frames = []
    write = VideoWriter.write

    def keep(writer: VideoWriter, part: torch.Tensor) -> None:
        frames.append(part.clone())
        write(writer, part)

    with mock.patch.object(VideoWriter, "write", keep):
        code = cli.main([*flags])
    return code, frames
