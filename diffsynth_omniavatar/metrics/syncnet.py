"""Sync-C, Sync-D and the offset of lips against speech, after SyncNet's protocol.

    sync = SyncNet.load("syncnet_v2.model", "cuda")
    result = sync.measure(crops, waveform)
    result.confidence, result.distance, result.offset

Source: J. S. Chung and A. Zisserman, "Out of time: automated lip sync in the wild" (2016), and the authors' code and
weights (https://github.com/joonson/syncnet_python). The names of the weights are theirs, so that their file loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.frozen import freeze, load_strictly, read_weights
from ..media.timeline import SAMPLE_RATE, SAMPLES_PER_FRAME
from .mfcc import mfcc

SOURCE = "get syncnet_v2.model: http://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model"
PICTURE_SIZE = 224
WINDOW = 5
"""Frames that are judged together; beside them lie 20 columns of coefficients."""
COLUMNS_PER_FRAME = 4
LARGEST_SHIFT = 15
"""Frames by which sound and picture are moved against each other, both ways."""
BATCH = 20
FEATURES = 1024

# Of each convolution: channels, kernel, stride, padding, and kernel, stride and padding of the pooling behind it.
_AUDIO = (
    (64, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1), (0, 0))),
    (192, (3, 3), (1, 1), (1, 1), ((3, 3), (1, 2), (0, 0))),
    (384, (3, 3), (1, 1), (1, 1), None),
    (256, (3, 3), (1, 1), (1, 1), None),
    (256, (3, 3), (1, 1), (1, 1), ((3, 3), (2, 2), (0, 0))),
    (512, (5, 4), (1, 1), (0, 0), None),
)
_LIPS = (
    (96, (5, 7, 7), (1, 2, 2), (0, 0, 0), ((1, 3, 3), (1, 2, 2), (0, 0, 0))),
    (256, (1, 5, 5), (1, 2, 2), (0, 1, 1), ((1, 3, 3), (1, 2, 2), (0, 1, 1))),
    (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), None),
    (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), None),
    (256, (1, 3, 3), (1, 1, 1), (0, 1, 1), ((1, 3, 3), (1, 2, 2), (0, 0, 0))),
    (512, (1, 6, 6), (1, 1, 1), (0, 0, 0), None),
)


class SyncNetModel(nn.Module):
    """The two encoders, of five frames and of the sound beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = _convolutions(_AUDIO, 1, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
        self.netfcaud = _head()
        self.netcnnlip = _convolutions(_LIPS, 3, nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)
        self.netfclip = _head()

    def sound(self, coefficients: Tensor) -> Tensor:
        """Features [B, 1024] of coefficients [B, 1, 13, 20]."""
        return self.netfcaud(self.netcnnaud(coefficients).flatten(1))

    def lips(self, frames: Tensor) -> Tensor:
        """Features [B, 1024] of frames [B, 3, 5, 224, 224], BGR from 0 to 255."""
        return self.netfclip(self.netcnnlip(frames).flatten(1))


def _convolutions(layers: tuple, channels: int, conv: type, norm: type, pool: type) -> nn.Sequential:
    modules: list[nn.Module] = []
    for out, kernel, stride, padding, pooling in layers:
        modules += [conv(channels, out, kernel, stride, padding), norm(out), nn.ReLU()]
        if pooling is not None:
            modules.append(pool(*pooling))
        channels = out
    return nn.Sequential(*modules)


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, FEATURES))


@dataclass(frozen=True)
class SyncResult:
    """How well lips and speech of a clip fit."""

    confidence: float
    """Sync-C: median over the shifts of the mean distance, less the least of them. Higher is better."""
    distance: float
    """Sync-D: the least mean distance of all shifts. Lower is better."""
    offset: int
    """Frames by which the picture is later than the sound, where the two fit best."""
    distances: np.ndarray
    """Float [windows, 31]: distance of the window of five frames from frame i on to the sound beside frame
    i + s - 15, s the column."""


