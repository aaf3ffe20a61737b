"""The whole denoising through `pipe(...)` gives upstream's numbers; registration touches nothing else."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from golden_models import Goldens, relative_deviation

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation import pipeline
from diffsynth_omniavatar.generation.masks import draw_mouth_mask, load_mouth_mask, mask_to_latents, mask_video
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.request import TEA_CACHE_MODELS
from diffsynth_omniavatar.generation.units import TILES, PrefixPostUnit, PromptUnit, units
from diffsynth_omniavatar.host.versions import UnsupportedHostError, host_generation
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.small_family import register_family
from diffsynth_omniavatar.nano.family import write_random_family

TOLERANCE = 1e-5  # of the goldens' README
SCHEDULER_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def golden(goldens):
    return Goldens(goldens)


class GoldenVAE(torch.nn.Module):
    """Gives the golden latents by the number of frames, and keeps what it is asked to decode."""

    model = SimpleNamespace(z_dim=16)
    upsampling_factor = 8

    def __init__(self, latents_by_frames):
        super().__init__()
        self.latents_by_frames = latents_by_frames
        self.decoded = None

    def encode(self, videos, device, **_):
        return torch.cat([self.latents_by_frames[video.shape[1]] for video in videos])

    def decode(self, latents, device, **_):
        self.decoded = latents
        return torch.zeros(1, 3, 4 * latents.shape[2] - 3, 8, 8)


def golden_dit(golden, case):
    replaced = {}
    if "time_projection_weight_times" in case:
        weights = golden.weights()
        for part in ("weight", "bias"):
            name = f"time_projection.1.{part}"
            replaced[name] = weights[name] * case[f"time_projection_{part}_times"]
    return golden.dit(**replaced)


def run_case(golden, name, monkeypatch, **arguments):
    """Run a case of goldens `denoise` through the pipeline; gives the final latents, steps and TeaCache decisions."""
    case, tensors = golden.json("denoise")[name], golden.tensors("denoise")
    frames, size = case["T"], f"in.T{case['T']}"
    pipe = host.WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.audio_encoder = None  # 1.1.9 makes this attribute only in from_pretrained
    pipe.dit = golden_dit(golden, case)
    by_frames = {1: tensors[f"{size}.ref"]}
    prefix_video = None
    height, width = 8 * golden.dims["A_h"], 8 * golden.dims["A_w"]
    if case["fixed_frame"] > 1:
        known = 4 * case["fixed_frame"] - 3
        by_frames[known] = tensors[f"{size}.prefix"]
        prefix_video = torch.zeros(3, known, height, width)
    pipe.vae = GoldenVAE(by_frames)
    OmniAvatarPipeline.adopt(pipe, Conventions())
    pipe.generate_noise = lambda *_, **__: tensors[f"{size}.noise"]

    steps, caches, passes = [], {}, []
    scheduler_step, check = pipe.scheduler.step, host.TeaCache.check

    def record_step(model_output, timestep, sample, **kwargs):
        result = scheduler_step(model_output, timestep, sample, **kwargs)
        steps.append((model_output, result))
        return result

    def record_check(cache, *inputs):
        skipped = check(cache, *inputs)
        caches.setdefault(id(cache), (cache, []))[1].append((skipped, cache.accumulated_rel_l1_distance))
        return skipped

    monkeypatch.setattr(pipe.scheduler, "step", record_step)
    monkeypatch.setattr(host.TeaCache, "check", record_check)
    pipe.dit.register_forward_hook(lambda *_: passes.append(1))
    from PIL import Image

    pipe(
        prompt="",
        input_image=Image.new("RGB", (width, height)),
        audio_features=golden.audio("denoise", f"T{frames}/audio", frames)[0],
        prompt_embeds=tensors["in.context_posi"],
        negative_prompt_embeds=tensors["in.context_nega"],
        prefix_video=prefix_video,
        height=height,
        width=width,
        num_frames=4 * frames - 3,
        cfg_scale=case["cfg_scale"],
        # Upstream makes one pass with a text guidance of 1, whatever the audio's.
        audio_cfg_scale=case["audio_cfg_scale"] if case["cfg_scale"] != 1 else None,
        num_inference_steps=case["steps"],
        tea_cache_l1_thresh=case["tea_cache_l1_thresh"],
        tea_cache_model_id="Wan2.1-T2V-14B",
        output_type="floatpoint",
        progress_bar_cmd=iter,
        **arguments,
    )
    return SimpleNamespace(
        case=case,
        final=pipe.vae.decoded,
        steps=steps,
        passes=len(passes),
        caches=[decisions for _, decisions in caches.values()],
        golden_final=tensors[f"{name}.final"],
        tensors=tensors,
    )


@pytest.mark.parametrize(
    "name",
    ["two_pass", "three_pass", "continuation", "no_cfg", "teacache_off", "teacache", "teacache_12", "teacache_plain"],
)
def test_denoising_equals_upstream(golden, name, monkeypatch):
    result = run_case(golden, name, monkeypatch)
    assert relative_deviation(result.final, result.golden_final) < TOLERANCE
    assert result.passes == result.case["forward_passes"]
    if name == "two_pass":
        prediction, _ = result.steps[0]
        assert relative_deviation(prediction, result.tensors["two_pass.pred0"]) < TOLERANCE
        for index, (_, latents) in enumerate(result.steps):
            wanted = result.tensors[f"two_pass.after_step{index}"]
            # The known frames are put back before each step here and after it upstream; they are compared at the end.
            assert relative_deviation(latents[:, :, 1:], wanted[:, :, 1:]) < TOLERANCE, index
    for mine, wanted in zip(result.caches, result.case.get("teacache", []), strict=True):
        assert [skipped for skipped, _ in mine] == wanted["skipped"]
        assert [total for _, total in mine] == pytest.approx(wanted["accumulated"], rel=1e-4)


def test_tea_cache_has_coefficients_for_the_models_that_a_request_may_name():
    assert tuple(host.TeaCache(1, 0.1, TEA_CACHE_MODELS[0]).coefficients_dict) == TEA_CACHE_MODELS


def test_tea_cache_skips_in_all_three_passes(golden, monkeypatch):
    """Upstream makes the middle pass's cache anew at each step, so that it never skips. With that the result is its."""
    result = run_case(golden, "teacache_three_pass", monkeypatch)
    wanted = max((cache["skipped"] for cache in result.case["teacache"]), key=len)
    assert [[skipped for skipped, _ in cache] for cache in result.caches] == [wanted] * 3
    original = host.TeaCache

    class NeverSkips(original):
        def check(self, dit, x, t_mod):
            self.step = 0
            return original.check(self, dit, x, t_mod)

    monkeypatch.setattr(host, "TeaCache", NeverSkips)
    like_upstream = run_case(golden, "teacache_three_pass", monkeypatch)
    assert relative_deviation(like_upstream.final, like_upstream.golden_final) < TOLERANCE


