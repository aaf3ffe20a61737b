"""The host's flow-matching loss, over the frames and places that OmniAvatar's recipe covers.

The host draws a timestep t, makes x_t = (1 - sigma) x_0 + sigma n, and takes mean((v - (n - x_0))^2) times the
weight of t, v being what the model function returns. Here the model function and the scheduler's target both give
only the covered part (`StepRecord.covered`), so that the host's loss is unchanged and its mean is over that part.

The host draws one t for a whole batch. OmniAvatar was trained with one clip per GPU on many GPUs, each with its own t:
so here each clip of a batch has its own, and a batch of B clips is what B processes with one clip each would see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import host
from ..generation.record import StepRecord
from ..model.sampling import TRAIN_TIMESTEPS
from .noise_levels import LevelWeight, NoiseLevels

if TYPE_CHECKING:
    from ..generation.pipeline import OmniAvatarPipeline


@contextmanager
def recording(
    scheduler: Any,
    record: StepRecord,
    boundaries: tuple[float, float],
    levels: NoiseLevels | None = None,
    weighting: LevelWeight | None = None,
) -> Iterator[None]:
    """Within it, the scheduler's target is the covered part, and the record gets the sigma that makes x_t.

    The sigma is looked up as the host does. It cannot be computed from the timestep: that is rounded to the
    pipeline's number format, and the host takes the sigma of the nearest entry of its table.

    Args:
        scheduler: the host's, in training mode.
        record: of the step.
        boundaries: the host's lowest and highest timestep, 0..1, from which those of further clips are drawn too.
        levels: in the place of the host's; between the entries of its table too.
        weighting: in the place of the host's.
    """
    host_noise, host_target = scheduler.add_noise, scheduler.training_target

    def add_noise(original_samples: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        clips = len(original_samples)
        if levels is not None:
            timestep = (TRAIN_TIMESTEPS * levels.draw(clips)).to(timestep)
        elif clips > 1:
            timestep = torch.cat([timestep, _draw_timesteps(scheduler, boundaries, clips - 1).to(timestep)])
        nearest = (scheduler.timesteps.unsqueeze(1) - timestep.cpu()).abs().argmin(dim=0)
        sigma = scheduler.sigmas[nearest] if levels is None else timestep.float() / TRAIN_TIMESTEPS
        sigma = sigma.float().to(noise.device).view(-1, 1, 1, 1, 1)
        record.sigma, record.timestep = sigma, timestep
        if clips > 1 or levels is not None or weighting is not None:
            # The host multiplies the mean by the weight of its t: here each clip's errors by that of theirs.
            scheduler.training_weight = lambda _: 1.0
            weight = scheduler.linear_timesteps_weights[nearest].to(sigma).view_as(sigma)
            weight = weight if weighting is None else weighting.weight(sigma)
            record.weight = weight if record.weight is None else record.weight * weight
        if levels is not None:
            return ((1 - sigma) * original_samples.float() + sigma * noise.float()).to(original_samples)
        clip_by_clip = zip(original_samples.split(1), noise.split(1), timestep.split(1), strict=True)
        return torch.cat([host_noise(*clip) for clip in clip_by_clip])

    def training_target(*values: Tensor) -> Tensor:
        record.target = host_target(*values)
        return record.covered(record.target)

    scheduler.add_noise = add_noise
    scheduler.training_target = training_target
    replaced = {"add_noise", "training_target", "training_weight"}
    try:
        yield
    finally:
        for name in replaced & vars(scheduler).keys():
            delattr(scheduler, name)


def _draw_timesteps(scheduler: Any, boundaries: tuple[float, float], count: int) -> Tensor:
    lowest, highest = (int(boundary * len(scheduler.timesteps)) for boundary in boundaries)
    return scheduler.timesteps[torch.randint(lowest, highest, (count,))]


def flow_loss(
    pipe: OmniAvatarPipeline,
    inputs: Mapping[str, Any],
    levels: NoiseLevels | None = None,
    weighting: LevelWeight | None = None,
) -> Tensor:
    """The host's loss of one batch, a scalar: the mean over the frames behind the known ones, weighted by timestep.

    Each clip of the batch has a timestep of its own.

    Args:
        pipe: in training mode.
        inputs: those of the model function, with `input_latents` and `omni_record`.
        levels, weighting: see `recording`.
    """
    boundaries = inputs.get("min_timestep_boundary", 0.0), inputs.get("max_timestep_boundary", 1.0)
    with recording(pipe.scheduler, inputs["omni_record"], boundaries, levels, weighting):
        return host.training_loss(pipe, inputs)


@torch.no_grad()
def clip_errors(record: StepRecord, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Of each clip, mean((v - (n - x_0))^2) over the frames that the loss covers, without weights and with all of them.

    Args:
        record: of a step behind `flow_loss`.
        loss: what that gave, the mean of the weighted ones.

    Returns:
        Twice float32 [B].
    """
    assert record.prediction is not None and record.target is not None
    prediction, target = record.prediction.float(), record.target.float()
    places = (1, 2, 3, 4)
    plain = (prediction - target)[:, :, record.known_frames :].square().mean(dim=places)
    if len(plain) == 1:  # whose weight the host may multiply its mean with
        return plain, loss.float().reshape(1)
    return plain, (record.covered(prediction) - record.covered(target)).square().mean(dim=places)
