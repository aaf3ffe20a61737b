"""Distillation: adapters switch exactly, each step trains one of them, what is exported generates as the student."""

import functools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import soundfile
import torch
from PIL import Image
from processes import run_in_processes
from safetensors.torch import load_file
from small_networks import small_syncnet
from synthetic_clips import noise, write_table
from training_runs import FRAMES, SIZE, flags, live_sample, run_all, write_inputs
from training_toy import same

from diffsynth_omniavatar import host
from diffsynth_omniavatar.app.cli import main
from diffsynth_omniavatar.data.clips import ClipSettings
from diffsynth_omniavatar.data.dataset import OmniAvatarDataset
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.losses import dmd
from diffsynth_omniavatar.losses.mel import mel_spectrogram, mel_window
from diffsynth_omniavatar.losses.sync import SyncLoss
from diffsynth_omniavatar.model import checkpoint
from diffsynth_omniavatar.model.config import CheckpointConfig, Conventions, LoRAConfig
from diffsynth_omniavatar.model.dit import model_fn_omniavatar
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.small_family import family_configs
from diffsynth_omniavatar.nano.family import write_random_family
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.adapters import Adapters
from diffsynth_omniavatar.training.distill import ADAPTERS, CRITIC, STUDENT, Conditions, DistillationModule
from diffsynth_omniavatar.training.distill_settings import DISTILL_PRESETS, DistillSettings
from diffsynth_omniavatar.training.flags import FlagError, parse_arguments
from diffsynth_omniavatar.training.log_table import read_table
from diffsynth_omniavatar.training.loop_state import load_state
from diffsynth_omniavatar.training.module import add_lora
from diffsynth_omniavatar.training.settings import StepSettings
from diffsynth_omniavatar.training.sync_reward import SyncReward

one_host = pytest.mark.one_host("losses, flags and data of distillation are the package's own")
LORA = LoRAConfig(rank=2, alpha=2.0)
ROLES = (CRITIC, STUDENT)
"""Of the steps 0 and 1 of these modules."""
ROUNDING = 1e-5
"""Of float32 sums in another order, against numbers of about 1."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {in_dim: write_random_family(tmp_path_factory.mktemp(str(in_dim)), in_dim) for in_dim in (33, 49)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("distillation"))


@functools.cache
def teacher_pipe(folder, adapters=()):
    """A pipeline with the checkpoint's LoRA in its weights, and fresh LoRAs on them."""
    configs = family_configs(folder)
    pipe = OmniAvatarPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", omniavatar_lora="fused", **configs
    )
    if adapters:
        add_lora(pipe.dit, LORA, 3, adapters)
    return pipe


def distillation(folder, settings=None, **given):
    """A module whose two LoRAs do something; it takes the pipeline over from the one before."""
    pipe = teacher_pipe(folder, ADAPTERS)
    pipe.model_fn, pipe.conventions = model_fn_omniavatar, Conventions(leading_audio_rows=0)
    fused = checkpoint.load_checkpoint(folder / FILES["omniavatar"])
    config = CheckpointConfig(in_dim=33, lora=LORA, model=pipe.dit.config, conventions=pipe.conventions)
    options = settings or StepSettings(use_gradient_checkpointing=False)
    module = DistillationModule(pipe, config, options, DistillSettings(critic_updates=1, **given), fused)
    module.zero_grad()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in (*module.student.values(), *module.critic.values()):
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return module


def flow_of(module, name):
    """The flow of fixed inputs with one of the LoRAs acting, or none."""
    generator = torch.Generator().manual_seed(6)
    config = module.pipe.dit.config
    x = torch.randn(1, 16, 3, 4, 4, generator=generator)
    y = torch.randn(1, config.in_dim - 16, 3, 4, 4, generator=generator)
    text = torch.randn(1, 5, config.text_dim, generator=generator)
    audio = torch.randn(1, FRAMES, config.audio_dim, generator=generator)
    with module.adapters.using(name), torch.no_grad():
        return module.pipe.dit(x, torch.tensor([700.0]), text, y, audio)


