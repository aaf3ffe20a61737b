"""Memory of a training step from sizes, its time from measurements, and the flags that follow."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from diffsynth_omniavatar.app import cli, measured, plan, prediction
from diffsynth_omniavatar.model.blocks import runner as block_runner
from diffsynth_omniavatar.model.blocks.memory_plan import KEEPABLE, BlockShape, kept_bytes, plan_kept
from diffsynth_omniavatar.model.blocks.step_memory import Way, auto_budget, count_weights, option_changes, step_memory
from diffsynth_omniavatar.model.config import PRESETS, LoRAConfig
from diffsynth_omniavatar.model.dit import OmniAvatarDiT, state_dict_shapes
from diffsynth_omniavatar.model.small_family import TINY
from diffsynth_omniavatar.training import memory_report
from diffsynth_omniavatar.training.flags import build_parser
from diffsynth_omniavatar.training.memory_report import Reading, predicted_rows, report_lines
from diffsynth_omniavatar.training.module import add_lora, select_trainable, trainable_parameters
from diffsynth_omniavatar.training.settings import StepSettings

GIB = 2**30
TABLE = measured.Table.read(
    {
        "gpu": "A",
        "torch": "2",
        "date": "2026-01-01",
        "attention_tflops": 500,
        "copy_gib_per_second": 20,
        "steps": [
            {"model": "14B", "height": 512, "width": 512, "frames": 81, "blocks": how, "seconds": s, "peak_gib": 44}
            for how, s in (("host", 7.0), ("eager", 6.5), ("compiled", 5.5))
        ],
    }
)
TASK = measured.Task(model="14B", size=measured.Size(512, 512, 81))


@pytest.mark.parametrize("in_dim", [33, 49, 65])
@pytest.mark.parametrize("model", PRESETS)
def test_counted_weights_are_those_of_the_published_sizes(model, in_dim):
    config = replace(PRESETS[model], in_dim=in_dim)
    real = sum(math.prod(shape) for shape in state_dict_shapes(config).values())
    assert count_weights(config, None, element_size=1).trained == real
    parts = count_weights(config, LoRAConfig(), element_size=1)
    known = {"14B": 618_684_512 + 20_480 * (in_dim - 33), "1.3B": 177_271_392 + 6_144 * (in_dim - 33)}
    assert parts.trained == known[model]


@pytest.mark.parametrize("targets", [("q", "k", "v", "o", "ffn.0", "ffn.2"), ("v", "ffn.2")])
def test_counted_weights_are_those_of_a_model_with_lora(targets):
    config, lora = TINY.dit, LoRAConfig(rank=4, alpha=2, target_modules=targets)
    dit = OmniAvatarDiT(config)
    add_lora(dit, lora)
    select_trainable(dit, full=False)
    weights = count_weights(config, lora, element_size=1)
    assert weights.trained == trainable_parameters(dit)
    frozen = [(name, value.numel()) for name, value in dit.named_parameters() if not value.requires_grad]
    assert weights.blocks == sum(size for name, size in frozen if name.startswith("blocks."))
    assert weights.others == sum(size for name, size in frozen if not name.startswith("blocks."))


WITH_PEAK = [row for row in measured.measured_table().steps if row.peak is not None]


@pytest.mark.parametrize("row", WITH_PEAK, ids=lambda row: f"{row.task.model} {row.way.blocks} {row.task.size}")
def test_sizes_tell_the_peaks_that_were_measured(row):
    """Within 5 %: what the allocator rounds, the kernels' working memory and small tensors are not counted."""
    layers = row.task.config.num_layers
    kept = tuple(frozenset(n for n, count in row.kept.items() if count >= layers - i) for i in range(layers))
    memory = step_memory(count_weights(row.task.config, row.task.lora), row.task.shape, row.way, kept)
    assert memory.peak / GIB == pytest.approx(row.peak, rel=0.05)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("fp32_master_weights", [True, False])
