"""Seeded tensors from which the golden files were computed; ``tests/goldens/README.md`` states the recipe.

Every tensor has a generator of its own, keyed by its name, so that the order of creation does not matter.
"""

import math
import zlib
from collections.abc import Sequence

import torch


def keyed_randn(key: str, shape: Sequence[int], seed: int) -> torch.Tensor:
    """Standard normal float32 tensor of `shape`, a function of (`key`, `seed`) alone."""
    generator = torch.Generator().manual_seed((zlib.crc32(key.encode()) + seed) & 0x7FFFFFFF)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def weight(name: str, shape: Sequence[int], seed: int) -> torch.Tensor:
    """Weight for the state-dict key `name`: fan-in scaled if a matrix, about 1 if a norm's, small otherwise."""
    normal = keyed_randn(name, shape, seed)
    if len(shape) > 1:
        fan_in = normal.numel() / shape[0]
        return normal * (1.0 / math.sqrt(fan_in))
    small = normal * 0.02
    return small + 1.0 if name.endswith("weight") else small


def inp(golden: str, name: str, shape: Sequence[int], seed: int) -> torch.Tensor:
    """Seeded input `name` of the golden file `golden`."""
    return keyed_randn(f"input/{golden}/{name}", shape, seed)
