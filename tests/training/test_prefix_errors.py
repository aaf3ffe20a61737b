"""Known frames get the model's own errors, as many as asked for; nothing else of a step changes."""

import json

import pytest
import torch
from training_runs import flags, live_sample, make_module, write_inputs
from training_toy import same

from diffsynth_omniavatar.generation.record import StepRecord
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.log_table import read_table
from diffsynth_omniavatar.training.loop_state import load_state
from diffsynth_omniavatar.training.prefix_errors import ENTRIES, FRAMES, LEVELS, ErrorBank, PrefixErrors
from diffsynth_omniavatar.training.settings import StepSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("prefix_errors"))


def best_prediction(sigmas, frames=6, known=1, side=16):
    """A step of a model that knows all that can be known of normal latents: v = E[n - x0 | x_t]."""
    clean, noise = torch.randn(2, len(sigmas), 16, frames, side, side)
    sigma = torch.tensor(sigmas).view(-1, 1, 1, 1, 1)
    noisy = (1 - sigma) * clean + sigma * noise
    flow = (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2) * noisy
    record = StepRecord(known_frames=known, latents=noisy, prediction=flow, target=noise - clean, sigma=sigma)
    return record, noisy - sigma * flow - clean


def test_errors_are_those_of_the_predicted_clip_and_as_large_as_theory_says():
    """The best prediction of x0 from x_t is off by sigma^2 / ((1 - sigma)^2 + sigma^2) in the mean square."""
    torch.manual_seed(0)
    bank, sigmas = ErrorBank(), [0.05, 0.35, 0.5, 0.95]
    record, errors = best_prediction(sigmas)
    bank.collect(record)
    levels = bank.errors[16, 16]
    assert sorted(levels) == [0, 3, 5, 9]
    for sigma, error in zip(sigmas, errors, strict=True):
        (kept,) = levels[int(sigma * LEVELS)]
        torch.testing.assert_close(kept, error[:, -FRAMES:], rtol=1e-4, atol=1e-5)
        wanted = sigma**2 / ((1 - sigma) ** 2 + sigma**2)
        assert kept.square().mean().item() == pytest.approx(wanted, rel=0.05)  # 16,384 numbers: 1.1 %


def test_a_bank_is_bounded_and_keeps_the_newest():
    bank = ErrorBank()
    for step in range(ENTRIES + 3):
        zeros = torch.zeros(1, 16, 3, 2, 2)
        record = StepRecord(
            known_frames=1, latents=zeros, prediction=zeros - step, target=zeros, sigma=torch.full((1, 1, 1, 1, 1), 0.5)
        )
        bank.collect(record)
    kept = [entry.unique().item() for entry in bank.errors[2, 2][5]]
    assert kept == [0.5 * step for step in range(3, ENTRIES + 3)]
    assert {tuple(entry.shape) for entry in bank.errors[2, 2][5]} == {(16, 2, 2, 2)}


def test_draws_are_even_over_noise_levels_and_end_with_the_errors_last_frame():
    torch.manual_seed(0)
    bank = ErrorBank()
    frames = torch.arange(2.0).view(1, 2, 1, 1).expand(16, 2, 2, 2)
    for level, count in ((1, 30), (8, 2)):
        for _ in range(count):
            bank._keep(level, 10 * level + frames)
    drawn = torch.stack([bank.draw(torch.Size((16, 3, 2, 2))) for _ in range(400)])
    assert set(drawn[:, 0, :, 0, 0].unique(dim=0).flatten().tolist()) == {10, 11, 80, 81}
    assert torch.equal(drawn[:, :, 0], drawn[:, :, 1]) and (drawn[:, :, 2] == drawn[:, :, 1] + 1).all()
    assert (drawn[:, 0, 0, 0, 0] == 80).float().mean().item() == pytest.approx(0.5, abs=0.1)  # 4 deviations
    assert bank.draw(torch.Size((16, 3, 2, 4))) is None


