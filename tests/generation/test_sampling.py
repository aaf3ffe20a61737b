"""Guidance is the stated sum, solvers keep their laws, and presets are the published numbers."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation import pixels
from diffsynth_omniavatar.generation.guidance import Guidance, projected, rescaled
from diffsynth_omniavatar.generation.loading import load_pipeline
from diffsynth_omniavatar.generation.scheduler import FreshNoise, StepScheduler
from diffsynth_omniavatar.model.frame_decoder import decode_video
from diffsynth_omniavatar.model.sampling import SAMPLERS, Sampling
from diffsynth_omniavatar.nano.family import write_random_family

GENERATOR = torch.Generator().manual_seed(0)
P, O, N, X = torch.randn(4, 2, 4, 3, 2, 2, generator=GENERATOR)  # noqa: E741  as in the formula
TIMESTEP = torch.tensor([250.0])
TEXT, NEGATIVE, SOUND = torch.ones(1), torch.zeros(1), torch.ones(1)


def guided(sampling: Sampling, known_frames: int = 0) -> tuple[torch.Tensor, list[str]]:
    """What the host's loop makes of the passes of one step, and which passes were computed."""
    computed = []

    def denoise(context, audio, _):
        name = ("p" if audio else "o") if context else "n"
        computed.append(name)
        return {"p": P, "o": O, "n": N}[name]

    guidance = Guidance(sampling, NEGATIVE, known_frames=known_frames)
    positive = guidance(denoise, X, TIMESTEP, TEXT, SOUND, None)
    if sampling.cfg_scale == 1:
        return positive, computed
    negative = guidance.negative(denoise, NEGATIVE, 0 * SOUND, None)
    return negative + sampling.cfg_scale * (positive - negative), computed


@pytest.mark.parametrize(
    ("text", "audio", "passes"),
    [(1, 2, "po"), (1, 0, "po"), (2.5, 3, "pon"), (0, 3, "pon"), (2, 2, "pn"), (0, 0, "pn")],
)
def test_guidance_is_the_stated_sum_in_as_few_passes(text, audio, passes):
    result, computed = guided(Sampling(cfg_scale=text, audio_cfg_scale=audio))
    torch.testing.assert_close(result, N + text * (O - N) + audio * (P - O), rtol=1e-5, atol=1e-5)
    assert "".join(computed) == passes


def test_guidance_is_in_the_stated_part_of_the_steps():
    sampling = Sampling(steps=4, guidance_from=0.25, guidance_to=0.75)
    assert [*sampling.guided_steps] == [1, 2]
    assert [*Sampling(steps=10, guidance_to=0.3).guided_steps] == [0, 1, 2]
    assert [*Sampling(steps=1, guidance_from=0.5).guided_steps] == []
    guidance = Guidance(sampling, NEGATIVE)
    inputs = (X, TIMESTEP, TEXT, SOUND, None)
    results = [guidance(lambda context, *_: P if context else N, *inputs) for _ in range(4)]
    assert [torch.equal(result, P) for result in results] == [True, False, False, True]


def test_rescaling_gives_back_the_deviation_of_the_frames_that_are_made():
    sampling = Sampling(cfg_scale=5.0, guidance_rescale=1.0)
    result, _ = guided(sampling, known_frames=1)
    deviation = [flow[:, :, 1:].std(dim=(1, 2, 3, 4)) for flow in (result, P)]
    torch.testing.assert_close(*deviation)
    plain, _ = guided(Sampling(cfg_scale=5.0))
    torch.testing.assert_close(
        F.cosine_similarity(result.flatten(), plain.flatten(), dim=0), torch.tensor(1.0), atol=0.02, rtol=0
    )
    torch.testing.assert_close(rescaled(plain, P, 0.3), 0.3 * rescaled(plain, P, 1.0) + 0.7 * plain)


@pytest.mark.parametrize("scales", [{"cfg_scale": 4.0}, {"cfg_scale": 2.0, "audio_cfg_scale": 3.0}])
@pytest.mark.parametrize("eta", [0.0, 0.25])
def test_projected_guidance_is_the_papers_update_of_the_clean_video(scales, eta):
    """x0' = x0(p) + D_orthogonal + eta D_parallel, with D = x0(g) - x0(p) split along x0(p), frames made only."""
    sampling = Sampling(**scales, apg_eta=eta)
    result, _ = guided(sampling, known_frames=1)
    plain, _ = guided(Sampling(**scales))
    got, without, wanted = ((X - 0.25 * flow)[:, :, 1:].flatten(1) for flow in (result, P, plain))
    unit = without / without.norm(dim=1, keepdim=True)
    change = wanted - without
    parallel = (change * unit).sum(dim=1, keepdim=True) * unit
    torch.testing.assert_close(got, without + change - parallel + eta * parallel, rtol=1e-5, atol=1e-5)


