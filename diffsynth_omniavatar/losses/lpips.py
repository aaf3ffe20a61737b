"""How alike do two pictures look? The LPIPS distance with VGG16 on the lower halves of the frames.

Source: the package lpips (https://github.com/richzhang/PerceptualSimilarity, https://arxiv.org/abs/1801.03924). It is
used here, in float32, as LatentSync's train_unet.py does. VGG's weights are torchvision's, the rest is in the package.

Memory for the gradient: 2.4 KB a pixel of the lower half, 0.3 GB for a frame of 512x512; hence few frames at a time.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from .frozen import freeze, load_strictly, read_weights
from .windows import check_same, lower_half

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
SOURCE = f"get {VGG_URL} and give its path"


def load_lpips(vgg_path: str | Path | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """The lpips package's network with VGG16, frozen, float32.

    Args:
        vgg_path: torchvision's vgg16-397923af.pth; None takes it from torchvision's cache or downloads it to there.
        device: where it works.

    Raises:
        ImportError: lpips or torchvision is not installed.
        FileNotFoundError: the file is not there, or cannot be downloaded.
        ValueError: it is no file of tensors, or another network's.
    """
    package = _package()
    if vgg_path is None:
        try:
            network = _quietly(package.LPIPS, net="vgg", verbose=False)
        except URLError as error:
            raise FileNotFoundError(f"VGG16's weights cannot be downloaded ({error.reason}); {SOURCE}") from error
    else:
        weights = read_weights(vgg_path, SOURCE)
        network = _quietly(package.LPIPS, net="vgg", pnet_rand=True, verbose=False)
        load_vgg(network, weights, vgg_path)
    freeze(network, device, torch.float32)
    return network


def load_vgg(network: Any, weights: dict[str, Tensor], path: str | Path) -> None:
    """Put torchvision's VGG16 into an LPIPS network. The classifier is not a part of it; all else must fit.

    Raises:
        ValueError: a layer is missing, unknown or of another shape.
    """
    layers = {name.split(".", 1)[1]: name for name in network.net.state_dict()}  # slice2.7.weight is features.7.weight
    features = {
        layers.get(name.removeprefix("features."), name): tensor
        for name, tensor in weights.items()
        if not name.startswith("classifier.")
    }
    load_strictly(network.net, features, path, SOURCE)


def _package() -> Any:
    try:
        import lpips
    except ImportError as error:
        raise ImportError("LPIPS needs lpips and torchvision: pip install lpips torchvision") from error
    return lpips


def _quietly(build: Any, **options: Any) -> Any:
    """`build(**options)` without torchvision's warning about how lpips calls it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        return build(**options)


class LpipsLoss:
    """Mean over frames of the LPIPS distance of the lower halves, at the frames' own size.

    A plain object: set as an attribute of a module it does not become a part of that module.

    Args:
        network: frozen (`load_lpips`).
        window: how many frames are looked at together; it has no influence on the result.
    """

    def __init__(self, network: nn.Module, window: int = 1) -> None:
        if window < 1:
            raise ValueError(f"window: got {window} frames, wanted at least 1")
        self.network = network
        self.window = window

    def windows(self, frames: int) -> tuple[range, ...]:
        """Ranges of `window` frames, the last one maybe shorter: every frame is in one.

        Raises:
            ValueError: no frame.
        """
        if frames < 1:
            raise ValueError(f"{frames} frames; wanted at least 1")
        return tuple(range(first, min(first + self.window, frames)) for first in range(0, frames, self.window))

    def window_loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The mean distance of all frames, a scalar float32, with a gradient into `predicted` alone.

        Args:
            predicted, target [B, 3, n, H, W]: RGB in [-1, 1], H of 32 or more, W of 16 or more.

        Raises:
            ValueError: other shapes, or two that differ.
        """
        check_same(predicted, target)
        ours, theirs = (lower_half(frames).transpose(1, 2).flatten(0, 1).float() for frames in (predicted, target))
        with torch.autocast(ours.device.type, enabled=False):
            return self.network(ours, theirs.detach()).mean()

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The mean over all frames, a scalar float32. Arguments and errors as for `window_loss`."""
        check_same(predicted, target)
        count = predicted.shape[2]
        shares = [
            self.window_loss(predicted[:, :, part.start : part.stop], target[:, :, part.start : part.stop]) * len(part)
            for part in self.windows(count)
        ]
        return torch.stack(shares).sum() / count
