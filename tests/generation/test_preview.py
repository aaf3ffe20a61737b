"""Previews show what the latents will be, by a map that is fitted to the VAE."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from diffsynth_omniavatar.generation.chunks import ChunkMaker
from diffsynth_omniavatar.generation.preview import LatentColours, sheet
from diffsynth_omniavatar.generation.request import RequestError, TalkRequest
from diffsynth_omniavatar.generation.scheduler import FreshNoise, StepScheduler
from diffsynth_omniavatar.media.images import to_bytes, to_video
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.files import NANO_FOLDER
from diffsynth_omniavatar.model.sampling import Sampling
from diffsynth_omniavatar.model.small_family import NANO, SmallVAE
from diffsynth_omniavatar.nano.speaker.clips import draw_clip


class LinearVAE:
    """Each latent is a linear function of the mean colour of its pixels."""

    def __init__(self):
        generator = torch.Generator().manual_seed(2)
        self.weights, self.bias = torch.randn(16, 3, generator=generator), torch.randn(16, generator=generator)

    def single_encode(self, video, device):
        means = F.avg_pool3d(video[:, :, ::4], (1, 8, 8))
        return torch.einsum("kc,bcthw->bkthw", self.weights, means) + self.bias.view(1, -1, 1, 1, 1)


def test_colours_of_a_linear_vae_are_exact():
    vae = LinearVAE()
    video = 2 * torch.rand(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(3)) - 1
    pictures = LatentColours.of_vae(vae, "cpu", torch.float32).pictures(vae.single_encode(video, "cpu")[0])
    wanted = to_bytes(F.avg_pool3d(video[:, :, ::4], (1, 8, 8))[0].permute(1, 2, 3, 0)).numpy()
    assert pictures.shape == (3, 2, 3, 3)
    assert np.abs(pictures.astype(int) - wanted).max() <= 1


def test_previews_of_the_small_model_look_like_the_person():
    vae = SmallVAE(**NANO.vae)
    vae.load_state_dict({name: part.float() for name, part in load_file(NANO_FOLDER / "vae.safetensors").items()})
    picture = to_video(torch.from_numpy(draw_clip(3, 1, split="evaluation").frames[None]))
    latents = vae.single_encode(picture, "cpu")[0]
    shown = LatentColours.of_vae(vae, "cpu", torch.float32).pictures(latents)[0].astype(float).ravel()
    true = to_bytes(F.avg_pool2d(picture[0, :, 0], 8)).permute(1, 2, 0).numpy().astype(float).ravel()
    assert np.corrcoef(shown, true)[0, 1] > 0.8
    assert np.abs(shown - true).mean() < 30


@pytest.mark.parametrize("solver", ["euler", "renoise"])
def test_each_step_tells_the_clean_latents_of_the_first_clip_with_those_that_are_known(solver):
    clean, noise = torch.randn(2, 2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    told = []
    host_scheduler = SimpleNamespace(
        sigmas=torch.tensor([1.0, 0.5]),
        timesteps=torch.tensor([1000.0, 500.0]),
        step=lambda flow, timestep, sample: sample - 0.5 * flow,
    )
    scheduler = StepScheduler(
        host_scheduler, Sampling(steps=2, solver=solver), FreshNoise([3, 4]), lambda *step: told.append(step)
    )
    scheduler.known = torch.full((2, 4, 1, 2, 2), 9.0)
    latents = noise
    for timestep, sigma in ((1000.0, 1.0), (500.0, 0.5)):
        latents = scheduler.step((latents - clean) / sigma, torch.tensor(timestep), latents)
    assert [step for step, _ in told] == [1, 2]
    for _, latents in told:
        torch.testing.assert_close(latents, torch.cat([scheduler.known, clean[:, :, 1:]], dim=2)[0])


class VAEPipe:
    """Stands for a pipeline that only tells of its steps."""

    conventions, device, torch_dtype, is_first_process = Conventions(), "cpu", torch.float32, True
    vae = LinearVAE()

    def load_models_to_device(self, names):
        assert names == ["vae"]

    def encode_prompt(self, prompt):
        return torch.zeros(1, 1, 1)

    def __call__(self, on_step, **_):
        for step, level in ((1, -0.5), (2, 1.0)):
            on_step(step, self.vae.single_encode(torch.full((1, 3, 17, 32, 16), level), "cpu")[0])
        return torch.zeros(3, 17, 32, 16)


def test_each_step_of_each_chunk_is_shown(tmp_path):
    file, seen, sides = tmp_path / "new" / "now.png", [], []

    def on_preview(preview):
        where = (preview.chunk, preview.chunks, preview.step, preview.steps)
        seen.append((*where, preview.pictures.shape, preview.pictures.mean()))
        with Image.open(file) as picture:
            sides.append((picture.size, picture.convert("RGB").getpixel((0, 0))))

    request = TalkRequest(
        prompt="a", audio="a.wav", image="a.png", out=tmp_path / "a.mp4", steps=2, preview=file, cfg_scale=1.0
    )
    maker = ChunkMaker(VAEPipe(), request, (32, 16), 2, on_preview)
    for index in range(2):
        maker.make(index, torch.zeros(17, 4), image=None, video=None, original=torch.zeros(3, 1, 32, 16),
                   reference_sequence=None, carried=None, progress_bar_cmd=iter)  # fmt: skip
    steps = ((1, 64), (2, 255))
    assert seen == [(chunk, 2, step, 2, (5, 4, 2, 3), level) for chunk in (1, 2) for step, level in steps]
    # Five pictures of 4x2 in two rows of three or more, eight times as large.
    assert sides == [((4 * 2 * 8, 2 * 4 * 8), (level,) * 3) for level in (64, 255)] * 2
    assert [path.name for path in file.parent.iterdir()] == ["now.png"]


def test_a_sheet_has_the_pictures_in_reading_order():
    pictures = np.arange(0, 250, 50, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(8, 1).repeat(8, 2).repeat(3, 3)
    shown = np.asarray(sheet(pictures))
    assert shown.shape == (2 * 64, 3 * 64, 3)
    assert [shown[32 + 64 * (k // 3), 32 + 64 * (k % 3), 0] for k in range(6)] == [0, 50, 100, 150, 200, 0]
    assert sheet(np.zeros((4, 600, 600, 3), np.uint8)).size == (1200, 1200)


@pytest.mark.parametrize(
    ("preview", "text"), [("a.mp4", "--preview .*must end in .png, .jpg, .webp"), ("face.png", "the file of --image")]
)
def test_a_preview_that_cannot_be_written_is_refused(tmp_path, preview, text):
    with pytest.raises(RequestError) as caught:
        TalkRequest(
            prompt="a", audio="a.wav", image=tmp_path / "face.png", out=tmp_path / "a.mp4", preview=tmp_path / preview
        )
    caught.match(text.replace("--", ""))
    assert text.rpartition("--")[2].split()[0] in caught.value.flags()