def test_projected_guidance_of_all_or_nothing():
    """Along x0 nothing is left, across x0 everything."""
    torch.testing.assert_close(projected(P + 3 * X, P, X, 0.0), P, rtol=1e-4, atol=1e-5)
    along, square = ((part * X).sum(dim=(1, 2, 3, 4), keepdim=True) for part in (O, X))
    across = P + O - along / square * X
    torch.testing.assert_close(projected(across, P, X, 0.0), across, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, False),
        ({"cfg_scale": 1.0}, False),
        ({"audio_cfg_scale": 4.5}, False),
        ({"cfg_scale": 1.0, "guidance_rescale": 0.7, "guidance_to": 0.5}, False),
        ({"audio_cfg_scale": 3.0}, True),
        ({"cfg_scale": 1.0, "audio_cfg_scale": 2.0}, True),
        ({"guidance_rescale": 0.7}, True),
        ({"apg_eta": 0.0}, True),
        ({"cfg_scale": 1.0, "apg_eta": 0.0}, False),
        ({"guidance_to": 0.5}, True),
        ({"guidance_from": 0.5}, True),
    ],
)
def test_the_hosts_own_passes_are_kept_where_they_are_enough(settings, own):
    assert Sampling(**settings).has_hosts_guidance is not own


# Solvers


def scheduler(noise=None, **settings):
    sampling = Sampling(**settings)
    made = StepScheduler(host.WanVideoPipeline(device="cpu", torch_dtype=torch.float32).scheduler, sampling, noise)
    made.set_timesteps(sampling.steps, shift=sampling.sigma_shift)
    return made


def sampled(steps, latents, flow):
    for timestep, sigma in zip(steps.timesteps, steps.sigmas, strict=True):
        latents = steps.step(flow(latents, float(sigma)), timestep, latents)
    return latents


@pytest.mark.parametrize(
    "settings",
    [{"steps": 1}, {"steps": 7}, {"steps": 3, "timesteps": "1000,800,10"}, {"steps": 4, "solver": "renoise"}],
)
def test_straight_flows_end_at_the_clean_latents(settings):
    """With x = (1 - s) x0 + s e and the flow e - x0 that leads to one x0, any number of steps is exact."""
    clean, noise = torch.randn(2, 1, 4, 2, 3, 3, generator=GENERATOR)
    steps = scheduler(FreshNoise([3]), **settings)
    result = sampled(steps, noise, lambda x, sigma: (x - clean) / sigma)
    torch.testing.assert_close(result, clean, rtol=1e-5, atol=1e-5)


def test_euler_with_the_grid_written_out_is_the_hosts():
    noise = torch.randn(1, 4, 2, 3, 3, generator=GENERATOR)
    written = scheduler(steps=4, timesteps=(1000, 750, 500, 250))
    grid = scheduler(steps=4)
    torch.testing.assert_close(written.timesteps, grid.timesteps)
    results = [sampled(steps, noise, lambda x, sigma: torch.sin(3 * x) + sigma) for steps in (written, grid)]
    torch.testing.assert_close(*results)


def test_renoising_gives_the_marginals_of_the_forward_process():
    """If each predicted x0 is drawn from the data N(m, d^2), x at level s' is N((1 - s') m, ((1 - s') d)^2 + s'^2), and
    has nothing of the noise before."""
    mean, deviation, count = 2.0, 0.5, 200_000
    draws = FreshNoise([5])
    steps = scheduler(draws, steps=3, solver="renoise")
    latents = start = torch.randn(1, count, generator=torch.Generator().manual_seed(5))
    for index, sigma in enumerate(map(float, steps.sigmas)):
        clean = mean + deviation * torch.randn(1, count, generator=GENERATOR)
        latents = steps.step((latents - clean) / sigma, steps.timesteps[index], latents)
        level = float(steps.sigmas[index + 1]) if index < 2 else 0.0
        assert latents.mean().item() == pytest.approx((1 - level) * mean, abs=0.01)
        wanted = ((1 - level) * deviation) ** 2 + level**2
        assert latents.var().item() == pytest.approx(wanted, rel=0.02)
        assert abs(torch.corrcoef(torch.cat([latents, start]))[0, 1].item()) < 0.01
    again, other = FreshNoise([5]), FreshNoise([6])
    assert torch.equal(again((1, 9)), FreshNoise([5])((1, 9))) and not torch.equal(again((1, 9)), other((1, 9)))
    both = FreshNoise([5, 6])((2, 9))
    assert torch.equal(both, torch.cat([FreshNoise([seed])((1, 9)) for seed in (5, 6)]))


# Presets

TIMESTEPS = {
    "lightx2v4": [1000, 937.5, 833.333, 625],
    "lightx2v8": [5000 * u / (1 + 4 * u) for u in (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)],
    "causvid": [999, 934, 862, 756, 603, 410, 250, 140, 74],
    "fusionx": [2000 * u / (1 + u) for u in (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)],
    "fastwan": [1000, 757, 522],
}


