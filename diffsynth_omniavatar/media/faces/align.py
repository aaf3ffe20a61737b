"""Faces cut out of pictures to fixed places: where the crops lie, smoothly over time, and their pixels.

A crop's transform is a float32 tensor [2, 3] that takes the unit square, from the crop's upper left corner (0, 0) to
its lower right one (1, 1), to pixels of the picture: (x, y) = transform @ (u, v, 1). So it holds for crops of any size.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import Size
from ..timeline import FRAME_RATE
from .face import Track
from .template import LATENTSYNC, Template

SCALE_SMOOTHING = 0.08
"""Standard deviation in seconds of the Gaussian over scale: its noise is seen as a face that pumps."""

ANGLE_SMOOTHING = 0.024
"""The same for rotation. More of it lags behind a head that nods; places, which move faster still, have none."""

LONGEST_GAP = 0.5
"""Seconds without a sure face over which a crop moves on evenly. What lies on two sides of a longer gap is smoothed
apart."""

FILL = 127
"""What a crop shows outside the picture, in R, G and B: LatentSync's grey."""


def crop_transforms(
    track: Track, template: Template = LATENTSYNC, *, duplicates: Collection[int] = (), frame_rate: float = FRAME_RATE
) -> Tensor:
    """Where the crops of a track lie.

    Each is a similarity transform of the template's canvas: the three anchors' mean and mean distance from it are the
    template's, and the rotation is the one with the least squared distances. Over time, scale and rotation are
    smoothed by Gaussians that look forward as far as back. Where the track has no sure face the crop moves evenly
    from the last to the next one; if no face is sure, all count.

    Args:
        track: the faces; those of one scene, as tracks end at cuts.
        template: where the face shall lie.
        duplicates: frames of the video that show the picture before them again; they get its transform.
        frame_rate: frames per second of the track.

    Returns:
        Float32 [n, 2, 3], one transform for each of the track's n frames.
    """
    repeated = set(duplicates)
    distinct = np.array([frame == track.start or frame not in repeated for frame in track.frames])
    faces = [face for face, new in zip(track.faces, distinct, strict=True) if new]
    seen = [index for index, face in enumerate(faces) if face is not None and face.is_sure]
    seen = seen or [index for index, face in enumerate(faces) if face is not None]
    anchors = np.array([face.anchors for index in seen if (face := faces[index]) is not None])
    placed = _steady(_complex(anchors), template, np.array(seen), len(faces), frame_rate)
    return torch.from_numpy(placed[distinct.cumsum() - 1]).float()


def _complex(points: np.ndarray) -> np.ndarray:
    """Points [..., 2] as complex numbers x + iy."""
    return points[..., 0] + 1j * points[..., 1]


