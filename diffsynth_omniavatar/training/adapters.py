"""Several LoRAs on one frozen network, of which one acts, or none: switched, never copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..model.checkpoint import LORA_KEY, normal_key


class Adapters:
    """The LoRAs of a denoiser that `module.add_lora` has injected under several names.

    Args:
        dit: the denoiser.
    """

    def __init__(self, dit: nn.Module) -> None:
        self.dit = dit
        self.layers: list[Any] = [layer for layer in dit.modules() if isinstance(layer, BaseTunerLayer)]
        self.active: str | None = None
        self.use(None)

    def use(self, name: str | None) -> None:
        """Let the LoRA of this name act, or with None the frozen network alone.

        The weights' requires_grad stays: the optimizer and DDP count on it. So not by peft's own setters.
        """
        for layer in self.layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        self.active = name

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Within it another LoRA acts."""
        before = self.active
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    def weights(self, name: str) -> dict[str, nn.Parameter]:
        """A LoRA's weights by the keys of checkpoints: `blocks.0.self_attn.q.lora_A.weight`, ..."""
        ending = f".{name}.weight"
        return {
            normal_key(key): value
            for key, value in self.dit.named_parameters()
            if LORA_KEY.match(key) and key.endswith(ending)
        }