@pytest.mark.parametrize("name", TIMESTEPS)
def test_presets_give_the_published_timesteps(name):
    sampling = Sampling(steps=25, audio_cfg_scale=3.0, negative_prompt="a hat").with_given(sampler=name)
    settings = {key: getattr(sampling, key) for key in SAMPLERS[name].settings}
    made = scheduler(**settings)
    torch.testing.assert_close(made.timesteps, torch.tensor(TIMESTEPS[name], dtype=torch.float32), atol=2e-3, rtol=0)
    torch.testing.assert_close(made.sigmas, torch.tensor(sampling.sigmas))
    assert (sampling.cfg_scale, sampling.audio_cfg_scale, sampling.negative_prompt) == (1.0, None, "a hat")
    assert sampling.solver == ("renoise" if name == "fastwan" else "euler") and SAMPLERS[name].source


def test_the_default_preset_is_upstreams():
    own = Sampling(steps=3, timesteps=(900, 500, 100), solver="renoise", guidance_to=0.5, match_colours=True)
    assert own.with_given(sampler="default") == Sampling(match_colours=True)


# The pipeline


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return load_pipeline(folder=write_random_family(tmp_path_factory.mktemp("family")), device="cpu", dtype="float32")


def clip(pipe, monkeypatch, **settings):
    """The final latents, and how often the denoiser ran."""
    made = SimpleNamespace(passes=0, final=None)

    def decode(latents, **_):
        made.final = latents
        return torch.zeros(1, 3, 5, 32, 32)

    hook = pipe.dit.register_forward_hook(lambda *_: setattr(made, "passes", made.passes + 1))
    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "decode", decode)
        image, rows = Image.new("RGB", (32, 32), "teal"), torch.ones(5, pipe.dit.config.audio_dim)
        pipe("a", input_image=image, audio_features=rows, height=32, width=32, num_frames=5,
             seed=1, output_type="floatpoint", progress_bar_cmd=iter, **settings)  # fmt: skip
    hook.remove()
    return made


def test_settings_act_in_the_pipeline_and_leave_its_scheduler(pipe, monkeypatch):
    before = pipe.scheduler
    plain = clip(pipe, monkeypatch, sampler="lightx2v4")
    assert plain.passes == 4
    written = clip(pipe, monkeypatch, timesteps="1000,750,500,250", cfg_scale=1.0)
    assert torch.equal(written.final, plain.final)
    told = []
    fresh = clip(pipe, monkeypatch, sampler="lightx2v4", solver="renoise", on_step=lambda *step: told.append(step))
    assert [step for step, _ in told] == [1, 2, 3, 4]
    torch.testing.assert_close(told[-1][1], fresh.final[0])  # what is known, and the last step's clean video
    assert fresh.passes == 4 and not torch.equal(fresh.final, plain.final)
    assert torch.equal(clip(pipe, monkeypatch, sampler="lightx2v4", solver="renoise").final, fresh.final)
    heard = clip(pipe, monkeypatch, num_inference_steps=4, cfg_scale=1.0, audio_cfg_scale=2.0)
    assert heard.passes == 8 and not torch.equal(heard.final, plain.final)
    projected = clip(pipe, monkeypatch, num_inference_steps=4, apg_eta=0.0)
    assert projected.passes == 8 and not torch.equal(projected.final, plain.final)
    half = clip(pipe, monkeypatch, num_inference_steps=4, guidance_to=0.5)
    assert half.passes == 6 and not torch.equal(half.final, plain.final)
    assert pipe.scheduler is before


@pytest.mark.parametrize("tiled", [False, True])
def test_the_pipeline_decodes_as_the_host_does(pipe, monkeypatch, tiled):
    """Without tiles by this package's own decoder, which is taken back after the call."""
    latents, counted, decode = [], [], pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda x, **options: latents.append(x) or decode(x, **options))
    monkeypatch.setattr(pixels, "decode_video", lambda *inputs: counted.append(1) or decode_video(*inputs))
    image, rows = Image.new("RGB", (32, 48), "teal"), torch.ones(5, pipe.dit.config.audio_dim)
    parts = []
    decoded = pipe("a", input_image=image, audio_features=rows, height=48, width=32, num_frames=5, seed=1, tiled=tiled,
                   cfg_scale=1.0, num_inference_steps=1, output_type="floatpoint", on_frames=parts.append,
                   progress_bar_cmd=iter)  # fmt: skip
    wanted = decode(latents[0], device="cpu", tiled=tiled, tile_size=(30, 52), tile_stride=(15, 26))[0]
    assert torch.equal(decoded, wanted) and len(counted) == (not tiled)
    assert [part.shape[1] for part in parts] == ([5] if tiled else [1, 4])
    assert torch.equal(torch.cat(parts, dim=1), decoded)
    assert "single_decode" not in vars(pipe.vae)
