"""What a training step covers, and what went into the denoiser and came out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class StepRecord:
    """One training step: which latent frames and places the loss covers, and what went into the denoiser and came out.

    Attributes:
        known_frames: latent frames at the start that are out of the loss.
        weight: of the squared error: of places [B, 1, T - known_frames, h, w] with mean 1, times those of the clips'
            timesteps [B, 1, 1, 1, 1] where a batch has several clips; None for 1 everywhere.
        latents: noisy latents x_t with the known frames in them, [B, 16, T, h, w].
        prediction: of the flow, [B, 16, T, h, w].
        target: the flow itself, n - x_0, of the same shape.
        timestep: of each clip, 0..1000, [B].
        sigma: the noise level that made x_t, float32 [B, 1, 1, 1, 1].
    """

    known_frames: int = 0
    weight: Tensor | None = None
    latents: Tensor | None = None
    prediction: Tensor | None = None
    target: Tensor | None = None
    timestep: Tensor | None = None
    sigma: Tensor | None = None

    def keep(self, latents: Tensor, prediction: Tensor) -> Tensor:
        """Called by the model function; gives what the host's loss compares."""
        self.latents, self.prediction = latents, prediction
        return self.covered(prediction)

    def covered(self, flow: Tensor) -> Tensor:
        """The part of a flow [B, 16, T, h, w] that the loss covers, times the root of the weight.

        The mean of the squared difference of two of these is the weighted mean over the frames behind the known ones.
        """
        flow = flow[:, :, self.known_frames :]
        return flow if self.weight is None else flow.float() * self.weight.sqrt()
