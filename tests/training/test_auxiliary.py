"""The losses on decoded frames in a training step: exact, of the right frames and sound, live and cached alike."""

import json
import random
from dataclasses import replace

import pytest
import torch
from small_networks import small_syncnet, small_videomae
from training_runs import MODES, flags, live_sample, make_module, write_inputs

from diffsynth_omniavatar import host
from diffsynth_omniavatar.losses.flow import flow_loss
from diffsynth_omniavatar.losses.lpips import LpipsLoss
from diffsynth_omniavatar.losses.mel import mel_spectrogram
from diffsynth_omniavatar.losses.sync import SyncLoss
from diffsynth_omniavatar.losses.trepa import TrepaLoss
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.accelerator import DivergedError
from diffsynth_omniavatar.training.auxiliary import AuxiliaryLosses
from diffsynth_omniavatar.training.flags import parse_arguments
from diffsynth_omniavatar.training.log_table import read_table

FRAMES = 21
of_the_losses = pytest.mark.one_host("the gradient through each host's decoder, and I2V training, run on both hosts")
WEIGHTS = {"sync_weight": 0.3, "lpips_weight": 0.5, "trepa_weight": 20.0, "recon_weight": 0.7}


class Distance(torch.nn.Module):
    """In place of LPIPS's network: a nonlinear distance of pictures [n, 3, h, w], [n, 1, 1, 1]."""

    def forward(self, ours, theirs):
        return (ours.sin() - theirs.sin()).square().mean((1, 2, 3), keepdim=True)


def all_losses(**options):
    sync, trepa = SyncLoss(small_syncnet(), stride=3), TrepaLoss(small_videomae(), stride=3)
    return AuxiliaryLosses(sync=sync, lpips=LpipsLoss(Distance(), window=4), trepa=trepa, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("auxiliary"))


@pytest.fixture(scope="module")
def module(folder):
    return make_module(folder / "family")


def batch_sample(**changed):
    generator = torch.Generator().manual_seed(5)
    no = torch.zeros(2, dtype=torch.bool)
    pixels = (torch.rand((2, FRAMES, 32, 32, 3), generator=generator) * 255).to(torch.uint8)
    fields = {
        "sources": ["one", "two"], "num_frames": FRAMES, "prefix_frames": 1,
        "drop_text": no, "drop_audio": no, "drop_prefix": no,
        "target_video": pixels, "reference_image": pixels[:, 7], "prompts": ["a", "b"],
        "waveforms": [0.1 * torch.randn(640 * 30, generator=generator) for _ in range(2)],
    }  # fmt: skip
    return live_sample(**fields | changed)


def gradients(module):
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_one_graph_through_the_hosts_decoder(module):
    """Everything at once: whole clip decoded by the host's own code, whole losses, one backward."""
    losses = all_losses(**WEIGHTS)
    sample = batch_sample()
    module.auxiliary = losses
    torch.manual_seed(0)
    loss = module(sample)
    loss.backward()
    got = gradients(module)

    module.auxiliary = None
    torch.manual_seed(0)
    shared, positive, _ = module.prepare(sample)
    flow = flow_loss(module.pipe, {**shared, **positive})
    record, clean, vae = shared["omni_record"], shared["input_latents"], module.pipe.vae
    x0 = (record.latents - record.sigma * record.prediction).clamp(-10, 10)
    x0 = torch.cat([clean[:, :, :1], x0[:, :, 1:]], dim=2)
    predicted, target = (vae.model.decode(latents, vae.scale)[:, :, 1:] for latents in (x0, clean))
    mels = [mel_spectrogram(waveform) for waveform in sample.waveforms]
    whole = WEIGHTS["recon_weight"] * flow
    for name, value in {
        "sync": losses.sync(predicted, mels, [1, 1]),
        "lpips": losses.lpips(predicted, target),
        "trepa": losses.trepa(predicted, target),
    }.items():
        whole = whole + WEIGHTS[f"{name}_weight"] * value
    whole.backward()
    wanted = gradients(module)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    assert got.keys() == wanted.keys()
    for name in wanted:  # float32, through a VAE and a transformer: sums in another order
        assert (got[name] - wanted[name]).norm() <= 2e-5 * wanted[name].norm(), name


@of_the_losses
@pytest.mark.slow
def test_each_loss_alone_adds_its_gradient(module):
    """The gradient of all is the sum of those of each."""
    sample, parts = batch_sample(), {}
    every = all_losses(**WEIGHTS)
    for name in ("all", "sync", "lpips", "trepa", "none"):
        chosen = {other: None for other in ("sync", "lpips", "trepa") if name not in ("all", other)}
        module.auxiliary = None if name == "none" else replace(every, **chosen, recon_weight=1.0)
        torch.manual_seed(0)
        module(sample).backward()
        parts[name] = gradients(module)
    module.auxiliary = None
    for name in parts["all"]:
        each = sum(parts[loss][name] - parts["none"][name] for loss in ("sync", "lpips", "trepa"))
        torch.testing.assert_close(parts["all"][name] - parts["none"][name], each, rtol=1e-3, atol=2e-5)
    for loss in ("sync", "lpips", "trepa"):
        assert any(parts[loss][name].ne(parts["none"][name]).any() for name in parts["none"])