def test_noise_has_its_deviation_and_probability_and_spares_one_frame_and_dropped_prefixes():
    torch.manual_seed(0)
    errors = PrefixErrors.parse("noise:0.3,0.25")
    prefix, no = torch.randn(2000, 16, 2, 2, 2), torch.zeros(2000, dtype=torch.bool)
    change = errors.added(prefix, no) - prefix
    chosen = change.flatten(1).any(dim=1)
    assert chosen.float().mean().item() == pytest.approx(0.25, abs=0.04)  # 4 deviations
    assert change[chosen].std().item() == pytest.approx(0.3, rel=0.02)
    assert torch.equal(errors.added(prefix, ~no), prefix)
    assert torch.equal(errors.added(prefix[:, :, :1], no), prefix[:, :, :1])


def step_of(module, sample, seed):
    """The inputs and the record of a step."""
    seen = []
    loss = module.loss
    module.loss = lambda data, shared, positive: seen.append(shared) or loss(data, shared, positive)
    torch.manual_seed(seed)
    value = module(sample)
    module.loss = loss
    return value, seen[0], seen[0]["omni_record"]


def test_a_step_differs_in_the_known_latents_of_the_input_alone(folder, monkeypatch):
    settings = StepSettings(use_gradient_checkpointing=False, prefix_errors="bank:1")
    plain = make_module(folder / "family")
    spoilt = make_module(folder / "family", settings)
    spoilt.load_state_dict(plain.state_dict())
    added = PrefixErrors.added

    def without_trace(*given):  # so that both steps have the same noise
        with torch.random.fork_rng():
            return added(*given)

    monkeypatch.setattr(PrefixErrors, "added", without_trace)
    sample = live_sample()
    losses = [step_of(module, sample, 1)[0] for module in (plain, spoilt)]
    assert torch.equal(*losses)  # the bank is empty
    (error,) = (entry for entries in spoilt.prefix_errors.bank.errors[4, 4].values() for entry in entries)
    wanted = error.expand(-1, 2, -1, -1)  # the one generated frame, twice
    (_, before, one), (_, after, other) = (step_of(module, sample, 2) for module in (plain, spoilt))
    for name in ("input_latents", "noise", "omni_y"):
        assert torch.equal(before[name], after[name])
    assert torch.equal(one.target, other.target) and one.known_frames == other.known_frames == 2
    assert torch.equal(one.latents[:, :, 2:], other.latents[:, :, 2:])
    torch.testing.assert_close(other.latents[:, :, :2] - one.latents[:, :, :2], wanted[None])
    assert wanted.abs().max() > 0.1 and not torch.equal(one.prediction, other.prediction)


def test_a_resumed_run_is_the_uninterrupted_one(folder, tmp_path, capsys):
    common = ["--prefix_errors", "bank:0.9", "--prefix_frames", "5,9", "--num_frames", "13"]
    common += ["--save_steps", "3", "--max_steps", "6"]
    assert run.main(flags(folder, tmp_path / "whole", *common)) == 0
    start = tmp_path / "whole" / "step-3"
    assert run.main(flags(folder, tmp_path / "again", *common, "--resume", str(start))) == 0
    rows = [read_table(tmp_path / name / "loss.csv") for name in ("whole", "again")]
    assert [row["loss"] for row in rows[0][3:]] == [row["loss"] for row in rows[1]]
    ends = [tmp_path / name / "step-6" for name in ("whole", "again")]
    assert same(*map(load_state, ends))
    banks = [(end / "prefix_errors-0.safetensors").read_bytes() for end in ends]
    assert banks[0] == banks[1]
    header = json.loads(banks[0][8 : 8 + int.from_bytes(banks[0][:8], "little")])
    assert len(header.keys() - {"__metadata__"}) == 6

    (start / "prefix_errors-0.safetensors").unlink()
    assert run.main(flags(folder, tmp_path / "none", *common, "--resume", str(start))) == 2
    assert "it is of a run without --prefix_errors bank" in capsys.readouterr().err