def test_the_plan_keeps_what_training_keeps(monkeypatch, offload, first, fp32_master_weights):
    """`auto_budget` is what `--activation_memory auto` finds on a GPU with so much free."""
    free, shape = 60 * GIB, TASK.shape
    monkeypatch.setattr(block_runner, "free_memory", lambda device: free)
    trained = torch.empty(GIB, requires_grad=True, device="meta", dtype=torch.bfloat16)
    moments = (8 if fp32_master_weights else 4) * GIB
    block = SimpleNamespace(dim=shape.dim, ffn_dim=shape.ffn_dim, num_heads=shape.heads)
    dit = SimpleNamespace(blocks=[block] * 40, parameters=lambda: [trained])
    tokens = SimpleNamespace(shape=(1, shape.tokens, shape.dim), element_size=lambda: 2, device=torch.device("cuda"))
    runner = block_runner.BlockRunner(
        activation_memory="auto", reserve=GIB, moment_bytes=4 if fp32_master_weights else None
    )
    if not first:
        runner.plans[replace(shape, tokens=1)] = ()
    budget = auto_budget(shape, 40, moments, free=free, offload=offload, reserve=GIB, first=first)
    assert runner.plan(dit, tokens, recompute=True, offload=offload) == plan_kept(shape, 40, budget)
    assert 0 < budget < free


def test_each_flag_saves_what_it_leaves_out():
    weights, shape = count_weights(TASK.config, TASK.lora), TASK.shape
    changes = option_changes(TASK.config, TASK.lora, shape, Way(blocks="compiled"))
    assert changes["with --stream_weights"] == 2 * weights.blocks // 40 - weights.blocks
    ends = weights.trained - 40 * shape.input_bytes  # the peak then is where the backward pass ends
    assert changes["with --use_gradient_checkpointing_offload"] == ends
    attention = (frozenset({"attention"}),) * 40
    assert changes["with --activation_memory to keep attention"] == kept_bytes(shape, attention[1:])  # one is in use
    assert changes["with --activation_memory 0"] == 0
    offloaded = Way(blocks="compiled", offload=True)
    back = option_changes(TASK.config, TASK.lora, shape, offloaded, attention)
    assert back["without --use_gradient_checkpointing_offload"] > 0 > back["with --activation_memory 0"]
    assert not any("stream" in flag for flag in option_changes(TASK.config, None, shape, Way()))


# ------------------------------------------------------------------------------------------------------------- seconds


def of_frames(frames):
    return replace(TASK, size=TASK.size._replace(frames=frames))


def test_time_is_that_measured_where_it_was_measured_and_a_parabola_of_the_tokens():
    def seconds(frames):
        return prediction.seconds_of(of_frames(frames), Way(), {}, TABLE)

    assert seconds(81) == pytest.approx(7.0)
    latents = [11, 21, 31, 41, 51]
    times = [seconds(4 * count - 3) / count for count in latents]
    steps = [b - a for a, b in pairwise(times)]
    assert steps[0] > 0 and steps == pytest.approx([steps[0]] * 4)  # t / S is a line, so t = a S + b S^2


def test_what_is_kept_saves_its_operations_and_nothing_else():
    everything = dict.fromkeys(KEEPABLE, 40)
    own = Way(blocks="compiled")
    nothing, all_kept = prediction.operations(TASK, own, {}), prediction.operations(TASK, own, everything)
    saved = TASK.shape.operations_of
    assert nothing.attention - all_kept.attention == 40 * saved["attention"]
    assert nothing.products - all_kept.products == 40 * (saved["middle"] + saved["qkv"] + saved["ffn"])
    assert prediction.operations(TASK, Way(), {}).products - nothing.products == 40 * saved["ffn"]


def test_copies_bound_the_time_where_there_is_little_to_compute():
    weights = count_weights(TASK.config, TASK.lora)
    streamed = Way(blocks="compiled", stream=True)
    assert prediction.seconds_of(of_frames(5), streamed, {}, TABLE) == pytest.approx(2 * weights.blocks / (20 * GIB))
    assert prediction.seconds_of(of_frames(81), streamed, {}, TABLE) == pytest.approx(5.5)
    assert prediction.seconds_of(replace(TASK, model="1.3B"), Way(), {}, TABLE) is None


