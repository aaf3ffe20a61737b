"""The training step is the authors' recipe on the host's loss, and only what should train does."""

import pytest
import torch
from golden_models import Goldens, relative_deviation
from training_runs import FRAMES, SIZE, live_sample, make_module

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.masks import load_mouth_mask
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.record import StepRecord
from diffsynth_omniavatar.losses.flow import flow_loss
from diffsynth_omniavatar.model import checkpoint
from diffsynth_omniavatar.model.config import CheckpointConfig, Conventions, LoRAConfig
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.small_family import TINY, family_configs
from diffsynth_omniavatar.nano.family import write_random_family
from diffsynth_omniavatar.training.module import ENCODERS, add_lora, select_trainable
from diffsynth_omniavatar.training.settings import StepSettings

OUTPUT_TOLERANCE = 1e-5  # of the goldens' README
GRADIENT_TOLERANCE = 5e-5
LATENTS = (16, 3, 4, 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {in_dim: write_random_family(tmp_path_factory.mktemp(str(in_dim)), in_dim) for in_dim in (33, 49)}


def unit_range(pixels):
    return pixels.float() / 255 * 2 - 1


def test_first_steps_gradient_is_upstreams(goldens, monkeypatch):
    """With noise equal to the clip the target is zero, x_t the clip and the loss mean(v**2), as in `dit_grad`."""
    golden = Goldens(goldens)
    tensors, facts = golden.tensors("dit_grad"), golden.json("dit_grad")
    pipe = host.WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.audio_encoder = None
    for name in ("motion_controller", "vace", "animate_adapter", "vap"):
        setattr(pipe, name, None)
    pipe.dit = golden.dit()
    OmniAvatarPipeline.adopt(pipe, Conventions())
    pipe.scheduler.set_timesteps(1000, training=True)
    pipe.scheduler.timesteps = torch.tensor([facts["timestep"]])
    pipe.scheduler.sigmas = torch.tensor([0.5])
    pipe.scheduler.linear_timesteps_weights = torch.ones(1)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([0]))
    monkeypatch.setattr(torch, "randn_like", lambda tensor, **_: tensor.clone())
    inputs = {
        "input_latents": tensors["in.x"],
        "noise": tensors["in.x"],
        "context": tensors["in.context"],
        "omni_y": tensors["in.y"],
        "omni_audio": golden.audio("dit_grad", "A/audio", golden.dims["A_t"]),
        "omni_record": StepRecord(),
        "use_gradient_checkpointing": True,
    }
    loss = flow_loss(pipe, inputs)
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=OUTPUT_TOLERANCE)
    gradients = {name: parameter.grad for name, parameter in pipe.dit.named_parameters()}
    for name, norm in facts["grad_l2"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=GRADIENT_TOLERANCE), name
    for name in golden.meta["grad_full"]:
        assert relative_deviation(gradients[name], tensors[f"grad.{name}"]) < GRADIENT_TOLERANCE, name


