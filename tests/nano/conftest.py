"""What the tests of the small model's figures share: clips of speakers that keep still, and random weights."""

import pytest
import torch
from stand_in import write_nano_like_family

from diffsynth_omniavatar.generation import pixels
from diffsynth_omniavatar.model.small_family import SmallVAE
from diffsynth_omniavatar.nano.speaker.clips import draw_clip
from diffsynth_omniavatar.nano.stage import load_family


@pytest.fixture(scope="package")
def clips():
    return [draw_clip(seed, 40, split="evaluation", sways=False) for seed in range(4)]


@pytest.fixture(scope="package")
def futures():
    """Lively clips of the seeds 1, 3 and 5 of the evaluation, five futures each: a list by seed of lists by future."""
    return [
        [draw_clip(seed, 34, split="evaluation", lively=True, future=one) for one in range(5)] for seed in (1, 3, 5)
    ]


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return write_nano_like_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="package")
def pipe(folder):
    return load_family(folder, "i2v", "cpu")


@pytest.fixture
def quick_decoder(monkeypatch):
    """Frames are three channels of their latents, enlarged: for what does not depend on how a VAE decodes."""

    def enlarge(_, latents, device):
        frames, rows, columns = latents.shape[2:]
        size = (4 * frames - 3, 8 * rows, 8 * columns)
        return torch.nn.functional.interpolate(latents[:, :3], size).clamp(-1, 1).to(device)

    monkeypatch.setattr(SmallVAE, "single_decode", enlarge)

    def decode(vae, latents, on_frames=None):
        frames = enlarge(vae, latents, latents.device)
        if on_frames is not None:
            on_frames(frames)
        return frames

    monkeypatch.setattr(pixels, "decode_video", decode)
