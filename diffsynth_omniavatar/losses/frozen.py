"""What the frozen networks of the losses on frames share: their files and number formats.

The networks are judges: their weights never change, and the gradient goes through them into the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..system.tensor_files import DamagedFileError, read_pickle

WRAPPERS = ("state_dict", "model", "module")
"""Keys under which training scripts put the weights of a network."""
FAULTS_SHOWN = 8

Network = TypeVar("Network", bound=nn.Module)


def read_weights(path: str | Path, source: str) -> dict[str, Tensor]:
    """The tensors of a pickled file, out of its `state_dict`, `model` or `module` if it has one; nothing is executed.

    Args:
        path: the file.
        source: where the file is to be had, for the errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a file of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file; {source}")
    try:
        content = read_pickle(path)
    except DamagedFileError as error:
        raise ValueError(f"{error}; {source}") from error
    while isinstance(content, dict) and (inner := [content[key] for key in WRAPPERS if _is_dict(content, key)]):
        content = inner[0]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds {type(content).__name__}, wanted names and tensors; {source}")
    return content


def _is_dict(content: Mapping[str, object], key: str) -> bool:
    return isinstance(content.get(key), dict)


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], path: str | Path, source: str) -> None:
    """Put `weights` into `network`, which may be on the meta device.

    Raises:
        ValueError: a name is missing or unknown, or a shape is another; the message lists the faults.
    """
    wanted = network.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in weights]
    faults += [f"{name} is not known" for name in weights if name not in wanted]
    faults += [
        f"{name} is {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if faults:
        rest = len(faults) - FAULTS_SHOWN
        more = [f"and {rest} more"] if rest > 0 else []
        raise ValueError(f"{path} is another network: {'; '.join(faults[:FAULTS_SHOWN] + more)}. {source}")
    network.load_state_dict(weights, strict=True, assign=True)


def freeze(network: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Move `network` to `device` and `dtype`, for judging only: no gradient into its weights, no dropout."""
    network.to(device=device, dtype=dtype).requires_grad_(False).eval()


def load_frozen(
    make: Callable[[], Network], path: str | Path, source: str, device: torch.device | str, dtype: torch.dtype
) -> Network:
    """The network that `make` makes, with the weights of a file, frozen.

    Raises:
        FileNotFoundError: `path` is not there.
        ValueError: it is no file of tensors, or another network's; the message lists what differs.
    """
    with torch.device("meta"):
        network = make()
    load_strictly(network, read_weights(path, source), path, source)
    freeze(network, device, dtype)
    return network


def apply_blocks(blocks: Iterable[nn.Module], x: Tensor, checkpointing: bool) -> Tensor:
    """`x` through all `blocks`; with `checkpointing` they are computed again in the backward pass, to save memory."""
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if checkpointing and x.requires_grad else block(x)
    return x


def judge(network: nn.Module, x: Tensor) -> Tensor:
    """float32 output of `network` for `x`, computed in the format of its weights, whatever autocast says.

    In float16 the gradient is divided by its largest magnitude on its way into the network and multiplied by it on its
    way out: the gradient of a weighted mean over pixels and windows is too small for float16 and would become zero.
    """
    dtype = next(network.parameters()).dtype
    with torch.autocast(x.device.type, enabled=False):
        if dtype != torch.float16 or not x.requires_grad:
            return network(x.to(dtype)).float()
        magnitude: dict[str, Tensor] = {}

        def enlarge(gradient: Tensor) -> Tensor:
            magnitude["of"] = gradient.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
            return gradient / magnitude["of"]

        entered = x.float().view_as(x)  # a tensor of its own: a hook on x would see gradients from elsewhere too
        entered.register_hook(lambda gradient: gradient * magnitude["of"])
        left = network(entered.to(dtype)).float()
        left.register_hook(enlarge)
        return left
