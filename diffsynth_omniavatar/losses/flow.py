"""The host's flow-matching loss, over the frames and places that OmniAvatar's recipe covers.

The host draws a timestep t, makes x_t = (1 - sigma) x_0 + sigma n, and takes mean((v - (n - x_0))^2) times the
weight of t, v being what the model function returns. Here the model function and the scheduler's target both give
only the covered part (`StepRecord.covered`), so that the host's loss is unchanged and its mean is over that part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import host
from ..conditioning import StepRecord

if TYPE_CHECKING:
    from ..pipeline import OmniAvatarPipeline


@contextmanager
def recording(scheduler: Any, record: StepRecord) -> Iterator[None]:
    """Within it, the scheduler's target is the covered part, and the record gets the sigma that makes x_t.

    The sigma is looked up as the host does. It cannot be computed from the timestep: that is rounded to the
    pipeline's number format, and the host takes the sigma of the nearest entry of its table.
    """
    add_noise, training_target = scheduler.add_noise, scheduler.training_target

    def add_noise_and_record(original_samples: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        nearest = torch.argmin((scheduler.timesteps - timestep.cpu()).abs())
        record.sigma = float(scheduler.sigmas[nearest])
        return add_noise(original_samples, noise, timestep)

    def covered_target(sample: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return record.covered(training_target(sample, noise, timestep))

    scheduler.add_noise, scheduler.training_target = add_noise_and_record, covered_target
    try:
        yield
    finally:
        del scheduler.add_noise, scheduler.training_target


def flow_loss(pipe: OmniAvatarPipeline, inputs: Mapping[str, Any]) -> Tensor:
    """The host's loss of one batch, a scalar: the mean over the frames behind the known ones, weighted by timestep.

    Args:
        pipe: in training mode.
        inputs: those of the model function, with `input_latents` and `omni_record`.
    """
    with recording(pipe.scheduler, inputs["omni_record"]):
        return host.training_loss(pipe, inputs)
