"""Errors in the known frames that training shows the model, as it meets them in its own chunks when it generates.

A chunk begins with frames that the model made itself. With `bank` training does so too: the errors of its predictions,

    x0_pred - x0 = sigma ((n - x0) - v)

on the frames that a step generates are kept, by noise level, and later ones are added to the known latents of the
model's input. Target, mask and loss stay as they are. The idea is that of Stable Video Infinity
(https://arxiv.org/abs/2510.09212). `noise` adds Gaussian noise instead.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..generation.record import StepRecord
from ..losses.noise_levels import finite_numbers
from ..system.tensor_files import read_safetensors, write_safetensors

OFF = "none"
FORMS = "none, bank[:P] or noise:SIGMA[,P]"
PROBABILITY = 0.5
LEVELS = 10
"""Equal parts of the noise levels 0 to 1, each with errors of its own."""
ENTRIES = 32
"""Errors of a part and a size of picture that are kept; a new one takes the place of the oldest."""
FRAMES = 4
"""Latent frames of an error: the last of a clip, as many as the longest usual prefix, 13 frames, has."""


class ErrorBank:
    """The last errors of a process, in CPU memory."""

    def __init__(self) -> None:
        self.errors: dict[tuple[int, int], dict[int, deque[Tensor]]] = defaultdict(dict)
        """Height and width of the latents -> part of the noise levels -> errors [16, n, h, w], n up to `FRAMES`."""

    @torch.no_grad()
    def collect(self, record: StepRecord) -> None:
        """Keep the errors of a step's clips, in the number format of its latents."""
        if record.prediction is None or record.target is None or record.sigma is None or record.latents is None:
            raise ValueError("the record of a step that has been computed is wanted")
        first = max(record.known_frames, record.target.shape[2] - FRAMES)
        target, prediction = record.target[:, :, first:].float(), record.prediction[:, :, first:].float()
        errors = record.sigma.float() * (target - prediction)
        for error, sigma in zip(errors.to("cpu", record.latents.dtype), record.sigma.flatten().tolist(), strict=True):
            self._keep(min(int(sigma * LEVELS), LEVELS - 1), error.clone())

    def _keep(self, level: int, error: Tensor) -> None:
        height, width = error.shape[-2:]
        self.errors[height, width].setdefault(level, deque(maxlen=ENTRIES)).append(error)

    def draw(self, shape: torch.Size) -> Tensor | None:
        """An error for known latents of this shape [16, P, h, w], or None where no clip of that size was seen.

        Each part of the noise levels that has errors has the same chance, and within it each error. The last P frames
        are taken; before those of a shorter one its first frame stands again. Torch's generator of the CPU draws.
        """
        _, frames, height, width = shape
        levels = sorted(self.errors.get((height, width), {}).items())
        if not levels:
            return None
        entries = levels[int(torch.randint(len(levels), ()))][1]
        error = entries[int(torch.randint(len(entries), ()))][:, -frames:]
        missing = frames - error.shape[1]
        return torch.cat([error[:, :1].expand(-1, missing, -1, -1), error], dim=1)

    def save(self, path: Path) -> None:
        """Write all errors, in their order."""
        write_safetensors(
            path,
            {
                f"{level}.{place:04d}.{height}x{width}": error
                for (height, width), levels in self.errors.items()
                for level, entries in levels.items()
                for place, error in enumerate(entries)
            },
        )

    def load(self, path: Path) -> None:
        """Take back what `save` wrote.

        Raises:
            ValueError: it is not there, or damaged.
        """
        if not path.is_file():
            raise ValueError(
                f"{path.parent} has no {path.name}: it is of a run without --prefix_errors bank; start a new run from "
                "its weights (--omniavatar_checkpoint)"
            )
        self.errors.clear()
        stored: Mapping[str, Tensor] = read_safetensors(path)
        for name in sorted(stored):
            self._keep(int(name.partition(".")[0]), stored[name])


class PrefixErrors:
    """What is added to known latents.

    Args:
        probability: that a clip's prefix gets an error.
        deviation: of Gaussian noise; None for errors of the bank.
    """

    def __init__(self, probability: float = PROBABILITY, deviation: float | None = None) -> None:
        self.probability, self.deviation = probability, deviation
        self.bank = ErrorBank() if deviation is None else None

    @classmethod
    def parse(cls, text: str) -> PrefixErrors | None:
        """What one of `FORMS` says; None for none. ValueError for another text."""
        name, _, values = text.partition(":")
        numbers = finite_numbers(values)
        if text == OFF:
            return None
        if numbers is None:
            numbers = [math.nan]
        deviation = numbers.pop(0) if name == "noise" and numbers else None
        if len(numbers) > 1 or name not in ("bank", "noise") or (name == "noise" and deviation is None):
            raise ValueError(f"is {text!r}, wanted {FORMS}")
        if not all(0 < number <= 1 for number in numbers) or not (deviation is None or 0 < deviation < math.inf):
            raise ValueError(f"is {text!r}, wanted P above 0 and up to 1, and SIGMA above 0")
        return cls(numbers[0] if numbers else PROBABILITY, deviation)

    def added(self, prefix: Tensor, dropped: Tensor) -> Tensor:
        """Known latents [B, 16, P, h, w] with errors in some clips; a prefix of one frame stays as it is, for it is
        the portrait, and noise in the place of a dropped one [B] too. Torch's generator of the CPU draws.
        """
        if prefix.shape[2] == 1:
            return prefix
        chosen = (torch.rand(len(prefix)) < self.probability) & ~dropped.cpu()
        clips = zip(prefix, chosen.tolist(), strict=True)
        return torch.stack([self._with_error(clip) if spoilt else clip for clip, spoilt in clips])

    def _with_error(self, prefix: Tensor) -> Tensor:
        error = self.bank.draw(prefix.shape) if self.bank is not None else self._noise(prefix)
        return prefix if error is None else (prefix.float() + error.to(prefix.device).float()).to(prefix)

    def _noise(self, prefix: Tensor) -> Tensor:
        assert self.deviation is not None
        return self.deviation * torch.randn(prefix.shape)
