"""Linear layers in 8 bits: their weights, and products with them.

A row of a weight has a factor of its own (its largest number becomes the largest of the format), and in products in
8 bits each token too, found anew in each call. So y = (x8 W8') s_x s_w + b. In float8_e4m3fn numbers keep their
relative precision, 2^-4, over a range of 2^15; int8 has equal steps.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Method = Literal["fp8", "int8", "fp8_weights"]
METHODS: tuple[Method, ...] = get_args(Method)
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
SMALLEST_SCALE = 1e-12
"""Of a row of zeros."""
FP8_PRODUCTS = (8, 9)
"""The first CUDA compute capability (Ada) whose tensor cores multiply float8."""


class QuantizedWeight(NamedTuple):
    """Of a linear layer, in 8 bits."""

    values: Tensor
    """[out, in], float8_e4m3fn or int8."""
    scale: Tensor
    """[out, 1] float32."""
    products: bool
    """Whether products are computed in 8 bits, too; else the weight is widened to the tokens' format first."""

    def widened(self, dtype: torch.dtype) -> Tensor:
        """[out, in] in another format."""
        return (self.values.float() * self.scale).to(dtype)

    @property
    def multiplies_fp8(self) -> bool:
        """Whether products are computed in float8."""
        return self.products and self.values.dtype == torch.float8_e4m3fn


class QuantizedTokens(NamedTuple):
    """Tokens in float8."""

    values: Tensor
    """[B, S, D] float8_e4m3fn."""
    scale: Tensor
    """[] float32, of all of them."""
    offset: Tensor
    """[B, 1, D], what they lack besides, in the format that counts as theirs."""

    def widened(self) -> Tensor:
        """[B, S, D] in that format."""
        return (self.values.float() * self.scale + self.offset.float()).to(self.offset.dtype)


def quantize_rows(x: Tensor, dtype: torch.dtype, limit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Values [..., n] in 8 bits and the factors [..., 1] float32 that they are to be multiplied with.

    Args:
        limit: [..., 1], what no number of a row exceeds; None for its largest.
    """
    largest = LARGEST[dtype]
    x = x.float()
    if limit is None:
        limit = x.abs().amax(-1, keepdim=True)
    scale = (limit.float() / largest).clamp(min=SMALLEST_SCALE)
    values = (x / scale).clamp(-largest, largest)
    return (values if dtype.is_floating_point else values.round()).to(dtype), scale


def quantize_weight(weight: Tensor, method: Method) -> QuantizedWeight:
    """The weight [out, in] of a linear layer in 8 bits."""
    dtype = torch.int8 if method == "int8" else torch.float8_e4m3fn
    return QuantizedWeight(*quantize_rows(weight, dtype), products=method != "fp8_weights")


def linear(
    x: Tensor | QuantizedTokens, weight: Tensor | QuantizedWeight, bias: Tensor | None, limit: Tensor | None = None
) -> Tensor:
    """[..., in] -> [..., out], in the format of x; `limit` as in `quantize_rows`."""
    if isinstance(x, QuantizedTokens):
        if isinstance(weight, QuantizedWeight) and weight.multiplies_fp8:
            return _linear_of_quantized(x, weight, bias)
        x = x.widened()
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    if not weight.products:
        return F.linear(x, weight.widened(x.dtype), bias)
    limit = limit if limit is None else limit.flatten(0, -2)
    values, scale = quantize_rows(x.flatten(0, -2), weight.values.dtype, limit)
    return _product(values, scale, weight.values.T, weight.scale.T, bias, x.dtype).unflatten(0, x.shape[:-1])


def _linear_of_quantized(x: QuantizedTokens, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    values, dtype = x.values.flatten(0, 1), x.offset.dtype
    product = _product(
        values, x.scale.expand(len(values), 1).contiguous(), weight.values.T, weight.scale.T, None, dtype
    )
    # A sum instead of a product: the compiler widens the weight as it reads it.
    shared = (weight.values.float() * x.offset.float()).sum(-1, keepdim=True).mT * weight.scale.T
    if bias is not None:
        shared = shared + bias
    return (product.unflatten(0, x.values.shape[:-1]).float() + shared).to(dtype)


def input_gradient(grad: Tensor, weight: Tensor | QuantizedWeight) -> Tensor:
    """Gradient of `linear` by x: [..., out] -> [..., in].

    In float8 products the weight's factors, which lie along the sum, go to the gradient before it is quantised.
    """
    if isinstance(weight, Tensor):
        return grad @ weight
    if not weight.multiplies_fp8:
        return grad @ weight.widened(grad.dtype)
    rows = grad.flatten(0, -2).float() * weight.scale.T
    values, scale = quantize_rows(rows, torch.float8_e4m3fn)
    columns = weight.values.T.contiguous().T  # the order in memory that the product wants
    ones = torch.ones_like(columns[:1], dtype=torch.float32)
    return _product(values, scale, columns, ones, None, grad.dtype).unflatten(0, grad.shape[:-1])


def _product(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """a [n, k] times b [k, m], with factors [n, 1] and [1, m]."""
    if a.dtype == torch.int8:
        product = torch._int_mm(a, b).float() * scale_a * scale_b
        return (product if bias is None else product + bias).to(dtype)
    if bias is not None:
        bias = bias.to(torch.bfloat16)
    return torch._scaled_mm(
        a, b, scale_a=scale_a, scale_b=scale_b, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    ).to(dtype)


class QuantizedLinear(nn.Module):
    """A frozen linear layer in 8 bits; its numbers keep their formats when the model is moved to another one."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.values.shape
        self.products = weight.products
        self.values, self.scale = (nn.Parameter(part, requires_grad=False) for part in weight[:2])
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def quantized(self) -> QuantizedWeight:
        """The layer's weight."""
        return QuantizedWeight(self.values, self.scale, self.products)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.quantized, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
