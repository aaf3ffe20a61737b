"""The losses of a training step on decoded frames: lip sync, LPIPS, TREPA.

    x_0 = x_t - sigma v        with the sigma that made x_t, within +-10, known frames clean
    loss = a flow + b sync(D(x_0)) + c lpips(D(x_0), D(y)) + d trepa(D(x_0), D(y))

D is the VAE's decoder, y the clip's latents: so a cached sample is what a live one is, and the VAE's own error costs
nothing. The three are not weighted by timestep. They look at frames behind the known ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..losses import trepa
from ..losses.decode import Window, decode_with_losses, predicted_latents, surrogate_loss
from ..losses.lpips import LpipsLoss
from ..losses.mel import mel_spectrogram, mel_window
from ..losses.sync import SyncLoss
from ..losses.trepa import TrepaLoss
from ..media.timeline import SAMPLES_PER_FRAME
from ..model.frame_decoder import decode_frames, frames_of


@dataclass(frozen=True, kw_only=True)
class AuxiliaryLosses:
    """Which losses on decoded frames a step has, and what they look at.

    Raises:
        ValueError: there are none, a weight is negative, or num_frames is too small for a window.
    """

    sync: SyncLoss | None = None
    lpips: LpipsLoss | None = None
    trepa: TrepaLoss | None = None
    recon_weight: float = 1.0
    """Of the flow-matching loss."""
    sync_weight: float = 0.1
    lpips_weight: float = 0.1
    trepa_weight: float = 10.0
    num_frames: int | None = None
    """Decode only this many frames in a row, at a random place in each step; None for all."""
    memory: str = "segments"
    """What `losses.decode.choose_memory` gave."""

    def __post_init__(self) -> None:
        weights = {name: getattr(self, f"{name}_weight") for name in ("recon", "sync", "lpips", "trepa")}
        faults = [f"--aux_{name}_weight {value} is negative" for name, value in weights.items() if value < 0]
        if self.sync is None and self.lpips is None and self.trepa is None:
            faults.append("no loss on frames is chosen")
        if self.num_frames is not None and self.num_frames < self.shortest:
            faults.append(f"--aux_num_frames {self.num_frames} is less than the {self.shortest} that a window has")
        if faults:
            raise ValueError(f"{'; '.join(faults)}.")

    @property
    def shortest(self) -> int:
        """Fewest video frames of a sample: a window of the losses has so many."""
        return 1 if self.sync is None and self.trepa is None else trepa.WINDOW

    @property
    def names(self) -> list[str]:
        """The losses that are on."""
        return [name for name in ("sync", "lpips", "trepa") if getattr(self, name) is not None]

    def frames(self, frames: int, known: int) -> range:
        """The frames to look at, of a clip of so many with `known` ones at its start.

        Where too few are behind the known ones for a window, the last known ones are looked at too: their gradient is
        zero. With `num_frames` the place is drawn, from one draw of python's generator.
        """
        first = min(known, frames - self.shortest)
        count = frames - first
        if self.num_frames is None or self.num_frames >= count:
            return range(first, frames)
        first += int(random.random() * (count - self.num_frames + 1))
        return range(first, first + self.num_frames)

    def __call__(self, vae: Any, inputs: Mapping[str, Any], flow: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the step, with its gradient, and the parts that it is made of, without weights.

        The decoder's backward runs in here: nothing of it is left when the denoiser's begins.

        Args:
            vae: the host's, frozen, on the device.
            inputs: those of the model function, after `flow_loss`.
            flow: what that gave.

        Raises:
            ValueError: the clip is shorter than a window.
        """
        record, target = inputs["omni_record"], inputs["input_latents"]
        x0 = predicted_latents(
            record.latents, record.prediction, record.sigma, target[:, :, : record.known_frames].to(record.latents)
        )
        total = 4 * target.shape[2] - 3
        if total < self.shortest:
            raise ValueError(f"a sample of {total} frames is shorter than a window of {self.shortest}: --min_frames")
        shown = self.frames(total, frames_of(record.known_frames).start)
        windows = [*self._sync_windows(shown, inputs), *self._compared_windows(shown, vae, target)]
        parts = {"flow": flow.detach()}
        loss = self.recon_weight * flow
        if windows:
            losses = decode_with_losses(vae, x0, windows, self.memory)
            loss = loss + surrogate_loss(x0, losses)
            parts |= losses.values
        return loss, parts

    def _sync_windows(self, shown: range, inputs: Mapping[str, Any]) -> list[Window]:
        """None for clips whose sound is dropped: their lips cannot follow it."""
        if self.sync is None:
            return []
        heard = (~inputs["omni_drop_audio"]).nonzero()[:, 0]
        if len(heard) == 0:
            return []
        mels = [mel_of(inputs["omni_waveforms"][clip], shown.stop) for clip in heard.tolist()]
        ranges = self.sync.windows(len(shown), mels[0], shown.start)

        def loss(frames: Tensor, mel: Tensor) -> Tensor:
            assert self.sync is not None
            return self.sync.window_loss(frames[heard.to(frames.device)], mel) / len(ranges)

        return [
            self._window(
                "sync", shown, part, partial(loss, mel=torch.stack([mel_window(m, shown[part[0]]) for m in mels]))
            )
            for part in ranges
        ]

    def _compared_windows(self, shown: range, vae: Any, target: Tensor) -> list[Window]:
        """Of the losses that compare with the clip's own frames."""
        if self.lpips is None and self.trepa is None:
            return []
        wanted = decode_frames(vae, target, shown.start, shown.stop)
        windows = []
        if self.lpips is not None:
            for part in self.lpips.windows(len(shown)):
                share = len(part) / len(shown)
                windows.append(self._window("lpips", shown, part, _compare(self.lpips, wanted, part, share)))
        if self.trepa is not None:
            ranges = self.trepa.windows(len(shown))
            for part in ranges:
                share = 1 / len(ranges)
                windows.append(self._window("trepa", shown, part, _compare(self.trepa, wanted, part, share)))
        return windows

    def _window(self, name: str, shown: range, part: range, loss: Any) -> Window:
        weight = getattr(self, f"{name}_weight")
        return Window(name=name, start=shown[part[0]], stop=shown[part[-1]] + 1, loss=loss, weight=weight)


def _compare(judge: LpipsLoss | TrepaLoss, wanted: Tensor, part: range, share: float) -> Any:
    """A window's share of a loss between its frames and those of the clip."""
    return lambda frames: judge.window_loss(frames, wanted[:, :, part.start : part.stop]) * share


def mel_of(waveform: Tensor, frames: int) -> Tensor:
    """The mel spectrogram of a clip's whole sound, with silence behind it where it ends before so many frames."""
    missing = frames * SAMPLES_PER_FRAME - len(waveform)
    return mel_spectrogram(torch.nn.functional.pad(waveform.cpu(), (0, max(0, missing))))