def test_frames_behind_the_known_ones_are_looked_at():
    losses = all_losses()
    assert losses.frames(81, 13) == range(13, 81)
    assert losses.frames(21, 13) == range(5, 21)  # a window has 16
    assert AuxiliaryLosses(lpips=losses.lpips).frames(21, 13) == range(13, 21)
    random.seed(0)
    some = replace(losses, num_frames=20)
    drawn = {some.frames(81, 13) for _ in range(400)}
    assert all(len(part) == 20 for part in drawn)
    assert {part.start for part in drawn} == set(range(13, 62))


@of_the_losses
@pytest.mark.slow
def test_dropped_sound_has_no_sync_loss(module):
    module.auxiliary = AuxiliaryLosses(sync=SyncLoss(small_syncnet()), sync_weight=1.0)
    collected = []
    module.on_parts = lambda parts: collected.append(parts)
    for drops in ([False, False], [False, True], [True, True]):
        torch.manual_seed(0)
        module(batch_sample(drop_audio=torch.tensor(drops)))
    torch.manual_seed(0)
    sample = batch_sample(drop_audio=torch.tensor([False, True]))
    sample.waveforms[1] *= 0
    module(sample)
    module.auxiliary = module.on_parts = None
    both, one, none, silenced = collected
    assert none.keys() == {"flow"} and both["sync"] != one["sync"] == silenced["sync"]


def logged_values(output, name):
    return [row[name] for row in read_table(output / "loss.csv")]


@pytest.mark.parametrize("mode", ["i2v", pytest.param("v2v-masked", marks=of_the_losses)])
@pytest.mark.slow
def test_training_live_and_from_a_cache(folder, tmp_path, monkeypatch, mode):
    """The command line: all losses are logged; the sound of the mel is in the cache."""
    monkeypatch.setattr(run, "load_syncnet", lambda *_: small_syncnet())
    monkeypatch.setattr(run, "load_videomae", lambda *_: small_videomae())
    monkeypatch.setattr(run, "load_lpips", lambda *_: Distance())
    for name in ("s", "v"):
        (tmp_path / name).touch()
    files = ["--syncnet_path", str(tmp_path / "s"), "--videomae_path", str(tmp_path / "v"), "--aux_memory", "segments"]
    more = ["--use_sync_loss", "--use_lpips_loss", "--use_trepa_loss", *files, *MODES[mode], "--max_steps", "2"]
    more += ["--prefix_frames", "1", "--min_frames", "17", "--fixed_length", "--num_frames", "21"]
    assert run.main(flags(folder, tmp_path / "live", *more)) == 0
    for name in ("loss", "flow", "sync", "lpips", "trepa"):
        assert len(logged_values(tmp_path / "live", name)) == 2

    from diffsynth_omniavatar.data.encode import CacheOptions, encoder_pipeline
    from diffsynth_omniavatar.data.precompute import precompute

    args = parse_arguments(flags(folder, tmp_path / "cached", *more))
    conventions = run.conventions_of(args)
    settings = run.clip_settings(args, conventions)
    models = folder / "family"
    configs = [host.ModelConfig(path=path) for path in json.loads(args.model_paths)[1:]]
    pipe = encoder_pipeline(
        settings,
        model_configs=configs,
        tokenizer_config=host.ModelConfig(path=args.tokenizer_path),
        wav2vec2=models / FILES["wav2vec2"],
        device="cpu",
        dtype=torch.float32,
    )
    options = CacheOptions(references=25, audio_dtype=torch.float32)  # every frame, as without a cache
    recipe = run.recipe_of(args, conventions)
    precompute(pipe, run.named_clips(args), tmp_path / "cache", settings=settings, recipe=recipe, options=options)
    cache = ["--dataset_base_path", str(tmp_path / "cache"), "--dataset_metadata_path", str(tmp_path / "cache")]
    assert run.main(flags(folder, tmp_path / "cached", *more, *cache)) == 0
    live, cached = (logged_values(tmp_path / run, "sync") for run in ("live", "cached"))
    assert live == pytest.approx(cached, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name(folder, tmp_path, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, ours, theirs):
            return (ours - theirs).mean((1, 2, 3), keepdim=True) * float("nan")

    monkeypatch.setattr(run, "load_lpips", lambda *_: Broken())
    with pytest.raises(DivergedError, match=r"the lpips loss is nan in step 1.*clip|sample"):
        run.train(parse_arguments(flags(folder, tmp_path, "--use_lpips_loss", "--max_steps", "1")))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--use_sync_loss"], "--use_sync_loss needs --syncnet_path"),
        (["--use_sync_loss", "--syncnet_path", "nowhere.pt"], r"nowhere\.pt does not exist"),
        (["--aux_num_frames", "16"], "--aux_num_frames: the loss is not on"),
        (["--use_lpips_loss", "--trepa_stride", "4"], "--trepa_stride: the loss is not on"),
        (["--use_lpips_loss", "--aux_num_frames", "0"], "less than the 1 that a window has"),
        (["--use_lpips_loss", "--aux_lpips_weight", "-1"], "--aux_lpips_weight -1.0 is negative"),
        (["--use_trepa_loss", "--videomae_path", __file__, "--prefix_frames", "1"], "--min_frames 17"),
        (["--use_lpips_loss", "--aux_memory", "offload"], "is for a CUDA device"),
    ],
)
def test_faulty_flags_are_named(folder, tmp_path, capsys, monkeypatch, more, message):
    import re

    monkeypatch.setattr(run, "load_videomae", lambda *_: small_videomae())
    monkeypatch.setattr(run, "load_lpips", lambda *_: Distance())
    assert run.main(flags(folder, tmp_path, "--max_steps", "1", *more)) == 2
    assert re.search(message, capsys.readouterr().err)