def test_the_hosts_scheduler_is_upstreams(golden):
    tensors, facts = golden.tensors("scheduler"), golden.json("scheduler")
    scheduler = host.WanVideoPipeline(device="cpu", torch_dtype=torch.float32).scheduler
    sample, output = tensors["in.sample"], tensors["in.model_output"]
    for name in [name for name in tensors if name.endswith(".sigmas") and name.startswith("n")]:
        steps = name.split(".")[0]
        scheduler.set_timesteps(int(steps[1:]), denoising_strength=1.0, shift=5.0)
        assert relative_deviation(scheduler.sigmas, tensors[f"{steps}.sigmas"]) < SCHEDULER_TOLERANCE
        assert relative_deviation(scheduler.timesteps, tensors[f"{steps}.timesteps"]) < SCHEDULER_TOLERANCE
        rounded = scheduler.timesteps.to(torch.bfloat16).float()
        assert torch.equal(rounded, tensors[f"{steps}.timesteps_bf16"].float())
        for key in [key for key in tensors if key.startswith(f"{steps}.step")]:
            index, _, final = key.removeprefix(f"{steps}.step").partition("_")
            kwargs = {"to_final": True} if final else {}
            result = scheduler.step(output, scheduler.timesteps[int(index)], sample, **kwargs)
            assert relative_deviation(result, tensors[key]) < SCHEDULER_TOLERANCE, key
    scheduler.set_timesteps(
        1000, training=True, **({"shift": 5.0} if "shift" in _names(scheduler.set_timesteps) else {})
    )
    assert relative_deviation(scheduler.sigmas, tensors["train.sigmas"]) < SCHEDULER_TOLERANCE
    assert relative_deviation(scheduler.linear_timesteps_weights, tensors["train.weights"]) < SCHEDULER_TOLERANCE
    assert torch.equal(scheduler.training_target(sample, tensors["in.noise"], None), tensors["train.target"])
    for index in facts["train_index"]:
        timestep = scheduler.timesteps[index : index + 1]
        noisy = scheduler.add_noise(sample, tensors["in.noise"], timestep)
        assert relative_deviation(noisy, tensors[f"train.add_noise.{index}"]) < SCHEDULER_TOLERANCE
        weight = tensors[f"train.weight.{index}"].item()
        assert scheduler.training_weight(timestep).item() == pytest.approx(weight, rel=SCHEDULER_TOLERANCE, abs=1e-7)


def _names(function):
    return inspect.signature(function).parameters


ALL_UNITS = [PromptUnit(), *units(), PrefixPostUnit()]