def test_known_frames_are_clean_masked_out_and_outside_the_loss(folders, monkeypatch):
    module = make_module(folders[33])
    targets = []
    scheduler_class = type(module.pipe.scheduler)
    original = scheduler_class.training_target
    monkeypatch.setattr(
        scheduler_class, "training_target", lambda *inputs: targets.append(original(*inputs)) or targets[-1]
    )
    sample = live_sample()
    torch.manual_seed(0)
    shared, positive, _ = module.prepare(sample)
    loss = flow_loss(module.pipe, {**shared, **positive})
    record, clean = shared["omni_record"], shared["input_latents"]
    whole = module.pipe.vae.encode([unit_range(sample.target_video[0]).permute(3, 0, 1, 2)], device="cpu")
    assert torch.equal(clean, whole) and record.known_frames == 2
    assert torch.equal(record.latents[:, :, :2], clean[:, :, :2])
    assert not torch.allclose(record.latents[:, :, 2:], clean[:, :, 2:], atol=0.01)
    assert shared["omni_y"][0, 16].flatten(1).unique(dim=1).flatten().tolist() == [0, 0, 1]
    reference = module.pipe.vae.encode([unit_range(sample.reference_image).permute(3, 0, 1, 2)], device="cpu")
    assert torch.equal(shared["omni_y"][:, :16], reference.expand(-1, -1, 3, -1, -1))
    error = (record.prediction - targets[0])[:, :, 2:].square().mean()
    sigmas = module.pipe.scheduler.sigmas
    index = (sigmas - record.sigma).abs().argmin()
    weight = module.pipe.scheduler.linear_timesteps_weights[index]
    assert loss.item() == pytest.approx((weight * error).item(), rel=1e-5)
    assert record.sigma.item() == sigmas[index].item()
    # The recorded sigma undoes the noise: x_0 = x_t - sigma (n - x_0), exactly but for rounding.
    back = record.latents[:, :, 2:] - record.sigma * targets[0][:, :, 2:]
    torch.testing.assert_close(back, clean[:, :, 2:], rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_hosts_own_without_known_frames(folders):
    module = make_module(folders[33])
    shared, positive, _ = module.prepare(live_sample(prefix_frames=0))
    inputs = {**shared, **positive}
    torch.manual_seed(3)
    ours = flow_loss(module.pipe, inputs)
    torch.manual_seed(3)
    hosts = host.training_loss(module.pipe, {**inputs, "omni_record": None})
    assert torch.equal(ours, hosts)


def test_dropouts(folders):
    module = make_module(folders[33])
    yes = torch.ones(1, dtype=torch.bool)
    kept, kept_posi, _ = module.prepare(live_sample())
    dropped, dropped_posi, _ = module.prepare(live_sample(drop_text=yes, drop_audio=yes, drop_prefix=yes))
    silent = module.pipe.encode_speech(torch.zeros(640 * FRAMES), FRAMES)
    assert torch.equal(dropped_posi["omni_audio"][0], silent) and silent.abs().max() > 0
    heard = module.pipe.encode_speech(live_sample().waveforms[0], 12)[:FRAMES]
    assert torch.equal(kept_posi["omni_audio"][0], heard)
    assert torch.equal(dropped_posi["context"], module.pipe.encode_prompt(""))
    assert torch.equal(kept_posi["context"], module.pipe.encode_prompt("a man"))
    assert torch.equal(kept["omni_prefix_latents"], kept["input_latents"][:, :, :2])
    noise = dropped["omni_prefix_latents"]
    assert not torch.allclose(noise, dropped["input_latents"][:, :, :2], atol=0.1)
    assert abs(noise.mean()) < 0.2 and noise.std() == pytest.approx(1, abs=0.1)
    assert torch.equal(dropped["omni_y"], kept["omni_y"])


def test_a_leading_row_of_zeros_takes_the_first_rows_place(folders):
    """So a row still sounds while its frame is shown, as when generating."""
    plain = make_module(folders[33]).prepare(live_sample())[1]["omni_audio"]
    leading = make_module(folders[33], conventions=Conventions(leading_audio_rows=1)).prepare(live_sample())[1][
        "omni_audio"
    ]
    assert (leading[:, 0] == 0).all() and torch.equal(leading[:, 1:], plain[:, 1:])


def test_a_fresh_lora_is_a_function_of_the_seed_alone(goldens):
    """Two runs with one seed are one run, whatever was drawn before; and nothing else is drawn otherwise for it."""

    def fresh(seed, drawn_before):
        torch.manual_seed(drawn_before)
        dit, state = Goldens(goldens).dit(), torch.get_rng_state()
        add_lora(dit, LoRAConfig(rank=4, alpha=2.0), seed)
        assert torch.equal(torch.get_rng_state(), state)
        return {name: value for name, value in dit.state_dict().items() if "lora_A" in name}

    first, again, other = fresh(3, 1), fresh(3, 2), fresh(4, 1)
    assert first and all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_only_the_trained_parts_change(folders):
    module = make_module(folders[33])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.AdamW(module.trainable_modules(), lr=1e-2)
    for _ in range(2):
        module(live_sample()).backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    wanted = {
        f"pipe.dit.{name}"
        for name in module.pipe.dit.state_dict()
        if checkpoint.LORA_KEY.match(name) or name.startswith(checkpoint.EXTRA_MODULES)
    }
    assert changed == wanted
    assert len(module.trained_tensors()) == len(wanted)


TIMESTEP_IDS = [400, 30, 900]


def fixed_draws(monkeypatch, noise, first=0):
    """Timesteps and noise of the clips from the first on: one for the host, then those of the batch's further clips."""
    ids = iter(TIMESTEP_IDS[first:])
    monkeypatch.setattr(torch, "randint", lambda _low, _high, size: torch.tensor([next(ids) for _ in range(size[0])]))
    monkeypatch.setattr(torch, "randn_like", lambda tensor, **_: noise[: len(tensor), :, : tensor.shape[2]].clone())


@pytest.mark.parametrize("in_dim", [33, 49])
def test_a_batch_is_the_mean_of_its_members(folders, in_dim, monkeypatch):
    """Each clip with a timestep of its own, as one clip on each of several GPUs."""
    settings = StepSettings(use_gradient_checkpointing=False, mouth_weight=5.0 if in_dim == 49 else None)
    module = make_module(folders[in_dim], settings)
    generator = torch.Generator().manual_seed(1)

    def cached(count, offset=0):
        fields = {"target_video": None, "reference_image": None, "waveforms": None, "prompts": None}
        draws = {
            name: torch.tensor([False, True, False])[offset : offset + count] for name in ("drop_text", "drop_audio")
        }
        tensors = {name: tensor[offset : offset + count] for name, tensor in pool.items()}
        silent = {
            "silent_features": torch.ones(FRAMES, TINY.dit.audio_dim),
            "empty_context": torch.ones(1, 5, TINY.dit.text_dim),
        }
        no = torch.zeros(count, dtype=torch.bool)
        return live_sample(sources=["x"] * count, drop_prefix=no, **fields, **draws, **tensors, **silent)

    pool = {
        "input_latents": torch.randn(3, *LATENTS, generator=generator),
        "reference_latents": torch.randn(3, 16, 1, 4, 4, generator=generator),
        "audio_features": torch.randn(3, FRAMES, TINY.dit.audio_dim, generator=generator),
        "context": torch.randn(3, 5, TINY.dit.text_dim, generator=generator),
    }
    if in_dim == 49:
        pool["masked_latents"] = torch.randn(3, *LATENTS, generator=generator)
    noise = torch.randn(3, *LATENTS, generator=generator)
    fixed_draws(monkeypatch, noise)
    batch = module(cached(3))
    batch.backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    losses = []
    for index in range(3):
        fixed_draws(monkeypatch, noise[index:], index)
        loss = module(cached(1, index))
        (loss / 3).backward()
        losses.append(loss.item())
    assert batch.item() == pytest.approx(sum(losses) / 3, rel=OUTPUT_TOLERANCE)
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            assert relative_deviation(gradients[name], parameter.grad) < 10 * GRADIENT_TOLERANCE, name


def test_mouth_weight_is_a_weighted_mean(folders):
    module = make_module(folders[49], StepSettings(use_gradient_checkpointing=False, mouth_weight=4.0))
    shared, positive, _ = module.prepare(live_sample(prefix_frames=1))
    torch.manual_seed(0)
    weighted = flow_loss(module.pipe, {**shared, **positive}).item()
    record = shared["omni_record"]
    inside = shared["omni_mouth_mask_latents"][:, :, 1:]
    plain = StepRecord(known_frames=1)
    torch.manual_seed(0)
    flow_loss(module.pipe, {**shared, **positive, "omni_record": plain})
    squares = []
    for keep in (inside, 1 - inside):
        part = StepRecord(known_frames=1, weight=keep / keep.mean())
        torch.manual_seed(0)
        squares.append(flow_loss(module.pipe, {**shared, **positive, "omni_record": part}).item())
    share = inside.mean().item()
    wanted = (4 * share * squares[0] + (1 - share) * squares[1]) / (4 * share + 1 - share)
    assert weighted == pytest.approx(wanted, rel=1e-4)
    assert record.weight.mean().item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("first_frame", ["known", "masked"])
def test_v2v_training_masks_like_generation(folders, first_frame):
    module = make_module(folders[49], conventions=Conventions(leading_audio_rows=0, first_frame=first_frame))
    sample = live_sample(prefix_frames=1 if first_frame == "known" else 0)
    shared, _, _ = module.prepare(sample)
    pixels = unit_range(sample.target_video[0]).permute(3, 0, 1, 2)
    masked = pixels * load_mouth_mask(None, SIZE, SIZE)
    if first_frame == "known":
        masked[:, 0] = pixels[:, 0]
    wanted = module.pipe.vae.encode([masked], device="cpu")
    torch.testing.assert_close(shared["omni_y"][:, 17:], wanted, rtol=1e-5, atol=1e-5)
    assert (shared["omni_y"][0, 16, 0] == 0).all() == (first_frame == "known")


def test_the_exported_file_generates_the_live_models_frames(folders, tmp_path):
    from PIL import Image

    module = make_module(folders[33])
    optimizer = torch.optim.AdamW(module.trainable_modules(), lr=1e-2)
    module(live_sample()).backward()
    optimizer.step()
    module.export(tmp_path / "model.safetensors", module.trained_tensors())
    configs = family_configs(folders[33])
    trained = str(tmp_path / "model.safetensors")
    source = str(folders[33] / FILES["omniavatar"])
    configs["model_configs"] = [
        host.ModelConfig(path=trained) if config.path == source else config for config in configs["model_configs"]
    ]
    loaded = OmniAvatarPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", omniavatar_lora="adapters", **configs
    )
    assert loaded.conventions == module.pipe.conventions
    videos = [
        pipe(
            "a man",
            input_image=Image.new("RGB", (SIZE, SIZE), "red"),
            input_audio=live_sample().waveforms[0],
            height=SIZE,
            width=SIZE,
            num_frames=FRAMES,
            num_inference_steps=2,
            seed=0,
            output_type="floatpoint",
            progress_bar_cmd=iter,
        )
        for pipe in (module.pipe, loaded)
    ]
    assert torch.equal(*videos)


