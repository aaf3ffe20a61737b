"""What the frozen networks of the auxiliary losses share: windows of a clip, their files, their number formats.

Frames are [B, 3, F, H, W], RGB in [-1, 1]. The networks are judges: their weights never change, and the gradient goes
through them into the frames.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model", "module")
"""Keys under which training scripts put the weights of a network."""
FAULTS_SHOWN = 8


# -------------------------------------------------------------------------------------------------------------- windows


@cache
def windows(frames: int, window: int, stride: int) -> tuple[range, ...]:
    """The frames of each window: `window` frames from 0, `stride`, 2 `stride`, ..., as long as they fit.

    Frames behind the last window that fits are not used; that is logged, once for each combination of arguments.

    Raises:
        ValueError: there is no window: fewer frames than one has; or window or stride is not positive.
    """
    if window < 1 or stride < 1:
        raise ValueError(f"windows of {window} frames, {stride} apart: both must be at least 1")
    if frames < window:
        raise ValueError(
            f"{frames} frames are too few for a window of {window}; use longer clips or more decoded frames"
        )
    found = tuple(range(start, start + window) for start in range(0, frames - window + 1, stride))
    unused = frames - len(set().union(*found))
    if unused:
        logger.info(
            "%d of %d frames are in no window (%d frames, %d apart): no loss on them", unused, frames, window, stride
        )
    return found


def check_frames(frames: Tensor, count: int | None = None) -> None:
    """Raise ValueError unless `frames` is [B, 3, F, H, W], floating point, of `count` frames if given."""
    wanted = "F" if count is None else str(count)
    right = frames.ndim == 5 and frames.shape[1] == 3 and count in (None, frames.shape[2])
    if not right or not frames.is_floating_point():
        raise ValueError(f"frames: got {list(frames.shape)} {frames.dtype}, wanted floating [B, 3, {wanted}, H, W]")


def check_same(predicted: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both are frames of one shape."""
    check_frames(predicted)
    if predicted.shape != target.shape:
        raise ValueError(f"target: got {list(target.shape)}, wanted {list(predicted.shape)} like the prediction")


def resize(frames: Tensor, size: int) -> Tensor:
    """[B, 3, F, size, size] of frames [B, 3, F, H, W]: bicubic, no antialiasing, aspect not kept, as LatentSync does.

    Frames of that size come back as they are. Bicubic weights overshoot: values may leave [-1, 1].
    """
    if frames.shape[-2:] == (size, size):
        return frames
    _tell_if_squeezed(frames.shape[-2], frames.shape[-1], size)
    pictures = frames.transpose(1, 2).flatten(0, 1)
    resized = F.interpolate(pictures, size=(size, size), mode="bicubic", align_corners=False)
    return resized.unflatten(0, (frames.shape[0], frames.shape[2])).transpose(1, 2)


@cache
def _tell_if_squeezed(height: int, width: int, size: int) -> None:
    if height != width:
        logger.warning(
            "pictures of %dx%d are squeezed to %dx%d: the auxiliary networks know square crops of aligned faces",
            height,
            width,
            size,
            size,
        )


def lower_half(frames: Tensor) -> Tensor:
    """[..., ceil(H / 2), W] of frames [..., H, W]: the half with the mouth, from row H // 2 on."""
    return frames[..., frames.shape[-2] // 2 :, :]


# ---------------------------------------------------------------------------------------------------------------- files


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
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no file of tensors, and nothing of it was executed: {error}; {source}") from error
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


# ------------------------------------------------------------------------------------------------------ number formats


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
