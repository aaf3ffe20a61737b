"""What a clip shows of its source: a crop around the head (I2V), or the aligned face (V2V)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...media.faces.align import LATENTSYNC, align, crop_transforms, inside_share
from ...media.faces.face import Face, Track
from ...media.images import Size, match_size
from ...media.timeline import FRAME_RATE
from .look import Look
from .settings import PrepareSettings

HEAD_WIDER, HEAD_ABOVE, HEAD_BELOW = 0.25, 0.55, 0.25
"""How far a head reaches beyond the box of its face on each side, above and below, in sizes of the box."""

LEAST_FACE = 0.125
"""Part of the crop's height that a face has for I2V; where it is smaller, the crop is."""

AROUND = 3 * FRAME_RATE
"""Frames beside a clip whose faces may move its crops."""

HEAD_PLACE = 0.4
"""Where the middle of the head lies in a crop for I2V, from the top."""

AROUND_HEAD = 1.15
"""Least side of a crop for I2V, in sides of the box in which the head moves."""


class Crop(ABC):
    """What a clip shows."""

    size: Size
    """Height and width of the clip."""
    enlargement: float
    """How much the source's pixels are enlarged."""
    bounds: Tensor
    """[n, 4] left, top, right and bottom of what each frame shows, in pixels of the source."""
    inside: Tensor
    """[n] part of the aligned crop that lies in the picture (V2V), or of the head that lies in the crop (I2V)."""

    @abstractmethod
    def cut(self, picture: Tensor, index: int) -> Tensor:
        """Frame `index` of the clip, uint8 [*size, 3], from its picture uint8 [H, W, 3]."""


@dataclass(frozen=True, eq=False)
class HeadCrop(Crop):
    """A still crop of one of the trained shapes."""

    size: Size
    box: tuple[int, int, int, int]
    """Left, top, right and bottom in the source."""
    bounds: Tensor
    inside: Tensor

    @property
    def enlargement(self) -> float:  # type: ignore[override]
        return self.size[1] / (self.box[2] - self.box[0])

    def cut(self, picture: Tensor, index: int) -> Tensor:
        left, top, right, bottom = self.box
        part = picture[top:bottom, left:right].permute(2, 0, 1)[None]
        if tuple(part.shape[2:]) != self.size:
            part = F.interpolate(
                part, self.size, mode="bicubic", antialias=True
            )  # of bytes: five times as fast, 2 levels off at most
        return part[0].permute(1, 2, 0).contiguous()


@dataclass(frozen=True, eq=False)
class AlignedCrop(Crop):
    """A crop that follows the face, as LatentSync's."""

    size: Size
    transforms: Tensor
    """[n, 2, 3] from the crop's unit square to pixels of the source."""
    bounds: Tensor
    inside: Tensor

    @property
    def enlargement(self) -> float:  # type: ignore[override]
        # LatentSync's crops stretch faces: their height counts, which is enlarged less than their width.
        return self.size[0] / float(self.transforms[:, :, 1].norm(dim=1).median())

    def cut(self, picture: Tensor, index: int) -> Tensor:
        crop = align(picture[None], self.transforms[index : index + 1], self.size)[0]
        return crop.round().clamp(0, 255).to(torch.uint8)


def crop_of(look: Look, track: Track, frames: range, settings: PrepareSettings) -> Crop:
    """The crop of a clip that shows a track in some frames of a source."""
    if settings.mode == "v2v":
        return _aligned_crop(look, track, frames, settings.sizes[0])
    return _head_crop(look, track, frames, settings.sizes)


def _aligned_crop(look: Look, track: Track, frames: range, size: Size) -> Crop:
    # Nothing farther away moves these crops, and tracks of an hour would take long.
    start = max(track.start, frames.start - AROUND)
    part = Track(start=start, faces=track.faces[start - track.start : frames.stop + AROUND - track.start])
    transforms = crop_transforms(part, LATENTSYNC, duplicates=look.duplicates)
    transforms = transforms[frames.start - start : frames.stop - start]
    corners = torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]])
    places = transforms @ corners.T
    bounds = torch.cat([places.amin(dim=2), places.amax(dim=2)], dim=1)
    return AlignedCrop(size, transforms, bounds, inside_share(transforms, look.height, look.width))


def _head_crop(look: Look, track: Track, frames: range, sizes: tuple[Size, ...]) -> Crop:
    faces = [face for face in (track.at(frame) for frame in frames) if face is not None]
    heads = torch.tensor([head_box(face) for face in faces])
    size = match_size(look.height, look.width, sizes)
    low, high = torch.quantile(heads, torch.tensor([0.02, 0.98]), dim=0)
    # The box in which the head moves, but for single frames.
    left, top, right, bottom = low[0].item(), low[1].item(), high[2].item(), high[3].item()
    face = float(torch.tensor([face.size for face in faces]).median())
    shape = size[1] / size[0]
    largest = min(look.height, look.width / shape)
    needed = AROUND_HEAD * max(bottom - top, (right - left) / shape)
    height = min(largest, max(face / LEAST_FACE, needed))
    width = height * shape
    x = min(max((left + right - width) / 2, 0), look.width - width)
    y = min(max((top + bottom) / 2 - HEAD_PLACE * height, 0), look.height - height)
    box = (round(x), round(y), min(look.width, round(x + width)), min(look.height, round(y + height)))
    bounds = torch.tensor(box).float().expand(len(frames), 4)
    every = _each_frame(heads, [track.at(frame) is not None for frame in frames])
    return HeadCrop(size, box, bounds, _part_inside(every, bounds))


def head_box(face: Face) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the whole head, hair and chin included, by the box of its face."""
    left, top, right, bottom = face.box
    return (
        left - HEAD_WIDER * face.size,
        top - HEAD_ABOVE * face.size,
        right + HEAD_WIDER * face.size,
        bottom + HEAD_BELOW * face.size,
    )


def _each_frame(heads: Tensor, seen: list[bool]) -> Tensor:
    """Boxes [n, 4] of all frames, where there is none that of the frame before, from those [m, 4] of the seen ones."""
    places = (torch.tensor(seen).cumsum(0) - 1).clamp(min=0)
    return heads[places]


def _part_inside(boxes: Tensor, bounds: Tensor) -> Tensor:
    """[n] part of boxes [n, 4] that lies within bounds [n, 4]."""
    low, high = torch.maximum(boxes[:, :2], bounds[:, :2]), torch.minimum(boxes[:, 2:], bounds[:, 2:])
    return (high - low).clamp(min=0).prod(dim=1) / (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
