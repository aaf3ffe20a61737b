"""Colours of long videos: a chunk gets those of what it shows, against drift."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLOUR_CELL = 8
"""Pixels a side of the cells whose mean colours `match_colours` compares."""
COLOUR_NEAR = 16 / 127.5
"""A cell whose colour differs by less, 16 of 255, shows the same as the original."""
COLOUR_RIDGE = 1e-3
"""Weight of leaving colours as they are, in units of the mean square of a colour in [-1, 1] of all cells."""


def match_colours(frames: Tensor, original: Tensor) -> Tensor:
    """A chunk in the colours of what it shows.

    Each chunk starts from frames that the VAE has decoded and encodes again, and what it changes of their colours adds
    up. Where a chunk shows the same as the original, both colours are known: that gives the linear map (of red, green,
    blue and 1; least squares) that is applied to all of it. Where nothing is the same, colours stay as they are.

    Args:
        frames: a generated chunk, [..., 3, F, H, W] in [-1, 1].
        original: the portrait [..., 3, 1, H, W], or the source video [..., 3, F, H, W].
    """
    found, wanted = _cell_colours(frames), _cell_colours(original.to(frames))
    same = (found - wanted).abs().amax(-1, keepdim=True) < COLOUR_NEAR
    error = torch.where(same, wanted - found, 0.0).flatten(-3, -2)
    known = torch.where(same, F.pad(found, (0, 1), value=1.0), 0.0).flatten(-3, -2)
    ridge = COLOUR_RIDGE * known.shape[-2] * torch.eye(4).to(known)
    change = torch.linalg.solve(known.mT @ known + ridge, known.mT @ error).to(frames)
    by_colour, shift = change[..., :3, :], change[..., 3, :, None, None, None]
    return (frames + torch.einsum("...ifhw,...io->...ofhw", frames, by_colour) + shift).clamp(-1, 1)


def _cell_colours(video: Tensor) -> Tensor:
    """[..., 3, F, H, W] -> float64 [..., F, cells, 3]."""
    pictures = video.float().movedim(-3, -4)
    cells = F.avg_pool2d(pictures.flatten(0, -4), COLOUR_CELL).unflatten(0, pictures.shape[:-3])
    return cells.flatten(-2).mT.double()