def _steady(anchors: np.ndarray, template: Template, seen: np.ndarray, count: int, frame_rate: float) -> np.ndarray:
    """Transforms [count, 2, 3] from anchors [m, 3] as complex numbers that lie in the frames `seen` [m]."""
    points = np.array(template.anchors)
    model = points - points.mean()
    centres = anchors.mean(axis=1)
    own = anchors - centres[:, None]
    scales = np.linalg.norm(own, axis=1) / np.linalg.norm(model)
    if not scales.all():
        raise ValueError("A face's anchors all lie in one place; wanted the centres of its eyebrows and its nose.")
    turns = np.log(scales) + 1j * np.unwrap(np.angle(own @ model.conj()))
    smooth, known = [], []
    for part in np.split(np.arange(len(seen)), np.flatnonzero(np.diff(seen) > LONGEST_GAP * frame_rate) + 1):
        known.append(np.arange(seen[part[0]], seen[part[-1]] + 1))
        raw = np.interp(known[-1], seen[part], turns[part])
        scale = _gaussian(raw.real, SCALE_SMOOTHING * frame_rate)
        smooth.append(scale + 1j * _gaussian(raw.imag, ANGLE_SMOOTHING * frame_rate))
    every = np.arange(count)
    turn = np.exp(np.interp(every, np.concatenate(known), np.concatenate(smooth)))
    move = np.interp(every, seen, centres) - turn * points.mean()
    width, height = template.canvas
    columns = np.stack([turn * width, turn * 1j * height, move], axis=-1)
    return np.stack([columns.real, columns.imag], axis=1)


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values [n] smoothed, as if the first and the last went on."""
    reach = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), weights / weights.sum(), mode="valid")


def inside_share(transforms: Tensor, height: int, width: int) -> Tensor:
    """Which share of each crop lies inside a picture of this size: float32 [n], in steps of 1/1024.

    Args:
        transforms: [n, 2, 3], from `crop_transforms`.
    """
    axis = (torch.arange(32, device=transforms.device) + 0.5) / 32
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    size = torch.tensor([[width], [height]], device=transforms.device)
    shares = []
    for part in transforms.split(1024):
        points = part @ places
        shares.append(((points >= 0) & (points < size)).all(dim=1).float().mean(dim=1))
    return torch.cat(shares)


def align(frames: Tensor, transforms: Tensor, size: Size) -> Tensor:
    """Crops of frames, bicubic.

    Args:
        frames: uint8 [n, H, W, 3], RGB.
        transforms: [n, 2, 3], from `crop_transforms`.
        size: height and width of the crops.

    Returns:
        Float32 [n, height, width, 3], RGB in [0, 255], not rounded, so that `paste` gives the frames' own pixels back.
        `FILL` where a crop reaches beyond the picture.

    Raises:
        ValueError: the numbers of frames and transforms differ.
    """
    if len(frames) != len(transforms):
        raise ValueError(f"Got {len(frames)} frames and {len(transforms)} transforms, wanted one for each.")
    height, width = size
    crops = torch.empty(len(frames), 3, height, width, device=frames.device)
    for crop, frame, transform in zip(crops, frames, transforms.to(frames.device), strict=True):
        to_picture = transform / transform.new_tensor([width, height, 1])
        crop.copy_(warp(frame, to_picture, size).clamp_(0, 255))
    return crops.permute(0, 2, 3, 1)


def warp(picture: Tensor, transform: Tensor, size: Size, mode: str = "bicubic", fill: float = FILL) -> Tensor:
    """A picture under an affine transform.

    Where it is shrunk by more than two, each pixel is the mean of several samples, or fine patterns would flicker.

    Args:
        picture: [H, W, C] of any type.
        transform: float32 [2, 3]: from pixels of the result to those of the picture, corners of pixels to corners.
        size: height and width of the result.
        mode: bicubic or bilinear.
        fill: value outside the picture.

    Returns:
        Float32 [C, height, width]; bicubic values can lie beyond the picture's.
    """
    height, width = size
    used = transform @ transform.new_tensor([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    left, top, right, bottom = bounds(used, (picture.shape[0], picture.shape[1]), margin=2)
    if left == right or top == bottom:
        return torch.full((picture.shape[2], height, width), float(fill), device=picture.device)
    region = picture[top:bottom, left:right].permute(2, 0, 1).to(torch.float32, copy=True).sub_(fill)
    step = float(transform[:, :2].norm(dim=0).max())
    samples = math.ceil(step / 1.5) if step > 2 else 1
    finer = transform / transform.new_tensor([samples, samples, 1])
    to_grid = finer - transform.new_tensor([[0, 0, left], [0, 0, top]])  # and then from -1 to 1 over the region
    to_grid = to_grid * transform.new_tensor([[2 / (right - left)], [2 / (bottom - top)]])
    grid = pixel_places(to_grid, (height * samples, width * samples)).sub_(1)
    result = F.grid_sample(region[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]
    return F.avg_pool2d(result, samples).add_(fill) if samples > 1 else result.add_(fill)


def bounds(points: Tensor, size: Size, margin: int = 0) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the whole pixels around points [2, m], inside a picture of this size."""
    limit = points.new_tensor([size[1], size[0]])
    low = (points.amin(dim=1).floor() - margin).clamp(min=0).minimum(limit)
    high = (points.amax(dim=1).ceil() + margin).clamp(min=0).minimum(limit)
    left, top, right, bottom = torch.cat([low, high]).int().tolist()
    return left, top, right, bottom


def pixel_places(transform: Tensor, size: Size) -> Tensor:
    """Where an affine transform [2, 3] takes the centres of a picture's pixels: float32 [height, width, 2]."""
    y, x = (torch.arange(length, device=transform.device) + 0.5 for length in size)
    return x[None, :, None] * transform[:, 0] + (y[:, None, None] * transform[:, 1] + transform[:, 2])