@pytest.mark.parametrize("blocks", ["host", "own"])
def test_adapters_switch_exactly(folders, blocks):
    way = {"activation_memory": 0.0} if blocks == "own" else {}
    module = distillation(folders[33], StepSettings(**way))
    before = {name: flow_of(module, name) for name in (None, *ADAPTERS)}
    base = teacher_pipe(folders[33])
    base.dit.runner = module.pipe.dit.runner
    assert torch.equal(before[None], flow_of(SimpleNamespace(pipe=base, adapters=Adapters(base.dit)), None))
    assert not any(torch.equal(before[a], before[b]) for a, b in [(None, STUDENT), (None, CRITIC), ADAPTERS])
    with torch.no_grad():
        for weight in module.critic.values():
            weight.add_(1)
    assert torch.equal(flow_of(module, STUDENT), before[STUDENT]) and torch.equal(flow_of(module, None), before[None])
    assert not torch.equal(flow_of(module, CRITIC), before[CRITIC])
    assert module.adapters.active is None


def gradients(folder, step, **way):
    """The loss of a step, and the gradients that the weights of critic and student get."""
    module = distillation(folder, StepSettings(**{"use_gradient_checkpointing": False} | way))
    module.progress = lambda: (step, 1)
    torch.manual_seed(1)
    loss = module(live_sample())
    loss.backward()
    trained = {id(weight) for weights in (module.student, module.critic) for weight in weights.values()}
    assert {id(weight) for weight in module.parameters() if weight.requires_grad} == trained
    return loss.item(), *({k: w.grad for k, w in of.items()} for of in (module.critic, module.student))


@pytest.mark.parametrize("step", [0, 1], ids=ROLES)
def test_a_step_gives_one_of_both_a_gradient_and_nothing_else(folders, step):
    """The same gradients however the blocks are computed, and computed again."""
    wanted = gradients(folders[33], step)
    for way in ({"use_gradient_checkpointing": True}, {"activation_memory": 0.0}):
        found = gradients(folders[33], step, **way)
        assert found[0] == pytest.approx(wanted[0], rel=1e-4)
        assert all(gradient is None for gradient in found[2 - step].values())
        for name, gradient in found[1 + step].items():
            scale = wanted[1 + step][name].abs().max()
            assert scale > 0 and (gradient - wanted[1 + step][name]).abs().max() <= 1e-4 * scale, name  # of float32


@one_host
def test_the_losses_are_those_of_the_formulas(folders, monkeypatch):
    """The student's with the teacher's guidance, of the frames behind the known ones; known frames reach all passes."""
    module = distillation(folders[33], teacher_cfg=3.0)
    module.progress = lambda: (1, 2)
    seen = []
    model_fn = module.pipe.model_fn

    def watched(dit, **inputs):
        flow = model_fn(dit=dit, **inputs)
        seen.append((module.adapters.active, inputs, flow))
        return flow

    module.pipe.model_fn = watched
    torch.manual_seed(2)
    parts = {}
    module.on_parts = parts.update
    sample = live_sample()
    loss = module(sample)
    exit_step = module.exit_step(2)
    assert [name for name, *_ in seen] == [STUDENT] * (exit_step + 1) + [CRITIC, None, None]
    levels = module.sampling.sigmas[: exit_step + 1]
    assert [float(inputs["timestep"]) for _, inputs, _ in seen[:-3]] == pytest.approx([1000 * s for s in levels])
    *_, (_, last, flow), (_, judged, fake), (_, _, positive), (_, silent, negative) = seen
    made = last["latents"] - levels[-1] * flow
    assert len({float(inputs["timestep"]) for _, inputs, _ in seen[-3:]}) == 1
    assert (silent["omni_audio"] == 0).all() and not torch.equal(silent["omni_audio"], judged["omni_audio"])
    assert torch.equal(silent["context"], module.pipe.encode_prompt(module.negative_prompt))
    s = float(judged["timestep"]) / 1000
    x = judged["latents"]
    fake, real = (x - s * v for v in (fake, negative + 3 * (positive - negative)))
    behind = (slice(None), slice(None), slice(2, None))
    gradient = dmd.dmd_gradient(made[behind], fake[behind], real[behind]).detach()
    assert loss.item() == pytest.approx(0.5 * gradient.square().mean().item(), rel=1e-4)
    assert parts["gap"].item() == pytest.approx((fake - real)[behind].abs().mean().item(), rel=1e-4)
    prefix = module.prepare(sample)[0]["omni_prefix_latents"]
    assert all(torch.equal(inputs["omni_prefix_latents"], prefix) for _, inputs, _ in seen)


