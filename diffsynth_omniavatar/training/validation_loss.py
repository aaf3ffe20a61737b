"""The loss on held-out clips at fixed noise levels and fixed noise: equal weights give equal losses."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object

from ..data.dataset import OmniAvatarDataset
from ..data.recipe import Recipe
from ..generation.pipeline import OmniAvatarPipeline
from .accelerator import OmniAccelerator
from .callbacks import ValidationResult
from .loader import SampleKey, SeededSamples, stream_seed
from .module import OmniAvatarTrainingModule

logger = logging.getLogger(__name__)

SEED = 0
"""Of samples and noise, whatever the run's own seed is."""


def noise_levels(count: int, noisiest: float = 1.0, cleanest: float = 0.0) -> list[float]:
    """The middles of `count` equal parts of the noise levels sigma from `cleanest` to `noisiest`."""
    return [cleanest + (noisiest - cleanest) * (index + 0.5) / count for index in range(count)]


@torch.no_grad()
def fixed_noise_losses(
    pipe: OmniAvatarPipeline,
    inputs: Mapping[str, Any],
    clips: Sequence[int],
    levels: Sequence[float],
    seed: int = SEED,
) -> list[float]:
    """The loss of each clip of a batch: the mean over noise levels of mean((v - (n - x_0))^2), without timestep weight.

    The noise n is a function of (seed, clip, place of the level), the mean is over what `omni_record` covers.

    Args:
        pipe: the model.
        inputs: those of the model function, with `input_latents` [B, 16, T, h, w] and `omni_record`.
        clips: B numbers, by which the noise of a clip is drawn.
        levels: sigma of each draw, 0..1.
    """
    inputs = dict(inputs)
    latents, record = inputs.pop("input_latents"), inputs.pop("omni_record")
    losses = torch.zeros(len(clips), dtype=torch.float64)
    for place, level in enumerate(levels):
        timestep = torch.tensor([1000 * level]).to(latents)  # rounded to the model's number format; sigma goes with it
        sigma = float(timestep) / 1000
        noise = torch.stack([_noise(latents.shape[1:], seed, clip, place) for clip in clips]).to(latents.device)
        noisy = ((1 - sigma) * latents.float() + sigma * noise).to(latents)
        flow = pipe.model_fn(dit=pipe.dit, **inputs | {"latents": noisy, "timestep": timestep})
        errors = record.covered(flow).float() - record.covered(noise - latents.float())
        losses += errors.square().mean(dim=(1, 2, 3, 4)).double().cpu()
    return (losses / len(levels)).tolist()


def _noise(shape: torch.Size, seed: int, clip: int, place: int) -> torch.Tensor:
    """Drawn on the CPU, so that it is the same on all devices."""
    generator = torch.Generator().manual_seed(stream_seed("validation", seed, clip, place))
    return torch.randn(shape, generator=generator)


def validation_recipe(recipe: Recipe) -> Recipe:
    """The same for held-out clips: nothing is dropped, and samples are as long as clips and limits allow."""
    return dataclasses.replace(
        recipe,
        text_drop_prob=0.0,
        audio_drop_prob=0.0,
        prefix_drop_prob=0.0,
        curriculum_frames=(),
        dynamic_length=False,
    )


@dataclass(kw_only=True)
class ValidationLoss:
    """Measures the loss on held-out clips, each process its share; all processes must call it.

    Reference and prefix of a clip are drawn as in training, once for all: by its place in the list.
    """

    module: OmniAvatarTrainingModule
    accelerator: OmniAccelerator
    dataset: OmniAvatarDataset
    """With `validation_recipe` and a batch size of 1."""
    levels: int = 8
    """Noise levels of each clip."""
    at_start: bool = False
    """Also before the first step."""

    def __call__(self, step: int) -> ValidationResult | None:
        """`validation_loss`, the mean over all clips; None where nothing is to be done.

        If a clip can no longer be read, that is logged and there is no loss, for it would be of other clips; where the
        model is sharded, the error is raised.
        """
        if step == 0 and not self.at_start:
            return None
        losses: dict[int, float | None] = {}
        samples = SeededSamples(self.dataset, SEED)
        for index in self.accelerator.share(len(self.dataset)):
            try:
                losses[index] = self._loss(samples[SampleKey(0, index)], index)
            except (ValueError, OSError) as error:
                if self.accelerator.is_sharded:  # the others would wait for this process's part of the weights
                    raise
                logger.error("there is no validation loss at step %d, training goes on: %s", step, error)
                losses[index] = None
        found = {index: loss for part in gather_object([losses]) for index, loss in part.items()}
        known = [loss for loss in found.values() if loss is not None]
        if len(known) < len(found):
            return ValidationResult({}, [])
        return ValidationResult({"validation_loss": math.fsum(known) / len(known)}, [])

    def _loss(self, sample: Any, index: int) -> float:
        shared, positive, _ = self.module.prepare(sample)
        (loss,) = fixed_noise_losses(self.module.pipe, {**shared, **positive}, [index], self._levels())
        return loss

    def _levels(self) -> list[float]:
        """Within the part of the host's table of noise levels that trains."""
        sigmas, settings = self.module.pipe.scheduler.sigmas, self.module.settings
        first = int(settings.min_timestep_boundary * len(sigmas))
        last = int(settings.max_timestep_boundary * len(sigmas))
        cleanest = 0.0 if last == len(sigmas) else float(sigmas[last])
        return noise_levels(self.levels, float(sigmas[first]), cleanest)