class SyncNet:
    """The frozen network and its protocol.

    Args:
        network: on its device, in evaluation mode.
    """

    def __init__(self, network: SyncNetModel) -> None:
        self.network = network

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> SyncNet:
        """The network with the weights of `syncnet_v2.model`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is not a file of tensors, or another network's.
        """
        weights = read_weights(path, SOURCE)
        network = SyncNetModel()
        # Files older than PyTorch 0.4.1 do not count the batches of their norms.
        counters = {name: value for name, value in network.state_dict().items() if name.endswith("batches_tracked")}
        load_strictly(network, counters | weights, path, SOURCE)
        freeze(network, device, torch.float32)
        return cls(network)

    def measure(self, crops: Tensor, waveform: np.ndarray) -> SyncResult:
        """Compare the lips of a clip with its sound, shifted by up to 15 frames.

        Args:
            crops: uint8 [F, 224, 224, 3], RGB at 25 per second, the speaker's face (`crops.sync_boxes`).
            waveform: [n] mono at 16 kHz in [-1, 1], from the first frame on.

        Raises:
            ValueError: fewer than 6 frames with sound, or crops of another shape.
        """
        return self.compare(self.lips(crops), waveform)

    @torch.no_grad()
    def lips(self, crops: Tensor) -> Tensor:
        """Features [F - 4, 1024] of the five frames from each frame on; a long clip may come in parts that share four.

        Args:
            crops: as for `measure`.
        """
        if crops.ndim != 4 or tuple(crops.shape[1:]) != (PICTURE_SIZE, PICTURE_SIZE, 3):
            raise ValueError(f"crops: got {list(crops.shape)}, wanted [F, {PICTURE_SIZE}, {PICTURE_SIZE}, 3]")
        device = next(self.network.parameters()).device
        features = []
        for start in range(0, len(crops) - WINDOW + 1, BATCH):
            frames = crops[start : start + BATCH + WINDOW - 1].to(device).flip(-1).permute(3, 0, 1, 2).float()
            windows = frames.unfold(1, WINDOW, 1).permute(1, 0, 4, 2, 3)
            features.append(self.network.lips(windows))
        return torch.cat(features) if features else torch.empty(0, FEATURES, device=device)

    @torch.no_grad()
    def compare(self, lips: Tensor, waveform: np.ndarray) -> SyncResult:
        """What `measure` gives, from the features [F - 4, 1024] of all lips."""
        count = min(len(lips) + WINDOW - 1, len(waveform) // SAMPLES_PER_FRAME) - WINDOW
        if count < 1:
            raise ValueError(
                f"{len(lips)} windows of lips and {len(waveform) / SAMPLE_RATE:.2f} s of sound; "
                f"SyncNet needs {WINDOW + 1} frames with sound"
            )
        coefficients = torch.from_numpy(mfcc(waveform).T).float()
        heard = torch.stack([_columns(coefficients, place) for place in range(count)])[:, None]
        sound = torch.cat([self.network.sound(part.to(lips.device)) for part in heard.split(BATCH)])
        padded = F.pad(sound, (0, 0, LARGEST_SHIFT, LARGEST_SHIFT))
        shifts = padded.unfold(0, 2 * LARGEST_SHIFT + 1, 1).transpose(1, 2)
        distances = F.pairwise_distance(lips[:count, None], shifts)
        means = distances.mean(dim=0)
        least = int(means.argmin())
        return SyncResult(
            confidence=float(means.median() - means[least]),
            distance=float(means[least]),
            offset=LARGEST_SHIFT - least,
            distances=distances.cpu().numpy(),
        )


def _columns(coefficients: Tensor, frame: int) -> Tensor:
    """The 20 columns beside five frames; the sound's last window may lack one, which repeats the one before."""
    start = COLUMNS_PER_FRAME * frame
    columns = coefficients[:, start : start + COLUMNS_PER_FRAME * WINDOW]
    return F.pad(columns[None], (0, COLUMNS_PER_FRAME * WINDOW - columns.shape[1]), mode="replicate")[0]
