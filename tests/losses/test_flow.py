"""The flow loss knows exactly what the host made: the noise level of each clip; its draws are each clip's own."""

import pytest
import torch

from diffsynth_omniavatar.generation.record import StepRecord
from diffsynth_omniavatar.losses.flow import flow_loss, recording

CLIPS = 4
SHAPE = (16, 1, 2, 2)


def recorded_step(pipe, clips=CLIPS, **boundaries):
    """The record of a step whose clips are zero everywhere: x_t = sigma n."""
    latents = torch.zeros(clips, *SHAPE)
    record = StepRecord()
    noise = torch.randn_like(latents)
    flow_loss(pipe, {"input_latents": latents, "noise": noise, "omni_record": record, **boundaries})
    return record


@pytest.mark.parametrize("clips", [1, 3])
def test_the_recorded_sigma_made_x_t_whatever_the_timesteps_format(pipe, clips):
    """A timestep that is rounded to bfloat16 stands for the sigma of the host's nearest entry, not for its own."""
    zeros, ones = torch.zeros(clips, 1, 1, 1, 1), torch.ones(clips, 1, 1, 1, 1)
    scheduler = pipe.scheduler
    for timestep in scheduler.timesteps.bfloat16().unique():
        record = StepRecord()
        with recording(scheduler, record, (0.0, 1.0)):
            noisy = scheduler.add_noise(zeros, ones, timestep[None])
        assert torch.equal(record.sigma, noisy) and record.sigma.dtype == torch.float32


@pytest.mark.parametrize(
    ("lowest", "highest"),
    [(0.25, 0.3), (0.0, 0.1), (0.9, 1.0)],
)
def test_the_timesteps_of_all_clips_lie_within_the_boundaries(pipe, lowest, highest):
    """As places in the scheduler's table, whose first entry is the noisiest."""
    allowed = pipe.scheduler.timesteps[int(lowest * 1000) : int(highest * 1000)]
    boundaries = {"min_timestep_boundary": lowest, "max_timestep_boundary": highest}
    steps = [recorded_step(pipe, **boundaries).timestep for _ in range(50)]
    drawn = torch.stack(steps)
    assert torch.isin(drawn, allowed).all()
    for clip in range(CLIPS):
        assert len(drawn[:, clip].unique()) > 15  # 50 draws of 50 or 100 entries


def test_each_clip_of_a_batch_has_a_timestep_and_a_noise_of_its_own(pipe):
    records = [recorded_step(pipe) for _ in range(200)]
    timesteps = torch.stack([record.timestep for record in records]).float()
    correlation = torch.corrcoef(timesteps.T)
    assert (correlation - torch.eye(CLIPS)).abs().max() < 5 / 200**0.5  # five standard deviations of independent ones
    noise = torch.stack([record.latents / record.sigma for record in records[:20]], dim=1).flatten(1)
    correlation = torch.corrcoef(noise)
    assert (correlation - torch.eye(CLIPS)).abs().max() < 5 / noise.shape[1] ** 0.5
