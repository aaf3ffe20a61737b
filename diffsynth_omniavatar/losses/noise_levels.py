"""Which noise levels a step trains, and what a level counts: choices beside the host's own.

A noise level is sigma of x_t = (1 - sigma) x_0 + sigma n, from 0 (clean) to 1 (noise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HOST = "host"
"""The choice that leaves it to the host."""
SAMPLINGS = "host, uniform[:SHIFT] or logit_normal[:MEAN,STD[,SHIFT]]"
WEIGHTINGS = "host, none or min_snr[:GAMMA]"


@dataclass(frozen=True)
class NoiseLevels:
    """How levels are drawn: u = sigmoid(m + s z) with z normal, or u uniform, then shifted.

    The density of the former is 1 / (s sqrt(2 pi) u (1 - u)) exp(-(logit(u) - m)^2 / (2 s^2)); then

        sigma = a u / (1 + (a - 1) u)

    with the shift a, which moves levels towards noise, as long and large videos need it. Both are of Esser et al. 2024,
    "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", sections 3.1 and 5.3.2.
    """

    normal: tuple[float, float] | None = (0.0, 1.0)
    """m and s; None for a uniform u."""
    shift: float = 1.0

    @classmethod
    def parse(cls, text: str) -> NoiseLevels | None:
        """What one of `SAMPLINGS` says; None for the host's own. ValueError for another text."""
        name, _, values = text.partition(":")
        numbers = finite_numbers(values)
        if text == HOST:
            return None
        if numbers is not None and name == "uniform" and len(numbers) <= 1:
            normal, rest = None, numbers
        elif numbers is not None and name == "logit_normal" and len(numbers) in (0, 2, 3):
            normal, rest = (numbers[0], numbers[1]) if numbers else (0.0, 1.0), numbers[2:]
        else:
            raise ValueError(f"is {text!r}, wanted {SAMPLINGS}")
        if not all(shift > 0 for shift in rest) or (normal is not None and not normal[1] > 0):
            raise ValueError(f"is {text!r}, wanted STD and SHIFT above 0")
        return cls(normal, *rest)

    def draw(self, count: int) -> Tensor:
        """Levels, float32 [count], from torch's generator of the CPU."""
        if self.normal is None:
            u = torch.rand(count)
        else:
            mean, deviation = self.normal
            u = torch.sigmoid(mean + deviation * torch.randn(count))
        return self.shift * u / (1 + (self.shift - 1) * u)


@dataclass(frozen=True)
class LevelWeight:
    """What a level counts: min(SNR, gamma) on the error of x_0.

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy".

    Here SNR = ((1 - sigma) / sigma)^2. The network predicts the flow v = n - x_0, and x_0 = x_t - sigma v: an error of
    v is an error of x_0 of sigma times its size. So the weight of the squared error of v is

        w = sigma^2 min(SNR, gamma) = min((1 - sigma)^2, gamma sigma^2)

    largest where SNR = gamma. A gamma of None stands for no weight, w = 1.
    """

    gamma: float | None = 5.0

    @classmethod
    def parse(cls, text: str) -> LevelWeight | None:
        """What one of `WEIGHTINGS` says; None for the host's own. ValueError for another text."""
        name, _, values = text.partition(":")
        numbers = finite_numbers(values)
        if text == HOST:
            return None
        if text == "none":
            return cls(None)
        if name != "min_snr" or numbers is None or len(numbers) > 1:
            raise ValueError(f"is {text!r}, wanted {WEIGHTINGS}")
        if not all(gamma > 0 for gamma in numbers):
            raise ValueError(f"is {text!r}, wanted a GAMMA above 0")
        return cls(*numbers)

    def weight(self, sigma: Tensor) -> Tensor:
        """The weight of each level, of the same shape."""
        if self.gamma is None:
            return torch.ones_like(sigma)
        return torch.minimum((1 - sigma).square(), self.gamma * sigma.square())


def finite_numbers(text: str) -> list[float] | None:
    """Numbers of a flag: "0,1" -> [0.0, 1.0]; "" -> []; None if these are no finite numbers."""
    try:
        numbers = [float(number) for number in text.split(",")] if text else []
    except ValueError:
        return None
    return numbers if all(torch.tensor(numbers).isfinite()) else None
