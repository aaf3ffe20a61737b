"""Self-attention of a pass without gradients in float8: its inputs, and cuDNN's kernel for Hopper.

The kernel takes q, k and v with one factor each, and gives its result in float8 too. Float8 keeps its relative
precision over a wide range, so factors need not be tight:

- q and k come from RMS norms, so no number is larger than the root of their width times the norm's largest weight.
- k loses about its mean over the tokens first. A vector taken off all keys adds one number to all of a query's scores,
  which softmax does not see (SageAttention, https://arxiv.org/abs/2410.02367).
- v loses about its mean, too, which comes back behind the attention: the weights of a query's mean add up to one.
- The result is a mean of rows of v, so no number of it is larger than v's largest: it has the same factor.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .quantized import LARGEST, SMALLEST_SCALE, QuantizedTokens

FP8 = torch.float8_e4m3fn
HOPPER = (9, 0)
"""The first CUDA compute capability that the kernel runs on."""
LARGEST_PROBABILITY = 256.0
"""What the probability 1 is in the kernel."""
SAMPLED = 16
"""One of so many tokens counts for the means that are taken off."""


class AttentionInputs(NamedTuple):
    """Of a self-attention in float8."""

    q: Tensor
    """[B, S, D]."""
    k: Tensor
    """[B, S, D]."""
    v: Tensor
    """[B, S, D]."""
    scales: Tensor
    """[3] float32: what q, k and v are to be multiplied with."""
    v_mean: Tensor
    """[B, 1, D] in the format of the tokens: what v lacks."""


def attention_inputs(q: Tensor, k: Tensor, v: Tensor, q_limit: Tensor, k_limit: Tensor) -> AttentionInputs:
    """Args: q, k, v: [B, S, D], any format; q_limit, k_limit: what no number of q, of k exceeds."""
    k_mean, v_mean = (x[:, ::SAMPLED].float().mean(1, keepdim=True).to(x.dtype) for x in (k, v))
    v = v.float() - v_mean
    limits = torch.stack([q_limit, k_limit + k_mean.float().abs().amax(), v.abs().amax()])
    scales = (limits / LARGEST[FP8]).clamp(min=SMALLEST_SCALE)
    values = (q.float(), k.float() - k_mean, v)
    largest = LARGEST[FP8]
    q, k, v = ((x / scale).clamp(-largest, largest).to(FP8) for x, scale in zip(values, scales, strict=True))
    return AttentionInputs(q, k, v, scales, v_mean)


def attend(inputs: AttentionInputs, heads: int) -> QuantizedTokens:
    """Self-attention, [B, S, D]; without a CUDA device as the kernel does it, up to the format of the probabilities."""
    q, k, v, scales, v_mean = inputs
    if q.device.type == "cuda":
        values = _kernel(q.shape, heads, q.device)(q, k, v, scales)
    else:
        q, k, v = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scale = float(scales[0] * scales[1]) / math.sqrt(q.shape[-1])
        values = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2).to(FP8)
    return QuantizedTokens(values, scales[2], v_mean)


def check_attention_fp8(device: torch.device | str, head_width: int) -> None:
    """Raises ValueError: the device or the model cannot do it, or the package is missing."""
    device = torch.device(device)
    if head_width % 16 or head_width > 128:
        raise ValueError(f"quantize_attention: the heads are {head_width} wide; wanted a multiple of 16 up to 128.")
    if device.type != "cuda":
        return
    if torch.cuda.get_device_capability(device) < HOPPER:
        raise ValueError(
            f"quantize_attention: {torch.cuda.get_device_name(device)} is older than Hopper; leave it out."
        )
    if importlib.util.find_spec("cudnn") is None:
        raise ValueError("quantize_attention needs a package: pip install nvidia-cudnn-frontend")


class _Kernel:
    """cuDNN's plan for attention of one size.

    Its shapes are [B, h, S, d], whatever their order in memory.
    """

    def __init__(self, shape: torch.Size, heads: int, device: torch.device) -> None:
        import cudnn  # of an optional package

        self._cudnn, self._device, self._shape = cudnn, device, shape
        with torch.cuda.device(device):
            self._handle = self._cudnn.create_handle()
        fp8, single = self._cudnn.data_type.FP8_E4M3, self._cudnn.data_type.FLOAT
        graph = self._cudnn.pygraph(
            io_data_type=fp8, intermediate_data_type=single, compute_data_type=single, handle=self._handle
        )
        batch, length, width = shape
        dim, stride = [batch, heads, length, width // heads], [width * length, width // heads, width, 1]
        one = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1], "data_type": single}
        tokens = [graph.tensor(name=name, dim=dim, stride=stride, data_type=fp8) for name in "qkv"]
        names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
        factors = [graph.tensor(name=name, **one) for name in names]
        output, _, *largest = graph.sdpa_fp8(
            *tokens, *factors, attn_scale=1 / math.sqrt(width // heads), generate_stats=False, use_causal_mask=False
        )
        output.set_output(True).set_dim(dim).set_stride(stride).set_data_type(fp8)
        for tensor in largest:
            tensor.set_output(True).set_dim(one["dim"]).set_stride(one["stride"]).set_data_type(single)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        self._graph, self._places = graph, (*tokens, *factors, *largest, output)
        self._probability = torch.tensor([1 / LARGEST_PROBABILITY, LARGEST_PROBABILITY], device=device)
        self._unused = [torch.empty(1, device=device) for _ in largest]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> Tensor:
        """[B, S, D] in float8, to be multiplied with v's factor."""
        output = torch.empty(self._shape, dtype=FP8, device=self._device)
        workspace = torch.empty(self._graph.get_workspace_size(), dtype=torch.uint8, device=self._device)
        values = (q, k, v, *scales, *self._probability, 1 / scales[2], *self._unused, output)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._cudnn.set_stream(handle=self._handle, stream=stream)
        self._graph.execute(dict(zip(self._places, values, strict=True)), workspace, handle=self._handle)
        return output


@functools.lru_cache(maxsize=16)
def _kernel(shape: torch.Size, heads: int, device: torch.device) -> _Kernel:
    return _Kernel(shape, heads, device)
