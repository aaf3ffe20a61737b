"""FID and FVD: how far generated pictures and videos as a whole are from real ones.

Networks, features and distances are those of torch-fidelity and cd-fvd. Here frames are given to them as they come, so
that neither videos nor pictures are kept.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..losses.frozen import read_weights
from ..losses.trepa import SOURCE as VIDEOMAE_SOURCE
from .identity import INSTALL

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
I3D_URL = "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt"
INCEPTION_FEATURES = 2048
FVD_FRAMES = 16
"""Frames of a video that FVD looks at together."""

Features = tuple[np.ndarray, np.ndarray]
"""Of a clip's frames, or pieces of it, and of its reference's: float32 [n, width] each."""


class Moments:
    """Mean and covariance of features, without keeping them.

    Args:
        width: numbers of a feature.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = np.zeros(width)
        self._products = np.zeros((width, width))

    def add(self, features: np.ndarray) -> None:
        """Take features, float [n, width]."""
        values = features.astype(np.float64)
        self.count += len(values)
        self._sum += values.sum(axis=0)
        self._products += values.T @ values

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """Float64 [width] and [width, width], the covariance with n - 1; 2 features or more are needed."""
        mean = self._sum / self.count
        return mean, (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)


class Fid:
    """Frechet Inception Distance by torch-fidelity.

        fid.add(generated, reference)  # frames of a clip, as often as wanted
        fid.take(fid.end_clip())
        fid.compute()

    Args:
        network: of torch-fidelity, uint8 [n, 3, H, W] -> features [n, 2048].
        device: where it works.
    """

    def __init__(self, network: Any, device: str = "cpu") -> None:
        self._network, self._device = network, device
        self._all = [Moments(INCEPTION_FEATURES) for _ in range(2)]
        self._clip: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    @torch.no_grad()
    def add(self, generated: Tensor, reference: Tensor) -> None:
        """Look at frames of a clip, uint8 [n, H, W, 3]."""
        for frames, found in zip((generated, reference), self._clip, strict=True):
            (features,) = self._network(frames.permute(0, 3, 1, 2).contiguous().to(self._device))
            found.append(features.float().cpu().numpy())

    def end_clip(self) -> Features:
        """The features of the clip's frames, 8 KB each; the next ones are another clip's."""
        ours, theirs = (_joined(found, INCEPTION_FEATURES) for found in self._clip)
        self._clip = ([], [])
        return ours, theirs

    def take(self, features: Features) -> None:
        """Count a clip."""
        for moments, found in zip(self._all, features, strict=True):
            moments.add(found)

    def compute(self) -> float | None:
        """The distance of all clips; None of fewer than 2 frames."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

        if self._all[0].count < 2:
            return None
        ours, theirs = (dict(zip(("mu", "sigma"), all_.mean_and_covariance(), strict=True)) for all_ in self._all)
        return float(fid_statistics_to_metric(ours, theirs, verbose=False)[KEY_METRIC_FID])


def _joined(parts: list[np.ndarray], width: int) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


def load_inception(weights: str | Path, device: str = "cpu") -> Any:
    """The network of FID.

    Raises:
        ImportError: torch-fidelity is not installed.
        FileNotFoundError, ValueError: the file is not there, or is another one.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(f"FID needs torch-fidelity: {INSTALL}") from error
    read_weights(weights, f"get {INCEPTION_URL}")
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", [str(INCEPTION_FEATURES)], feature_extractor_weights_path=str(weights)
        )
    except RuntimeError as error:
        raise ValueError(f"{weights} is not Inception's: {error}; get {INCEPTION_URL}") from error
    return network.requires_grad_(False).eval().to(device)


class Fvd:
    """Frechet Video Distance by cd-fvd, of pieces of 16 frames; the methods are those of `Fid`.

    Frames behind the last whole piece of a clip do not count.

    Args:
        evaluator: cd-fvd's, from `load_fvd`.
    """

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator
        evaluator.empty_fake_stats()
        evaluator.empty_real_stats()
        self._forget()

    @torch.no_grad()
    def add(self, generated: Tensor, reference: Tensor) -> None:
        """Look at frames of a clip, uint8 [n, H, W, 3]."""
        for side, frames in enumerate((generated, reference)):
            waiting = torch.cat([self._waiting[side], frames]) if side in self._waiting else frames
            while len(waiting) >= FVD_FRAMES:
                self._features[side].append(self._feature(waiting[:FVD_FRAMES].numpy()))
                waiting = waiting[FVD_FRAMES:]
            self._waiting[side] = waiting.clone()

    def end_clip(self) -> Features:
        """The features of the clip's pieces; the next ones are another clip's."""
        ours, theirs = (_joined(found, 0) for found in self._features)
        self._forget()
        return ours, theirs

    def take(self, features: Features) -> None:
        """Count a clip."""
        for stats, found in zip((self._evaluator.fake_stats, self._evaluator.real_stats), features, strict=True):
            for feature in found:
                stats.append(feature[None])

    def compute(self) -> float | None:
        """The distance of all clips; None of fewer than 2 pieces."""
        if self._evaluator.fake_stats.num_items < 2:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few pieces the covariance is singular
            return float(self._evaluator.compute_fvd_from_stats())

    def _forget(self) -> None:
        self._features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._waiting: dict[int, Tensor] = {}

    def _feature(self, piece: np.ndarray) -> np.ndarray:
        """Float32 [1, width] of a piece uint8 [16, H, W, 3]."""
        made = type(self._evaluator.fake_stats)(capture_all=True)
        evaluator = self._evaluator
        evaluator.feature_fn(
            made, evaluator.model, piece[None], device=evaluator.device, model_dtype=evaluator.model_dtype
        )
        return made.get_all()


def load_fvd(weights: str | Path, device: str = "cpu", model: Literal["i3d", "videomae"] = "i3d") -> Any:
    """What `Fvd` needs.

    Raises:
        ImportError: cd-fvd is not installed.
        FileNotFoundError, ValueError: the file is not there, or is another one.
    """
    try:
        from cdfvd import fvd
    except ImportError as error:
        raise ImportError(f"FVD needs cd-fvd: {INSTALL}") from error
    source = f"get {I3D_URL}" if model == "i3d" else VIDEOMAE_SOURCE
    read_weights(weights, source)  # cd-fvd would download a file that is not there
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return fvd.cdfvd(model, ckpt_path=str(weights), n_real="full", n_fake="full", device=device)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{weights} holds another network than FVD's: {error}; {source}") from error