@one_host
def test_known_frames_get_no_gradient(folders):
    """Neither loss changes with what the passes predict of known frames."""
    module = distillation(folders[33])
    model_fn, added = module.pipe.model_fn, 0.0

    def disturbed(dit, **inputs):
        flow = model_fn(dit=dit, **inputs)
        return torch.cat([flow[:, :, :2] + added, flow[:, :, 2:]], dim=2)

    module.pipe.model_fn = disturbed
    for steps in (0, 1):
        module.progress = lambda steps=steps: (steps, 1)
        losses = []
        for added in (0.0, 100.0):  # noqa: B007 (`disturbed` reads it)
            torch.manual_seed(1)
            losses.append(module(live_sample()).item())
        assert losses[0] == losses[1]


@one_host
@pytest.mark.parametrize("timestep", [600.0, 900.0])
def test_guidance_of_the_teacher_has_its_range_and_its_mode(folders, timestep):
    module = distillation(
        folders[33], teacher_cfg_range=(556, 882), teacher_cfg_mode="text", score_range=(timestep, timestep + 1)
    )
    module.progress = lambda: (1, 2)
    seen, model_fn = [], module.pipe.model_fn
    module.pipe.model_fn = lambda dit, **inputs: seen.append(inputs) or model_fn(dit=dit, **inputs)
    with torch.no_grad():
        module(live_sample())
    passes = [inputs for inputs in seen if float(inputs["timestep"]) in (timestep, timestep + 1)]
    assert len(passes) == (3 if timestep < 882 else 2)
    assert all(torch.equal(inputs["omni_audio"], passes[0]["omni_audio"]) for inputs in passes)


@one_host
def test_the_mouth_weighs_more_in_both_losses(folders):
    """With the weight 0 outside, what is outside does not count."""
    module = distillation(folders[49], StepSettings(use_gradient_checkpointing=False, mouth_weight=4.0))
    sample = live_sample(prefix_frames=1)
    weight = module.prepare(sample)[0]["omni_record"].weight
    for steps, loss_of in ((0, "critic_loss"), (1, "student_loss")):
        module.progress = lambda steps=steps: (steps, 1)
        given, original = [], getattr(dmd, loss_of)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dmd, loss_of, lambda *a, of=original, seen=given: seen.append(a[-1]) or of(*a))
            module(sample)
        assert torch.equal(given[0], weight) and weight.max() > weight.min()


@one_host
@pytest.mark.parametrize("mode", [33, 49])
def test_a_reward_weighs_each_sample_by_its_lips(folders, mode):
    """The loss is the plain one times the weight, which follows from the frames that the student made."""
    settings = StepSettings(use_gradient_checkpointing=False, mouth_weight=None if mode == 33 else 4.0)
    module = distillation(folders[mode], settings)
    module.progress = lambda: (1, 2)
    pixels = (255 * torch.rand(1, 17, SIZE, SIZE, 3)).to(torch.uint8)
    fields = {"num_frames": 17, "target_video": pixels, "waveforms": [0.1 * torch.randn(640 * 17)]}
    sample = live_sample(prefix_frames=1, **fields)
    sync, judged, parts = SyncLoss(small_syncnet()), [], {}
    module.on_parts = parts.update

    def loss_and_gradient(reward):
        module.reward = reward
        module.zero_grad()
        torch.manual_seed(1)
        loss = module(sample)
        loss.backward()
        return loss.item(), torch.cat([weight.grad.flatten() for weight in module.student.values()])

    plain, gradient = loss_and_gradient(None)
    reward = SyncReward(sync, beta=2.0)
    watched = lambda vae, latents, *others: judged.append(latents) or reward(vae, latents, *others)  # noqa: E731
    weighed, weighed_gradient = loss_and_gradient(watched)
    vae = module.pipe.vae
    frames = vae.model.decode(judged[0], vae.scale).clamp(-1, 1)[:, :, 1:17]
    weight = (2 * sync.window_cosine(frames, mel_window(mel_spectrogram(sample.waveforms[0]), 1)[None])).exp().item()
    assert weight > 1.0001 and parts["reward"].item() == pytest.approx(weight, rel=1e-4)
    assert weighed == pytest.approx(weight * plain, rel=1e-4)
    torch.testing.assert_close(weighed_gradient, weight * gradient, rtol=1e-3, atol=1e-7)