@pytest.mark.parametrize("unit", ALL_UNITS, ids=lambda unit: type(unit).__name__)
def test_units_declare_what_they_take(unit):
    """The host reads inputs by name and gives None for a misspelt one."""
    taken = set(_names(unit.process)) - {"pipe", "tiles"}
    tiles = set(TILES) if "tiles" in _names(unit.process) else set()
    if unit.take_over:
        assert taken == {"inputs_shared", "inputs_posi", "inputs_nega"}
        return
    declared = set(unit.input_params or ()) | set(unit.input_params_posi or {})
    assert declared == taken | tiles
    available = set(_names(host.WanVideoPipeline.__call__)) | {
        "noise",
        "latents",
        "input_latents",
        "positive",
        "context",
    }
    assert {name for name in declared if not name.startswith("omni_")} <= available


def load_plain(folder):
    register_family()
    paths = [str(folder / FILES[name]) for name in ("dit", "text_encoder", "vae")]
    return host.WanVideoPipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[host.ModelConfig(path=path) for path in paths],
        tokenizer_config=host.ModelConfig(path=str(folder / FILES["tokenizer"])),
    )


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory):
    return write_random_family(tmp_path_factory.mktemp("family"))


def test_registration_leaves_other_pipelines_as_they_are(family_folder, capsys):
    untouched = host.WanVideoPipeline.__dict__["from_pretrained"]
    videos = []
    for registered in (False, True):
        if registered:
            pipeline.register()
        pipe = load_plain(family_folder)
        assert type(pipe) is host.WanVideoPipeline
        frames = pipe(prompt="a cat", height=32, width=32, num_frames=5, num_inference_steps=2, seed=0, tiled=False)
        videos.append([frame.tobytes() for frame in frames])
    assert videos[0] == videos[1]
    wrapped = host.WanVideoPipeline.__dict__["from_pretrained"]
    capsys.readouterr()
    pipeline.register()
    assert capsys.readouterr().out == "" and host.WanVideoPipeline.__dict__["from_pretrained"] is wrapped
    pipeline.unregister()
    pipeline.unregister()
    assert host.WanVideoPipeline.__dict__["from_pretrained"] is untouched
    pipeline.register()
    assert f"{host.VERSION} ({host.PIPELINE_MODULE})" in capsys.readouterr().out
    pipeline.unregister()


@pytest.mark.parametrize(
    ("version", "generation"), [("1.1.9", "wan_video_new"), ("2.1.0", "wan_video"), ("2.1.12", "wan_video")]
)
def test_known_hosts(version, generation):
    assert host_generation(version) == generation


@pytest.mark.parametrize("version", ["1.1.8", "2.0.16", "2.2.0", "3.0"])
def test_unknown_hosts_are_refused_by_name(version):
    with pytest.raises(UnsupportedHostError, match=rf"{version} is installed.*1\.1\.9 and 2\.1\.x"):
        host_generation(version)


def test_mouth_mask_is_the_lower_face():
    mask = draw_mouth_mask()
    assert (mask == 0).float().mean().item() == pytest.approx(0.407, abs=0.01)  # as large as LatentSync's
    assert mask[: int(0.37 * 256)].all() and not mask[int(0.7 * 256), 128]
    pixels = load_mouth_mask(None, 64, 96)
    latents = mask_to_latents(pixels, 3)
    assert latents.shape == (1, 1, 3, 8, 12) and set(latents.unique().tolist()) == {0.0, 1.0}
    inside = torch.nn.functional.interpolate(1 - pixels[None], (8, 12), mode="area")
    assert latents[0, 0, 0][inside[0, 0] == 1].all() and not latents[0, 0, 0][inside[0, 0] == 0].any()


def test_mouth_mask_agrees_with_latentsyncs(shared_data):
    theirs = load_mouth_mask(shared_data / "talking_heads" / "latentsync_mask.png", 256, 256)
    ours = load_mouth_mask(None, 256, 256)
    both = ((theirs == 0) & (ours == 0)).sum() / ((theirs == 0) | (ours == 0)).sum()
    assert both > 0.95


def test_masking_is_in_normalised_pixels_and_spares_known_frames():
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    mask = load_mouth_mask(None, 16, 16)
    masked = mask_video(video, mask, known_frames=1)
    assert torch.equal(masked[:, :, 0], video[:, :, 0])
    assert (masked[:, :, 1:] * (1 - mask) == 0).all()
    assert torch.equal(masked[:, :, 1:] * mask, video[:, :, 1:] * mask)


def test_moving_masks_generate_where_any_frame_does():
    mask = torch.ones(5, 16, 16)
    mask[2, :8] = 0
    assert mask_to_latents(mask, 2)[0, 0].flatten(1).tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]
    with pytest.raises(ValueError, match="4 video frames; the VAE takes"):
        mask_to_latents(mask[:4], 2)
