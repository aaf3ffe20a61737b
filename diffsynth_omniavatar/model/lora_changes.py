"""What the parts of a LoRA file change of one parameter, in float32: LoRA, LoHa, LoKr, DoRA, differences.

W is the weight [out, in] as it stands, s the strength, r the rank:

    LoRA    W + s alpha / r  B A                       Hu et al. 2021
    LoHa    W + s alpha / r  (B1 A1) * (B2 A2)         Hyeon-Woo et al. 2021
    LoKr    W + s alpha / r  kron(W1, W2), of which each may be a product B A; scale 1 if none is
    DoRA    W + s (m V / |V| - W), V = W + D           Liu et al. 2024; D of one of the above, norms of rows or columns
    diff    W + s D

Where there is no alpha, the scale is 1. Shapes alone can be checked with tensors on "meta".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

TUCKER = ("mid", "lokr_t2", "hada_t1", "hada_t2")
"""Parts of decompositions of convolutions, of which Wan has none but its patch embedding."""
WEIGHT_PARTS = ("down", "up", "dora", "diff", *TUCKER)
BIAS_PARTS = ("diff_b", "up_bias")


@dataclass(frozen=True)
class Change:
    """What a file's parts change of one parameter.

    Attributes:
        parts: of the module, by the names of `lora_keys.PARTS`.
        of_bias: whether the parameter is the module's bias.
    """

    parts: Mapping[str, Tensor]
    of_bias: bool = False

    @property
    def form(self) -> str:
        """LoRA, LoHa, LoKr or differences; with DoRA before it."""
        name = _form(self.parts)
        return "differences" if name is None or self.of_bias else ("DoRA " if "dora" in self.parts else "") + name

    @property
    def rank(self) -> int | None:
        """Of the low-rank part; None if there is none."""
        return None if _form(self.parts) is None else _dense(self.of_shapes().parts)[1]

    def of_shapes(self) -> Change:
        """The same on the device "meta", where nothing is computed."""
        return Change({part: tensor.to("meta") for part, tensor in self.parts.items()}, self.of_bias)

    def applied(self, total: Tensor, strength: float) -> Tensor:
        """The parameter with the change; `total`, float32, may be written to.

        Raises:
            ValueError: the parts do not fit each other or the parameter.
        """
        parts = {
            name: part if name == "alpha" else part.to(total.device, torch.float32) for name, part in self.parts.items()
        }
        if self.of_bias:
            scale = _scale(parts, _dense(parts)[1]) if "up_bias" in parts else 1.0
            for name in BIAS_PARTS:
                if name in parts:
                    total = _added(total, parts[name], strength * (scale if name == "up_bias" else 1.0))
            return total
        if _form(parts) is not None or "dora" in parts:
            dense, rank = _dense(parts)
            scale = _scale(parts, rank)
            if "dora" in parts:
                turned = _with_magnitude(_added(total.clone(), dense, scale), parts["dora"])
                total = total.lerp_(turned, strength) if strength != 1.0 else turned
            else:
                total = _added(total, dense, strength * scale)
        for name in ("diff", "diff_m"):
            if name in parts:
                total = _added(total, parts[name], strength)
        return total


def _form(parts: Mapping[str, Tensor]) -> str | None:
    """Of a module's low-rank part."""
    forms = {"down": "LoRA", "up": "LoRA", "mid": "LoRA", "hada": "LoHa", "lokr": "LoKr"}
    found = {forms[name.partition("_")[0]] for name in parts if name.partition("_")[0] in forms and name != "up_bias"}
    if len(found) > 1:
        raise ValueError(f"has parts of {' and '.join(sorted(found))} at once")
    return found.pop() if found else None


def _dense(parts: Mapping[str, Tensor]) -> tuple[Tensor, int | None]:
    """The low-rank part as a matrix without its scale, and the rank that divides alpha; None if nothing is factored."""
    tucker = [name for name in TUCKER if name in parts]
    if tucker:
        raise ValueError(f"has the Tucker form ({', '.join(tucker)}), which is not supported")
    form = _form(parts)
    if form == "LoRA":
        return _product(parts, "up", "down")
    if form == "LoHa":
        (one, rank), (two, _) = _product(parts, "hada_w1_a", "hada_w1_b"), _product(parts, "hada_w2_a", "hada_w2_b")
        if one.shape != two.shape:
            raise ValueError(f"its products of {[*one.shape]} and {[*two.shape]} differ")
        return one * two, rank
    if form == "LoKr":
        (one, rank_one), (two, rank_two) = (_factor(parts, name) for name in ("lokr_w1", "lokr_w2"))
        return torch.kron(one, two), rank_two or rank_one
    raise ValueError(f"has {', '.join(parts)} without a low-rank part")


def _product(parts: Mapping[str, Tensor], left: str, right: str) -> tuple[Tensor, int]:
    if left not in parts or right not in parts:
        raise ValueError(f"has only one of its two low-rank parts ({left if left in parts else right})")
    up, down = parts[left], parts[right]
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or not len(down):
        raise ValueError(f"has low-rank parts of {[*up.shape]} and {[*down.shape]}, which do not fit")
    return up @ down, len(down)


def _factor(parts: Mapping[str, Tensor], name: str) -> tuple[Tensor, int | None]:
    """One factor of a Kronecker product, and its rank if it is a product itself."""
    if name not in parts:
        return _product(parts, f"{name}_a", f"{name}_b")
    if parts[name].ndim != 2:
        raise ValueError(f"has {name} of {[*parts[name].shape]}, wanted a matrix")
    return parts[name], None


def _scale(parts: Mapping[str, Tensor], rank: int | None) -> float:
    if "alpha" not in parts or rank is None:
        return 1.0
    if parts["alpha"].numel() != 1:
        raise ValueError(f"has an alpha of {[*parts['alpha'].shape]}, wanted one number")
    alpha = float(rank) if parts["alpha"].is_meta else float(parts["alpha"])
    if not math.isfinite(alpha):
        raise ValueError(f"has alpha {alpha}")
    return alpha / rank


def _added(total: Tensor, change: Tensor, scale: float) -> Tensor:
    if change.shape != total.shape:
        raise ValueError(f"is changed by {[*change.shape]}, the model's is {[*total.shape]}")
    return total.add_(change, alpha=scale)


def _with_magnitude(weight: Tensor, magnitude: Tensor) -> Tensor:
    """The weight with these norms: [out, 1] or [out] of its rows, [1, in] of its columns."""
    magnitude = magnitude.unsqueeze(1) if magnitude.ndim == 1 else magnitude
    rows, columns = weight.shape
    if [*magnitude.shape] not in ([rows, 1], [1, columns]):
        raise ValueError(f"has magnitudes of {[*magnitude.shape]}, wanted [{rows}, 1] or [1, {columns}]")
    norms = weight.norm(dim=1 if magnitude.shape[1] == 1 else 0, keepdim=True)
    return weight * (magnitude / norms.clamp_min(torch.finfo(torch.float32).tiny))