def test_a_rollout_makes_what_generating_makes(folders):
    """The x_0 of each step, from the same noise and the same inputs."""
    module = distillation(folders[33], student_solver="euler", ema_decay=0)
    portrait = Image.new("RGB", (SIZE, SIZE), "teal")
    features = torch.randn(FRAMES, module.pipe.dit.config.audio_dim)
    seen = []
    call = {"prompt": "a man", "input_image": portrait, "audio_features": features, "height": SIZE, "width": SIZE}
    call |= {"num_frames": FRAMES, "seed": 1, "on_step": lambda number, x: seen.append(x)}
    module(lambda: module.pipe(**call, progress_bar_cmd=lambda steps: steps))
    module.pipe.scheduler.set_timesteps(1000, training=True)
    pixels = torch.full((SIZE, SIZE, 3), 128, dtype=torch.uint8) * torch.tensor([0, 1, 1], dtype=torch.uint8)  # teal
    still = {"target_video": pixels.expand(1, FRAMES, -1, -1, -1), "reference_image": pixels[None], "prefix_frames": 1}
    shared, positive, _ = module.prepare(live_sample(**still, waveforms=None, audio_features=features[None]))
    noise = torch.randn(1, *seen[0].shape, generator=torch.Generator().manual_seed(1))
    for number, wanted in enumerate(seen):
        conditions = Conditions(module, {**shared, "noise": noise}, positive, number)
        with torch.no_grad():
            made = conditions.roll_out()
        torch.testing.assert_close(made[0, :, 1:], wanted[:, 1:], rtol=0, atol=10 * ROUNDING)
    assert len(seen) == 4


@one_host
def test_a_student_starts_as_an_earlier_one_of_the_same_shapes(folders):
    module, earlier = distillation(folders[33]), {}
    for name, value in module.student.items():
        earlier[name] = torch.ones_like(value)
    module.start_from(earlier, "x")
    assert all((value == 1).all() for value in (*module.student.values(), *module.average.values.values()))
    name = next(iter(earlier))
    with pytest.raises(ValueError, match="--student_start x has other layers or another rank"):
        module.start_from({**earlier, name: earlier[name][:1]}, "x")


def test_the_exported_file_makes_the_students_frames_without_flags(folders, tmp_path):
    """Four passes of the average, in one LoRA with the teacher's; and the student's alone on the teacher."""
    module = distillation(folders[33], student_solver="euler", ema_decay=0.5)
    with torch.no_grad():
        for value in module.average.values.values():
            value.add_(0.1)
    (tmp_path / "step-1").mkdir()
    module.export(tmp_path / "step-1" / "model.safetensors", module.trained_tensors())
    loaded = checkpoint.load_checkpoint(tmp_path / "step-1")
    sampling = loaded.config.conventions.sampling
    assert (sampling.steps, sampling.solver, sampling.cfg_scale, sampling.sigma_shift) == (4, "euler", 1.0, 5.0)
    assert loaded.config.lora.rank == module.fused.config.lora.rank + 2
    call = {
        "prompt": "a man",
        "input_image": Image.new("RGB", (32, 32), "teal"),
        "audio_features": torch.randn(9, module.pipe.dit.config.audio_dim, generator=torch.Generator().manual_seed(0)),
        "height": 32, "width": 32, "num_frames": 9, "seed": 1, "output_type": "floatpoint",
        "progress_bar_cmd": lambda steps: steps,
    }  # fmt: skip
    wanted = module(lambda: module.pipe(**call))
    weights = module.pipe.dit.blocks[0].self_attn.q.lora_A[STUDENT].weight
    assert torch.equal(weights, module.student["blocks.0.self_attn.q.lora_A.weight"])

    configs = family_configs(folders[33])
    source = str(folders[33] / FILES["omniavatar"])
    own = str(tmp_path / "step-1" / "model.safetensors")
    configs["model_configs"] = [
        host.ModelConfig(path=own) if config.path == source else config for config in configs["model_configs"]
    ]
    whole = OmniAvatarPipeline.from_pretrained(torch_dtype=torch.float32, device="cpu", **configs)
    torch.testing.assert_close(whole(**call), wanted, rtol=0, atol=10 * ROUNDING)
    lora = str(tmp_path / "step-1" / "student" / "lora.safetensors")
    configs = family_configs(folders[33])
    both = OmniAvatarPipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", omniavatar_loras=[lora], **configs
    )
    both.conventions = replace(both.conventions, sampling=sampling, leading_audio_rows=0)
    torch.testing.assert_close(both(**call), wanted, rtol=0, atol=10 * ROUNDING)
    plain = teacher_pipe(folders[33])
    plain.conventions = both.conventions
    assert (plain(**call) - wanted).abs().max() > 0.01


