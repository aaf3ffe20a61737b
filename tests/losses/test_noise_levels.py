"""Noise levels are drawn as their formulas say, a loss counts what its formula says; and the host's are untouched."""

import math
from statistics import NormalDist

import pytest
import torch

from diffsynth_omniavatar.generation.record import StepRecord
from diffsynth_omniavatar.losses.flow import flow_loss
from diffsynth_omniavatar.losses.noise_levels import LevelWeight, NoiseLevels

DRAWS = 20_000
SHAPE = (16, 2, 2, 2)


def share_below(sigma: float, choice: NoiseLevels) -> float:
    """The probability of a level below sigma, from the inverse of the shift and the normal distribution."""
    u = sigma / (choice.shift - (choice.shift - 1) * sigma)
    if choice.normal is None:
        return u
    return NormalDist(*choice.normal).cdf(math.log(u / (1 - u)))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("uniform", NoiseLevels(None)),
        ("uniform:5", NoiseLevels(None, 5.0)),
        ("logit_normal", NoiseLevels()),
        ("logit_normal:-0.5,0.7", NoiseLevels((-0.5, 0.7))),
        ("logit_normal:0,1,3", NoiseLevels((0.0, 1.0), 3.0)),
    ],
)
def test_levels_have_the_distribution_of_their_formula(text, choice):
    assert NoiseLevels.parse(text) == choice
    torch.manual_seed(0)
    drawn = choice.draw(DRAWS).double()
    assert drawn.min() >= 0 and drawn.max() <= 1
    for sigma in (0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95):
        # Kolmogorov's bound: the largest difference exceeds 2 / sqrt(n) once in 1500 times.
        assert (drawn < sigma).double().mean() == pytest.approx(share_below(sigma, choice), abs=2 / DRAWS**0.5)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_the_papers_weight_of_an_error_of_x_0(gamma):
    sigma = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    clean, noise, flow = 0.3, -0.8, 0.7
    noisy = (1 - sigma) * clean + sigma * noise
    error = (noisy - sigma * flow - clean).square()  # of the x_0 that this flow stands for
    papers = torch.clamp(((1 - sigma) / sigma).square(), max=gamma) * error
    torch.testing.assert_close(
        LevelWeight.parse(f"min_snr:{gamma}").weight(sigma) * (flow - (noise - clean)) ** 2, papers
    )


@pytest.mark.parametrize("weighting", ["host", "none", "min_snr:2"])
@pytest.mark.parametrize("sampling", ["host", "logit_normal:0,1,2"])
@pytest.mark.parametrize("clips", [1, 3])
def test_the_loss_is_the_weighted_error_at_the_drawn_levels(pipe, clips, sampling, weighting):
    torch.manual_seed(3)
    latents, noise = torch.randn(2, clips, *SHAPE)
    record = StepRecord()
    inputs = {"input_latents": latents, "noise": noise, "omni_record": record}
    loss = flow_loss(pipe, inputs, NoiseLevels.parse(sampling), LevelWeight.parse(weighting))
    sigma, table = record.sigma, pipe.scheduler
    noise = (record.latents - (1 - sigma) * latents) / sigma
    errors, flat = (noise - latents).square().mean(dim=(1, 2, 3, 4)), sigma.flatten()
    if sampling != "host":
        torch.testing.assert_close(record.timestep, 1000 * flat)
        assert not torch.isin(flat, table.sigmas).any()  # no entries of the host's table
    nearest = (table.timesteps.unsqueeze(1) - record.timestep).abs().argmin(dim=0)
    weights = {
        "host": table.linear_timesteps_weights[nearest].float(),
        "none": torch.ones(clips),
        "min_snr:2": torch.minimum((1 - flat) ** 2, 2 * flat**2),
    }
    wanted = (weights[weighting] * errors).mean()
    torch.testing.assert_close(loss.reshape(()), wanted, rtol=1e-4, atol=1e-6)  # noise is solved for
    assert vars(table).keys().isdisjoint({"add_noise", "training_target", "training_weight"})


@pytest.mark.parametrize(
    ("parse", "text", "wanted"),
    [
        (NoiseLevels.parse, "normal", "wanted host, uniform"),
        (NoiseLevels.parse, "logit_normal:0", r"wanted host, uniform\[:SHIFT\] or logit_normal"),
        (NoiseLevels.parse, "logit_normal:0,0", "STD and SHIFT above 0"),
        (NoiseLevels.parse, "uniform:x", "wanted host"),
        (NoiseLevels.parse, "uniform:nan", "wanted host"),
        (NoiseLevels.parse, "host:1", "wanted host"),
        (LevelWeight.parse, "min_snr:0", "GAMMA above 0"),
        (LevelWeight.parse, "p2", "wanted host, none or min_snr"),
    ],
)
def test_other_texts_are_refused(parse, text, wanted):
    with pytest.raises(ValueError, match=wanted):
        parse(text)
