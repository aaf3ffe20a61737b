"""3D convolutions of small networks on a CPU.

PyTorch takes oneDNN's kernels only where batch, channels, frames and rows multiply to more than 20,480, and kernels of
its own elsewhere, which take 2 to 9 times as long for a clip of the small VAE.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def use_onednn(network: nn.Module) -> None:
    """Let a network's 3D convolutions of float32 on a CPU always take oneDNN's kernels, where PyTorch has them."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            layer: Any = module
            layer._conv_forward = MethodType(_conv_forward, module)


def _conv_forward(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In the place of PyTorch's method of this name."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return nn.Conv3d._conv_forward(conv, x, weight, bias)
    result: Tensor = torch.mkldnn_convolution(x, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups)
    return result