def test_full_training_trains_every_weight(folders):
    module = make_module(folders[33], lora=None)
    select_trainable(module.pipe.dit, full=True)
    assert all(parameter.requires_grad for parameter in module.pipe.dit.parameters())
    assert isinstance(module.config, CheckpointConfig) and not any(
        p.requires_grad for p in module.pipe.vae.parameters()
    )


def test_dropouts_of_a_batch_are_each_clips_own(folders):
    """Live clips of a batch: each has the text, sound and prefix that it has alone with its own drops."""
    module = make_module(folders[33])
    generator = torch.Generator().manual_seed(2)
    pixels = (torch.rand((4, FRAMES, SIZE, SIZE, 3), generator=generator) * 255).to(torch.uint8)
    whole = {
        "target_video": pixels,
        "reference_image": pixels[:, 3],
        "drop_text": torch.tensor([True, False, False, True]),
        "drop_audio": torch.tensor([False, True, False, True]),
        "drop_prefix": torch.tensor([True, False, True, False]),
    }
    lists = {
        "sources": [*"abcd"],
        "waveforms": [0.1 * torch.randn(640 * 12, generator=generator) for _ in range(4)],
        "prompts": ["a", "b", "c", "d"],
    }
    shared, positive, _ = module.prepare(live_sample(**whole, **lists))
    for clip in range(4):
        own = {name: value[clip : clip + 1] for name, value in (whole | lists).items()}
        _, alone, _ = module.prepare(live_sample(**own))
        for name in ("context", "omni_audio"):
            torch.testing.assert_close(positive[name][clip : clip + 1], alone[name], rtol=1e-5, atol=1e-5)  # rounding
    prefix, clean = shared["omni_prefix_latents"], shared["input_latents"][:, :, :2]
    for clip, drop in enumerate(whole["drop_prefix"].tolist()):
        assert torch.equal(prefix[clip], clean[clip]) != drop
    noise = torch.stack([prefix[0], prefix[2]]).flatten(1)
    assert abs(torch.corrcoef(noise)[0, 1]) < 5 / noise.shape[1] ** 0.5  # five standard deviations of independent ones


def test_offloaded_encoders_come_to_the_device_for_their_work_only(folders, monkeypatch):
    module = make_module(folders[33], StepSettings(offload_frozen=True))
    pipe, moves = module.pipe, []
    for name in ENCODERS:
        monkeypatch.setattr(getattr(pipe, name), "to", lambda place, name=name: moves.append((name, str(place))))
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "device", "cuda:1")
        with module.encoders_on_device():
            assert moves == [(name, "cuda:1") for name in ENCODERS]
    assert moves[3:] == [(name, "cpu") for name in ENCODERS]
    module.prepare(live_sample())
    assert len(moves) == 12
    module.auxiliary = object()  # losses on decoded frames, for which the VAE stays
    with module.encoders_on_device():
        assert not any(name == "vae" for name, _ in moves[12:])
    plain = make_module(folders[33])
    for name in ENCODERS:
        monkeypatch.setattr(getattr(plain.pipe, name), "to", None)
    plain.prepare(live_sample())
