"""FID and FVD: how far generated pictures and videos as a whole are from real ones, by their packages' own calls."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .identity import INSTALL

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
I3D_URL = "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt"
FVD_FRAMES = 16
"""Frames of a video that FVD looks at together."""


def fid(generated: Path, reference: Path, *, weights: str | Path, device: str = "cpu") -> float:
    """Frechet Inception Distance of the pictures in two folders, by torch-fidelity.

    Args:
        generated, reference: folders of PNG files of equal size.
        weights: Inception's.
        device: "cuda" or "cpu".

    Raises:
        ImportError: torch-fidelity is not installed.
    """
    try:
        import torch_fidelity
    except ImportError as error:
        raise ImportError(f"FID needs torch-fidelity: {INSTALL}") from error
    figures = torch_fidelity.calculate_metrics(
        input1=str(generated),
        input2=str(reference),
        cuda=device.startswith("cuda"),
        fid=True,
        verbose=False,
        cache=False,
        feature_extractor_weights_path=str(weights),
    )
    return float(figures["frechet_inception_distance"])


class Fvd:
    """Frechet Video Distance by cd-fvd with I3D, fed clip by clip.

    Args:
        weights: I3D's.
        device: where it works.

    Raises:
        ImportError: cd-fvd is not installed.
    """

    def __init__(self, *, weights: str | Path, device: str = "cpu") -> None:
        try:
            from cdfvd import fvd
        except ImportError as error:
            raise ImportError(f"FVD needs cd-fvd: {INSTALL}") from error
        self._evaluator: Any = fvd.cdfvd("i3d", ckpt_path=str(weights), n_real="full", n_fake="full", device=device)

    @torch.no_grad()
    def add(self, generated: np.ndarray, reference: np.ndarray) -> None:
        """Take the pieces of 16 frames of a clip; frames behind the last whole piece are left out.

        Args:
            generated, reference: uint8 [F, H, W, 3].
        """
        for video, take in ((generated, self._evaluator.add_fake_stats), (reference, self._evaluator.add_real_stats)):
            for piece in pieces(video):
                take(piece[None])

    def compute(self) -> float:
        """The distance of all that was taken."""
        return float(self._evaluator.compute_fvd_from_stats())


def pieces(video: np.ndarray) -> Iterable[np.ndarray]:
    """The pieces [16, H, W, 3] of a video [F, H, W, 3], one after the other."""
    for start in range(0, len(video) - FVD_FRAMES + 1, FVD_FRAMES):
        yield video[start : start + FVD_FRAMES]
