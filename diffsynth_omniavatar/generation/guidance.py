"""Guidance by text and by sound where the host's two passes are not enough."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import host
from ..model.blocks.process_grid import PassParallel
from ..model.sampling import TRAIN_TIMESTEPS, Sampling

Denoise = Callable[[Tensor, Tensor, "host.TeaCache | None"], Tensor]
"""Text embedding, audio features and cache -> flow."""


class Guidance:
    """The guided flow of a step, computed within the host's positive pass.

    With p, o, n the predictions with audio, without audio, and with negative text and no audio, s the text guidance
    and a the audio guidance, it is `n + s (o - n) + a (p - o)`: three passes; with s = 1 two, `o + a (p - o)`; with
    a = s two, `n + s (p - n)`. Outside the guided steps it is p alone. The host computes `n + s (x - n)` of what its
    positive and negative passes return; both return the guided flow, so that this is what it gets.

    Source: upstream's `log_video`, the branch for different scales.

    Args:
        sampling: scales, projection, rescaling, and which steps are guided.
        negative_context: the embedding of the negative text; None with a text guidance of 1, which needs none.
        caches: TeaCaches of the passes o and n.
        known_frames: latent frames at the start that are given, whose flow has no meaning.
        parallel: the processes that make the other passes; all steps must be guided then. None for this one alone.
    """

    def __init__(
        self,
        sampling: Sampling,
        negative_context: Tensor | None,
        caches: tuple[host.TeaCache | None, host.TeaCache | None] = (None, None),
        known_frames: int = 0,
        parallel: PassParallel | None = None,
    ) -> None:
        self._sampling, self._negative_context, self._caches = sampling, negative_context, caches
        self._known_frames, self._parallel = known_frames, parallel
        self._step = 0
        self._result: Tensor | None = None

    def __call__(
        self,
        denoise: Denoise,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        audio: Tensor,
        cache: host.TeaCache | None,
    ) -> Tensor:
        """The positive pass at latents [B, 16, T, h, w] of a timestep [1]."""
        guided_step = self._step in self._sampling.guided_steps
        passes = [(context, audio, cache)]
        if guided_step:
            passes += self._other_passes(context, torch.zeros_like(audio))
        if self._parallel is None:
            prediction, *others = [denoise(*one) for one in passes]
        else:
            prediction, *others = self._parallel.predictions(len(passes), lambda index: denoise(*passes[index]))
        self._result = prediction
        if guided_step:
            guided = self._guided(prediction, others)
            if self._sampling.apg_eta != 1:
                clean = latents.float() - timestep.float() / TRAIN_TIMESTEPS * prediction.float()
                guided = projected(guided, prediction, clean, self._sampling.apg_eta, self._known_frames)
            self._result = rescaled(guided, prediction, self._sampling.guidance_rescale, self._known_frames)
        self._step += 1
        return self._result

    def negative(self, *_: object) -> Tensor:
        """The negative pass: the same result, without computing."""
        assert self._result is not None
        return self._result

    def _other_passes(self, context: Tensor, silence: Tensor) -> list[tuple[Tensor, Tensor, host.TeaCache | None]]:
        """Of o, where the audio has a scale of its own, and n, where the text has guidance."""
        passes = []
        if self._sampling.audio_scale != self._sampling.cfg_scale:
            passes.append((context, silence, self._caches[0]))
        if self._sampling.cfg_scale != 1:
            assert self._negative_context is not None
            passes.append((self._negative_context, silence, self._caches[1]))
        return passes

    def _guided(self, p: Tensor, others: list[Tensor]) -> Tensor:
        """Blends with the audio are in float32, that with the negative text as the host does it."""
        s, a = self._sampling.cfg_scale, self._sampling.audio_scale
        x = p
        if a != s:
            o = others[0].float()
            difference = p.float() - o
            if s != 0:
                x = (o + a / s * difference).to(p.dtype)
        if s == 1:
            return x
        n = others[-1]
        if s == 0:
            return n if a == 0 else (n.float() + a * difference).to(n.dtype)
        return n + s * (x - n)


def projected(guided: Tensor, plain: Tensor, clean: Tensor, eta: float, known_frames: int = 0) -> Tensor:
    """Adaptive projected guidance: of what guidance adds to the flow p without it, the part that is parallel to the
    clean video x0 which p predicts counts only `eta` times. That part mostly makes colours stronger.

        d = g - p;  g' = g - (1 - eta) <d, x0> / <x0, x0> x0

    with the products over each sample [B, 16, T, h, w] but its first `known_frames`. The paper projects differences of
    x0, which are -sigma d: the same direction. Its limit on the length of d and its momentum are left out.

    Source: Sadat et al. 2024, Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models,
    arXiv:2410.02416.
    """
    difference, direction = ((flow[:, :, known_frames:]) for flow in (guided.float() - plain.float(), clean))
    products = ((difference * direction).sum(dim=(1, 2, 3, 4)), direction.square().sum(dim=(1, 2, 3, 4)))
    parallel = (products[0] / products[1]).view(-1, 1, 1, 1, 1) * clean
    return (guided.float() - (1 - eta) * parallel).to(guided.dtype)


def rescaled(guided: Tensor, plain: Tensor, strength: float, known_frames: int = 0) -> Tensor:
    """A guided flow g whose deviation goes back to that of the flow without guidance p, against burnt colours:

        strength * g std(p) / std(g) + (1 - strength) * g

    with std over each sample [B, 16, T, h, w] but its first `known_frames`.

    Source: Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps Are Flawed, equations 15 and 16.
    """
    if strength == 0:
        return guided
    wanted, found = (flow[:, :, known_frames:].float().std(dim=(1, 2, 3, 4), keepdim=True) for flow in (plain, guided))
    return (guided.float() * (strength * wanted / found + 1 - strength)).to(guided.dtype)