def distill_flags(folder, output, *more):
    common = ["--task", "distill", "--lora_rank", "2", "--critic_updates", "2", "--dataset_metadata_path"]
    return flags(folder, output, *common, str(folder / "clips.csv"), *more)


@pytest.mark.forks
def test_a_resumed_distillation_of_two_processes_equals_the_uninterrupted_one(folder, tmp_path):
    """Both LoRAs, both optimizers, the average, all random streams, in the middle of a cycle. Though one LoRA has no
    gradient, both processes keep the same weights: resumed with those of one, they go on alike.
    """
    common = ["--max_steps", "6", "--num_frames", "9", "--prefix_frames", "1", "--activation_memory", "0"]
    whole = distill_flags(folder, tmp_path / "whole", *common, "--save_steps", "4")
    again = distill_flags(folder, tmp_path / "again", *common, "--resume", str(tmp_path / "whole" / "step-4"))
    run_in_processes(run_all, [whole, again], processes=2)
    states = [load_state(tmp_path / name / "step-6") for name in ("whole", "again")]
    assert states[0]["step"] == 6 and same(*states) and len(states[0]["rng"]) == 2
    trained, optimizer = states[0]["trained"], states[0]["optimizer"]
    assert {name.split(".")[-2] for name in trained} == {STUDENT, CRITIC}
    assert len(states[0]["extra"]) > len(trained) / 2  # the average of the student
    assert {int(state["step"]) for state in optimizer.values()} == {2, 4} and len(optimizer) == len(trained)
    rows = read_table(tmp_path / "whole" / "loss.csv")
    assert ["student" in row for row in rows] == [False, False, True] * 2
    assert same(*(load_file(tmp_path / name / "step-6" / "model.safetensors") for name in ("whole", "again")))


@one_host
def test_a_resumed_run_has_the_same_cycle_and_steps(folders):
    module = distillation(folders[33])
    state = {name: value.clone() for name, value in module.extra_state().items()}
    module.load_extra_state(state)
    for other in ({"levels": state["levels"] / 2}, {"cycle": state["cycle"] + 1}, {"levels": state["levels"][:1]}):
        with pytest.raises(ValueError, match=r"the checkpoint to resume is of a run with another --student_steps"):
            module.load_extra_state({**state, **other})


def write_portraits(folder):
    """A table without videos."""
    rows = []
    for index, seconds in enumerate((0.5, 0.8)):
        Image.new("RGB", (40, 44), ("teal", "olive")[index]).save(folder / f"{index}.png")
        soundfile.write(folder / f"{index}.wav", noise(seconds, index).samples[0], 16000)
        rows.append({"prompt": f"person {index}", "reference": f"{index}.png", "audio": f"{index}.wav"})
    return write_table(folder / "portraits.csv", rows)


