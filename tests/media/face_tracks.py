"""Tracks of given anchors, and smooth pictures, for tests of alignment."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffsynth_omniavatar.media.faces.face import Face, Track, as_anchors

FRONTAL = torch.tensor([[120.0, 90.0], [172.0, 96.0], [142.0, 118.0]])
"""Anchors of a face in a picture of some 256 pixels."""


def face_at(anchors: Tensor, score: float = 1.0) -> Face:
    """A face with these anchors [3, 2]; all else is of no interest to alignment."""
    box = (0.0, 0.0, 1.0, 1.0)
    figures = dict.fromkeys(["openness", "width", "yaw", "pitch", "roll", "nose_offset"], 0.0)
    return Face(box=box, score=score, flag=1.0, anchors=as_anchors(anchors.tolist()), **figures)


def track_of(anchors: Sequence[Tensor | None], start: int = 0) -> Track:
    """A track of faces with these anchors [3, 2]; None where there is no face."""
    return Track(start=start, faces=tuple(None if places is None else face_at(places) for places in anchors))


def moved(anchors: Tensor, scale: float = 1.0, degrees: float = 0.0, shift: Sequence[float] = (0.0, 0.0)) -> Tensor:
    """Points [..., 2] scaled and turned around the origin, then shifted."""
    return anchors @ similarity(scale, degrees).mT + torch.tensor(shift)


def similarity(scale: float, degrees: float) -> Tensor:
    """The matrix [2, 2] that scales and turns."""
    angle = torch.deg2rad(torch.tensor(degrees))
    return scale * torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])


def smooth_picture(height: int, width: int) -> Tensor:
    """Waves of 60 to 100 pixels in three colours: uint8 [height, width, 3]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(x / 12 + y / 20), torch.sin(x / 16 - y / 13), torch.sin((x + y) / 20)]
    return (127.5 + 110 * torch.stack(waves, dim=-1)).round().to(torch.uint8)


def psnr(frames: Tensor, others: Tensor) -> float:
    """Peak signal-to-noise ratio of pixels in 0..255, in dB."""
    return float(10 * torch.log10(255**2 / (frames.float() - others.float()).square().mean().clamp(min=1e-9)))