# --------------------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize("gpu", [24, 40, 48, 80, 141])
def test_the_fastest_that_fits_is_chosen(gpu):
    predictions = prediction.predict_all(TASK, gpu, TABLE)
    best = prediction.fastest(predictions, gpu)
    assert best.need <= gpu
    assert not [one for one in predictions if one.need <= gpu and prediction.ALIKE * one.seconds < best.seconds]
    before = predictions[: predictions.index(best)]
    assert not [one for one in before if one.need <= gpu and one.seconds <= best.seconds]


def test_more_memory_is_never_slower():
    times = [[one.seconds for one in prediction.predict_all(TASK, gpu, TABLE)] for gpu in range(24, 142, 6)]
    for less, more in pairwise(times):
        assert all(b <= a for a, b in zip(less, more, strict=True))
    assert min(times[-1]) < min(times[0])


def test_a_measured_step_is_shown_as_measured():
    row = TABLE.steps[2]
    limited = replace(row, limit=80.0, seconds=5.1, peak=75.0, kept={"attention": 40})
    table = replace(TABLE, steps=[*TABLE.steps, limited])
    at_80, at_79 = (prediction.predict("compiled", replace(TASK, mode="v2v"), gpu, table) for gpu in (80, 79))
    assert (at_80.seconds, at_80.peak, at_80.seconds_measured) == (5.1, 75.0, True)
    assert not at_79.seconds_measured
    alike = replace(at_80, seconds=0.95 * at_80.seconds, seconds_measured=False)
    assert prediction.fastest([alike, at_80], 80) == at_80  # computed ones are not better


def test_where_nothing_fits_the_advice_does():
    least = min(prediction.predict_all(TASK, 24, TABLE), key=lambda one: one.need)
    gpu = math.floor(10 * least.need - 1) / 10

    def fits(**changes):
        return prediction.fastest(prediction.predict_all(replace(TASK, **changes), gpu, TABLE), gpu) is not None

    text = plan.report(TASK, gpu, TABLE)
    assert f"Nothing fits: {least.name} needs {least.need:.1f} GiB, {least.need - gpu:.1f} more" in text
    shorter, smaller, lower = prediction.help_for(TASK, gpu, TABLE)
    numbers = ((shorter, ":"), (smaller, "x"), (lower, "rank"))
    frames, side, rank = (int(advice.split(mark)[1].split()[0]) for advice, mark in numbers)
    assert fits(size=TASK.size._replace(frames=frames)) and not fits(size=TASK.size._replace(frames=frames + 4))
    assert fits(size=measured.Size(side, side, 81)) and not fits(size=measured.Size(side + 16, side + 16, 81))
    assert fits(lora_rank=rank) and not fits(lora_rank=2 * rank)
    assert prediction.help_for(TASK, 2, TABLE) == ["a GPU with more memory: no length, size or rank fits this one"]


@pytest.mark.parametrize("gpu", [24, 40, 48, 80, 141])
def test_the_report_says_why_a_faster_way_is_not_chosen(gpu):
    predictions = prediction.predict_all(TASK, gpu, TABLE)
    best = prediction.fastest(predictions, gpu)
    has_faster = any(one.need <= gpu and one.seconds < best.seconds for one in predictions)
    assert ("count as equal" in plan.report(TASK, gpu, TABLE)) == has_faster


