"""Self-attention in float8: its inputs, cuDNN's kernel for Hopper, and for training a backward pass in bf16.

The kernel takes q, k and v with one factor each, and gives its result in float8 too. Float8 keeps its relative
precision over a wide range, so factors need not be tight:

- q and k come from RMS norms, so no number is larger than the root of their width times the norm's largest weight.
- k loses about its mean over the tokens first. A vector taken off all keys adds one number to all of a query's scores,
  which softmax does not see (SageAttention, https://arxiv.org/abs/2410.02367).
- v loses about its mean, too, which comes back behind the attention: the weights of a query's mean add up to one.
- The result is a mean of rows of v, so no number of it is larger than v's largest: it has the same factor.

Gradients are those of flash attention (Dao et al., https://arxiv.org/abs/2205.14135), from the result and the logarithm
of each query's sum, and from q, k and v as the kernel had them: then a query's probabilities add up to one, which those
of the exact q and k, some large and each a little off, would not. The products are the tokens' own format; cuDNN's
backward pass in float8 saves a quarter of the time, and adds 10 to 17 % of deviation.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
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

    def widened(self) -> tuple[Tensor, ...]:
        """q, k and v in the format of the tokens; v without its mean."""
        values = zip((self.q, self.k, self.v), self.scales, strict=True)
        return tuple((x.float() * scale).to(self.v_mean.dtype) for x, scale in values)


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
    return _attend(inputs, heads, sums=False)[0]


def _attend(inputs: AttentionInputs, heads: int, sums: bool) -> tuple[QuantizedTokens, Tensor | None]:
    """And, where wanted, log-sum-exp of each query's scores, float32 as the backward pass of the device wants them."""
    q, k, v, scales, v_mean = inputs
    if q.device.type == "cuda":
        values, logsumexp = _kernel(q.shape, heads, q.device, sums)(q, k, v, scales)
    else:
        scale = float(scales[0] * scales[1]) / math.sqrt(q.shape[-1] // heads)
        q, k, v = (_by_heads(x.float(), heads) for x in (q, k, v))
        attended, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
        values = attended.transpose(1, 2).flatten(2).to(FP8)
    return QuantizedTokens(values, scales[2], v_mean), logsumexp


def _by_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Fp8Attention:
    """A self-attention that trains: as `attention.Attention`, but forward in float8.

    Args:
        widen: `QuantizedTokens.widened`, or faster.
    """

    def __init__(self, inputs: AttentionInputs, heads: int, widen: Callable[[QuantizedTokens], Tensor]) -> None:
        self._heads, self._widen = heads, widen
        self.output, self._logsumexp = _attend(inputs, heads, sums=True)

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Gradients by q, k and v [B, S, D], which must be those of `AttentionInputs.widened`."""
        attended = self._widen(self.output._replace(offset=torch.zeros_like(self.output.offset)))
        grad, q, k, v, attended = (_by_heads(x, self._heads) for x in (grad, q, k, v, attended))
        gradients = _gradients(grad, q, k, v, attended, self._logsumexp)
        return tuple(x.transpose(1, 2).flatten(2) for x in gradients)


def _gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Tensor, logsumexp: Any) -> tuple[Tensor, ...]:
    """Those of attention by q, k, v, [B, h, S, d] each, from its result and log-sum-exp."""
    if q.device.type != "cuda":
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return backward(grad, q, k, v, attended, logsumexp, 0.0, False)
    unused = torch.zeros((), dtype=torch.int64, device=q.device)  # the random state of a dropout
    backward, length = torch.ops.aten._scaled_dot_product_cudnn_attention_backward, q.shape[2]
    return backward(grad, q, k, v, attended, logsumexp, *(unused, unused), *[None] * 3, *(length, length), 0.0, False)


def check_attention_fp8(device: torch.device | str, head_width: int = 128) -> None:
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

    def __init__(self, shape: torch.Size, heads: int, device: torch.device, sums: bool) -> None:
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
        output, logsumexp, *largest = graph.sdpa_fp8(
            *tokens, *factors, attn_scale=1 / math.sqrt(width // heads), generate_stats=sums, use_causal_mask=False
        )
        output.set_output(True).set_dim(dim).set_stride(stride).set_data_type(fp8)
        for tensor in largest:
            tensor.set_output(True).set_dim(one["dim"]).set_stride(one["stride"]).set_data_type(single)
        self._sums = [(batch, heads, length, 1)] if sums else []
        for size in self._sums:
            stride = [heads * length, length, 1, 1]
            logsumexp.set_output(True).set_dim([*size]).set_stride(stride).set_data_type(single)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        self._graph, self._places = graph, (*tokens, *factors, *largest, output, *[logsumexp] * sums)
        self._probability = torch.tensor([1 / LARGEST_PROBABILITY, LARGEST_PROBABILITY], device=device)
        self._unused = [torch.empty(1, device=device) for _ in largest]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, S, D] in float8, to be multiplied with v's factor; and log-sum-exp [B, h, S, 1]."""
        output = torch.empty(self._shape, dtype=FP8, device=self._device)
        workspace = torch.empty(self._graph.get_workspace_size(), dtype=torch.uint8, device=self._device)
        sums = [torch.empty(size, device=self._device) for size in self._sums]
        values = (q, k, v, *scales, *self._probability, 1 / scales[2], *self._unused, output, *sums)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._cudnn.set_stream(handle=self._handle, stream=stream)
        self._graph.execute(dict(zip(self._places, values, strict=True)), workspace, handle=self._handle)
        return output, sums[0] if sums else None


@functools.lru_cache(maxsize=16)
def _kernel(shape: torch.Size, heads: int, device: torch.device, sums: bool) -> _Kernel:
    return _Kernel(shape, heads, device, sums)