@one_host
def test_portraits_and_speech_are_enough(folder, tmp_path, capsys):
    """From a table and from its cache, with the denoiser alone, the same losses; fine-tuning refuses both."""
    table, family = write_portraits(tmp_path), folder / "family"
    sizes = ["--height", "32", "--width", "32", "--num_frames", "9", "--prefix_frames", "1"]
    arguments = ["precompute", str(table), str(tmp_path / "cache"), *sizes, "--portraits", "--dtype", "float32"]
    arguments += ["--audio_dtype", "float32", "--device", "cpu", "--models_folder", str(family)]
    assert main(arguments) == 0
    losses = {}
    live = ["--dataset_base_path", str(tmp_path), "--dataset_metadata_path", str(table)]
    cached = ["--dataset_base_path", str(tmp_path / "cache"), "--dataset_metadata_path", str(tmp_path / "cache")]
    cached += ["--model_paths", json.dumps([str(family / FILES["dit"])])]
    for name, data in (("live", live), ("cached", cached)):
        steps = ["--max_steps", "3", "--prefix_frames", "1", "--num_frames", "9", *data]
        assert run.main(distill_flags(folder, tmp_path / name, *steps)) == 0
        losses[name] = [row["loss"] for row in read_table(tmp_path / name / "loss.csv")]
        assert run.main(flags(folder, tmp_path / "sft", *data, "--prefix_frames", "1")) == 2
        assert "it has no video" in capsys.readouterr().err
    assert losses["live"] == pytest.approx(losses["cached"], rel=ROUNDING)
    settings = ClipSettings(height=32, width=32, portraits=True)
    dataset = OmniAvatarDataset(read_clips(table), settings=settings, recipe=Recipe(num_frames=9, min_frames=9))
    sample = dataset[1]
    assert sample.prefix_frames == 1 and sample.target_video.shape == (1, 9, 32, 32, 3)
    assert (sample.target_video == sample.reference_image[:, None]).all()


@one_host
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--use_lpips_loss"], "--use_lpips_loss does not go with --task distill"),
        (["--audio_drop_prob", "0.5"], "--audio_drop_prob does not go with --task distill: nothing is dropped"),
        (["--student_timesteps", "500,800"], "--student_steps.*each smaller than the one before"),
        (["--score_range", "980,20"], "--score_range is 980,20, wanted two timesteps from 0 to 1000"),
        (["--ema_decay", "1"], "--ema_decay is 1.0"),
        (["--sync_reward", "0"], "--sync_reward is 0, wanted more than 0; --sync_reward needs --syncnet_path"),
        (["--sync_reward", "2", "--trajectories", "x"], "--sync_reward does not go with trajectories"),
        (["--adam_betas", "0.9"], "--adam_betas is 0.9, wanted two numbers"),
        (["--validation_loss_data", "x.csv", "--validation_steps", "1"], "--validation_loss_data does not go with"),
        (
            ["--task", "sft", "--teacher_cfg", "3", "--score_shift", "2"],
            "--teacher_cfg, --score_shift needs --task distill",
        ),
    ],
)
def test_flags_that_do_not_go_with_distillation_are_refused(folder, tmp_path, more, message):
    with pytest.raises(FlagError, match=message):
        parse_arguments(flags(folder, tmp_path, "--task", "distill", *more))


@one_host
def test_a_preset_is_overridden_by_a_file_and_both_by_the_command_line(folder, tmp_path):
    file = tmp_path / "flags.yaml"
    file.write_text("teacher_cfg: 2\nadam_betas: [0.5, 0.9]\nmax_grad_norm: 3\n")
    given = ["--distill_preset", "lip_forcing", "--config", str(file), "--max_grad_norm", "1"]
    args = parse_arguments(flags(folder, tmp_path, "--task", "distill", *given))
    assert (args.teacher_cfg, args.adam_betas, args.max_grad_norm) == (2.0, (0.5, 0.9), 1.0)
    assert (args.teacher_cfg_range, args.lora_rank, args.critic_learning_rate) == ((556.0, 882.0), 128, 2e-6)
    plain = parse_arguments(flags(folder, tmp_path))
    assert (plain.lora_rank, plain.weight_decay) == (128, 0.01)
    for name, preset in DISTILL_PRESETS.items():
        fields = {key: value for key, value in preset.items() if key in DistillSettings.__dataclass_fields__}
        assert DistillSettings(**fields).role(5) == "student", name
