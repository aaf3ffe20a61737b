"""The host's noise schedule with given timesteps, and with fresh noise between the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.sampling import TRAIN_TIMESTEPS, Sampling


class FreshNoise:
    """Noise for the steps of some clips, new each time, float32 on the CPU.

    It goes on where the noise ends from which each clip starts, and which the host draws from the same seed.

    Args:
        seeds: of the clips of a batch; None for torch's own random state.
        device: on which the random numbers are drawn, as the host's `rand_device`.
    """

    def __init__(self, seeds: Sequence[int | None], device: str | torch.device = "cpu") -> None:
        self._seeds, self._device = seeds, device
        self._generators: list[torch.Generator | None] | None = None

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Noise of this shape, whose first size is the number of clips."""
        if self._generators is None:
            self._generators = [
                None if seed is None else torch.Generator(self._device).manual_seed(seed) for seed in self._seeds
            ]
            self._draw(shape)  # what the clips start from
        return self._draw(shape)

    def _draw(self, shape: Sequence[int]) -> Tensor:
        assert self._generators is not None
        parts = [torch.randn(1, *shape[1:], generator=generator, device=self._device) for generator in self._generators]
        return torch.cat(parts).cpu()


class StepScheduler:
    """What the host's loop takes as its scheduler: the host's own, but for given timesteps and another solver.

    It also tells what each step has come to.

    With v the predicted flow at noise level s, and s' the next one (0 behind the last step):

        euler:    x' = x + (s' - s) v
        renoise:  x0 = x - s v;  x' = (1 - s') x0 + s' e  with fresh noise e

    The second is how DMD2 (Yin et al. 2024, arXiv:2405.14867) trains and samples its students; ComfyUI calls it lcm.

    Args:
        host_scheduler: the pipeline's own.
        sampling: timesteps, shift and solver.
        noise: shape -> fresh noise.
        on_step: gets the number of each step, from 1, and the clean latents [16, T, h, w] that it predicts of the
            first clip.

    Attributes:
        known: clean latents [B, 16, P, h, w] of the first frames, which are not predicted.
    """

    known: Tensor | None = None

    def __init__(
        self,
        host_scheduler: Any,
        sampling: Sampling,
        noise: Callable[[Sequence[int]], Tensor],
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self._host, self._sampling, self._noise, self._on_step = host_scheduler, sampling, noise, on_step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def set_timesteps(self, steps: int, denoising_strength: float = 1.0, shift: float = 5.0) -> None:
        """As the host's; given timesteps take the place of its grid."""
        self._host.set_timesteps(steps, denoising_strength=denoising_strength, shift=shift)
        if self._sampling.timesteps:
            levels = torch.tensor(self._sampling.timesteps) / TRAIN_TIMESTEPS * denoising_strength
            self._host.sigmas = shift * levels / (1 + (shift - 1) * levels)
            self._host.timesteps = self._host.sigmas * TRAIN_TIMESTEPS

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Tensor:
        """The latents at the next noise level."""
        index = int(torch.argmin((self._host.timesteps - timestep.cpu()).abs()))
        clean = sample.float() - self._host.sigmas[index] * model_output.float()
        if self._on_step is not None:
            known = clean[:, :, :0] if self.known is None else self.known.to(clean)
            self._on_step(index + 1, torch.cat([known, clean[:, :, known.shape[2] :]], dim=2)[0])
        if self._sampling.solver == "euler":
            return self._host.step(model_output, timestep, sample, **options)
        if index + 1 == len(self._host.sigmas):
            return clean.to(sample.dtype)
        level = self._host.sigmas[index + 1]
        noise = self._noise(sample.shape).to(clean)
        return ((1 - level) * clean + level * noise).to(sample.dtype)