@pytest.mark.parametrize("gpu", ["6", "24GiB", "141GiB"])
def test_the_command_names_flags_of_the_launcher(capsys, gpu):
    code = cli.main(["plan", "--gpu", gpu])
    lines = capsys.readouterr().out.splitlines()
    chosen = [line.removeprefix("Use: ") for line in lines if line.startswith("Use: ")]
    assert (code, len(chosen)) == ((1, 0) if gpu == "6" else (0, 1))
    for flags in chosen:
        build_parser().parse_args(flags.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu", "24GB"], "--gpu is '24GB', wanted the GPU's memory in GiB, like 24GiB"),
        (["--gpu", "big"], "--gpu is 'big'"),
        (["--gpu", "0"], "--gpu is '0'"),
        (["--gpu", "24", "--size", "512x512"], "wanted height x width x frames, like 512x512x81"),
        (["--gpu", "24", "--size", "500x512x81"], "height 500 is no multiple of 16; take 496 or 512"),
        (["--gpu", "24", "--size", "512x8x81"], "width 8 is no multiple of 16; take 16 or 32"),
        (["--gpu", "24", "--size", "512x512x80"], "80 frames, wanted 4n \\+ 1 of them; take 77 or 81"),
        (["--gpu", "24", "--lora_rank", "0"], "lora_rank is 0, wanted a whole number from 1"),
        (["--gpu", "24", "--batch_size", "0"], "--batch_size is 0, wanted at least 1"),
    ],
)
def test_what_cannot_be_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        cli.main(["plan", "--debug", *flags])


def test_the_command_needs_no_torch():
    code = "import sys; from diffsynth_omniavatar.app import cli; cli.main(['plan', '--gpu', '24']); "
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# -------------------------------------------------------------------------------------------------------------- reports


def test_the_report_of_a_step_tells_its_stages():
    readings = {
        memory_report.ENCODING: Reading(33 * GIB, 34 * GIB),
        memory_report.FORWARD: Reading(41 * GIB, 42 * GIB),
        memory_report.BACKWARD: Reading(31 * GIB, 45 * GIB),
    }
    lines = report_lines({"dit": 28 * GIB}, readings, {"with --stream_weights": -25 * GIB})
    values = {line.split("  ")[0]: line.split()[-2] for line in lines}
    assert values == {
        "memory: weights of dit": "28.00",
        "memory: optimizer and buffers": "3.00",
        "memory: activations after forward": "8.00",
        "memory: peak of encoding": "34.00",
        "memory: peak of forward": "42.00",
        "memory: peak of backward and optimizer": "45.00",
        "memory, computed: with --stream_weights": "-25.00",
    }


def test_a_dry_run_tells_what_is_kept_as_far_as_it_is_known():
    config, lora, shape = PRESETS["14B"], LoRAConfig(), TASK.shape

    def rows(runner=None, **settings):
        rows = predicted_rows(config, lora, StepSettings(**settings), shape, runner, fp32_master_weights=False)
        return dict(rows)

    runner = block_runner.BlockRunner()
    assert rows()["peak"].startswith("44.46 GiB") and rows()["blocks' inputs"] == "8.20 GiB"
    assert rows(use_gradient_checkpointing=False)["kept beside inputs"].startswith("not known")
    everything = kept_bytes(shape, (frozenset(KEEPABLE),) * 40) / GIB
    eager = rows(runner, compile=True, use_gradient_checkpointing=False)
    assert eager["kept beside inputs"] == f"{everything:.2f} GiB"
    budget = kept_bytes(shape, plan_kept(shape, 40, 10 * GIB)) / GIB
    assert rows(runner, activation_memory=10.0)["kept beside inputs"] == f"{budget:.2f} GiB"
    least = step_memory(count_weights(config, lora), shape, Way(blocks="eager")).peak / GIB
    assert rows(runner, activation_memory="auto")["kept beside inputs"] == f"what is free beyond {least:.2f} GiB"
    runner.plans[shape] = (frozenset({"attention"}),) * 40
    assert rows(runner, activation_memory="auto")["kept beside inputs"] == "8.33 GiB"


def test_float32_copies_take_their_bytes():
    plain, copied = (count_weights(PRESETS["14B"], LoRAConfig(), fp32_master_weights=flag) for flag in (False, True))
    numbers = plain.trained // 2
    assert copied.optimizer - plain.optimizer == 8 * numbers
    assert BlockShape.of(PRESETS["14B"], batch=1, tokens=21504, element_size=2) == TASK.shape
