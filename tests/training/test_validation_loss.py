"""The loss on held-out clips is a function of the weights and the clips, and of nothing else."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from synthetic_clips import write_table
from training_runs import make_module, write_inputs

from diffsynth_omniavatar.data.clips import ClipSettings
from diffsynth_omniavatar.data.dataset import OmniAvatarDataset
from diffsynth_omniavatar.data.encode import CacheOptions
from diffsynth_omniavatar.data.precompute import precompute
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.losses.flow import flow_loss
from diffsynth_omniavatar.training import validation_loss
from diffsynth_omniavatar.training.module import OmniAvatarTrainingModule
from diffsynth_omniavatar.training.validation_loss import ValidationLoss, noise_levels, validation_recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # the hosts' own
RECIPE = Recipe(num_frames=17, text_drop_prob=1.0, audio_drop_prob=1.0, prefix_drop_prob=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("held-out"))
    Image.new("RGB", (32, 32), "teal").save(folder / "face.png")
    rows = [{"video": f"{index}.mp4", "prompt": "speaker", "reference": "face.png"} for index in range(2)]
    write_table(folder / "clips.csv", rows)  # a cache has other frames as references, if they are not given
    return folder


@pytest.fixture(scope="module")
def module(folder):
    return make_module(folder / "family")


def make_loss(module, data, process=0, processes=1):
    """Of one of several processes."""
    settings = ClipSettings(conventions=module.pipe.conventions, height=32, width=32)
    dataset = OmniAvatarDataset(read_clips(data), settings=settings, recipe=validation_recipe(RECIPE), strict=True)
    share = SimpleNamespace(share=lambda count: range(process, count, processes), is_sharded=False)
    return ValidationLoss(module=module, accelerator=share, dataset=dataset, levels=2)


def value(loss):
    return loss(1).metrics["validation_loss"]


def test_it_is_the_same_for_the_same_weights_alone(folder, module):
    loss = make_loss(module, folder / "clips.csv")
    torch.manual_seed(1)
    first = value(loss)
    torch.manual_seed(2)
    assert value(loss) == first == value(make_loss(module, folder / "clips.csv"))
    bias = module.pipe.dit.patch_embedding.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[0] += 0.01
        changed = value(loss)
        bias.copy_(before)
    assert changed != first
    assert loss(0) is None  # unless asked to validate at the start


def test_a_cache_gives_what_its_table_gives(folder, module, tmp_path):
    live = make_loss(module, folder / "clips.csv")
    options = CacheOptions(audio_dtype=torch.float32)
    settings = live.dataset.settings
    clips = read_clips(folder / "clips.csv")
    precompute(module.pipe, clips, tmp_path, settings=settings, recipe=RECIPE, options=options)
    module.pipe.scheduler.set_timesteps(1000, training=True)
    assert value(make_loss(module, tmp_path)) == pytest.approx(value(live), rel=1e-6)


def test_processes_find_together_what_one_finds(folder, module, monkeypatch):
    alone = value(make_loss(module, folder / "clips.csv"))
    parts = []
    monkeypatch.setattr(validation_loss, "gather_object", lambda found: parts.extend(found) or parts)
    for process in range(2):
        together = value(make_loss(module, folder / "clips.csv", process, 2))
    assert len(parts) == 2 and together == alone


def test_it_is_the_training_loss_at_its_levels_without_the_weight_of_the_timestep(folder, module, monkeypatch):
    """The host's own loss, made to draw a level and noise, is the same number."""
    loss = make_loss(module, folder / "clips.csv")
    pipe = module.pipe
    place = 600
    sigma = float(pipe.scheduler.sigmas[place])
    sample = loss.dataset[0]
    shared, positive, _ = module.prepare(sample)
    (ours,) = validation_loss.fixed_noise_losses(pipe, {**shared, **positive}, [0], [sigma])
    noise = validation_loss._noise(shared["input_latents"].shape[1:], validation_loss.SEED, 0, 0)[None]
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)  # DiffSynth 2.x draws it in its loss
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor([place]))
    with torch.no_grad():
        theirs = float(flow_loss(pipe, {**shared, **positive, "noise": noise}))
    assert ours == pytest.approx(theirs / float(pipe.scheduler.linear_timesteps_weights[place]), rel=1e-4)


def test_levels_lie_in_the_part_that_trains(module, folder):
    assert noise_levels(4) == [0.125, 0.375, 0.625, 0.875]
    loss = make_loss(module, folder / "clips.csv")
    part = replace(module.settings, min_timestep_boundary=0.25, max_timestep_boundary=0.5)
    loss.module = SimpleNamespace(pipe=module.pipe, settings=part)
    sigmas = module.pipe.scheduler.sigmas
    low, high = loss._levels()
    assert sigmas[500] < low < high < sigmas[250]
    assert high - low == pytest.approx(float(sigmas[250] - sigmas[500]) / 2)


def test_a_clip_that_is_gone_costs_the_loss_and_not_the_run(folder, module, tmp_path, caplog, monkeypatch):
    loss = make_loss(module, folder / "clips.csv")
    monkeypatch.setattr(OmniAvatarTrainingModule, "prepare", lambda *_: (_ for _ in ()).throw(OSError("it is gone")))
    assert loss(3).metrics == {}
    assert "no validation loss at step 3, training goes on: it is gone" in caplog.text
