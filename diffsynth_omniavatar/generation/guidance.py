"""The audio's own guidance inside the host's two passes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .. import host


class AudioGuidance:
    """Adds the audio's own guidance to the host's two passes.

    With p, o, n the predictions with audio, without audio, and with negative text and no audio, s the text guidance
    and a the audio guidance, the wanted result is `n + s (o - n) + a (p - o)`, and the host computes `n + s (x - n)` of
    what the positive pass returns as x. So x is `o + a / s (p - o)`; with s = 0 the audio's part is added in the
    negative pass. Blends are in float32.

    Source: upstream's `log_video`, the branch for different scales.
    """

    def __init__(self, text_scale: float, audio_scale: float, tea_cache: host.TeaCache | None) -> None:
        self.text_scale = text_scale
        self.audio_scale = audio_scale
        self.tea_cache = tea_cache
        self._audio_part: Tensor | None = None

    def __call__(self, prediction: Tensor, without_audio: Callable[[host.TeaCache | None], Tensor]) -> Tensor:
        """The positive pass: blend a prediction with that of one more pass without audio."""
        silent = without_audio(self.tea_cache).float()
        difference = prediction.float() - silent
        if self.text_scale == 0:
            self._audio_part = self.audio_scale * difference
            return prediction
        return (silent + self.audio_scale / self.text_scale * difference).to(prediction.dtype)

    def negative(self, prediction: Tensor, _: Callable[[host.TeaCache | None], Tensor]) -> Tensor:
        """The negative pass of a text guidance of zero."""
        assert self._audio_part is not None
        return (prediction.float() + self._audio_part).to(prediction.dtype)
