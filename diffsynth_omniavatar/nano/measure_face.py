"""What a video of the small model's speaker shows beside the mouth, from its pixels alone: eyes, lids, brows, head.

The mouth, which is found by its colours, tells where the face is. Each picture is looked at in the face's own
coordinates, upright and with the mouth in its place; how far it is turned is found in a few rounds, from the eyes.
Then each figure is a middle or a sum of shares of colours in a window, which a blur hardly changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..metrics.stability import laplacian
from .measure import measure_lips
from .speaker.canvas import SIZE
from .speaker.drawing import EYES, FACE, FACE_TURN, MOUTH

LEFT, RIGHT, TOP, BOTTOM = -52, 52, -34, 18
"""The part of a face that is looked at, pixels from its middle."""

EYE_DISTANCE = 16.6
"""Of an eye from the middle of the face."""

ROUNDS = 6
"""In which the head's roll is found."""

CLOSED = 0.22
"""Area that differs from the skin with closed lids, of that with open ones."""

GAZE = 3.15
"""Pixels of the iris' way for a pixel of the way of the white's middle."""

CHEEK = 18
"""Pixels from the middle within which there is skin."""

EDGE_CONTRAST = 24.0
"""Least distance of the face's edge from the skin, in RGB."""

MOST_CLOSED = 0.5
"""An eye that is more closed than this looks nowhere."""

_V, _U = np.mgrid[TOP:BOTTOM, LEFT:RIGHT].astype(np.float32) + np.float32(0.5)


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceTracks:
    """What F frames show, float32 [F] each; NaN where it cannot be seen."""

    x: np.ndarray
    """Pixels that the features of the face are right of their usual place."""
    y: np.ndarray
    """Pixels that they are below it."""
    roll: np.ndarray
    """Radians, clockwise."""
    turn: np.ndarray
    """Pixels that they are right of the middle of the head, beyond `x`'s part in that."""
    left_gaze: np.ndarray
    """Pixels that an iris is right of the middle of its eye; left and right are those of the picture."""
    right_gaze: np.ndarray
    left_lid: np.ndarray
    """0 open to 1 closed."""
    right_lid: np.ndarray
    left_brow: np.ndarray
    """Pixels above the middle of the eyes."""
    right_brow: np.ndarray
    sharpness: np.ndarray
    """Deviation of the Laplacian of the brightness around the eyes, of 255."""

    @property
    def gaze(self) -> np.ndarray:
        """The mean of both eyes."""
        return np.asarray((self.left_gaze + self.right_gaze) / 2)

    @property
    def lids(self) -> np.ndarray:
        """The mean of both eyes."""
        return np.asarray((self.left_lid + self.right_lid) / 2)

    @property
    def sway(self) -> float:
        """Pixels that the head, without its turns, travels from side to side. The 5 % farthest out on both sides are
        left out; NaN if no face is seen.
        """
        # Features move by 1.15 of the head's way, and `turn` has the 0.15 of it, as 0.3.
        place = (self.x - self.turn) / 0.85
        return float(np.ptp(np.nanquantile(place, (0.05, 0.95)))) if np.isfinite(place).any() else float("nan")


def measure_face(frames: np.ndarray) -> FaceTracks:
    """Eyes, lids, brows and head of the speaker.

    Args:
        frames: uint8 [F, 128, 128, 3], RGB, of one person.

    Raises:
        ValueError: the frames have another shape or type.
    """
    if frames.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"got frames {list(frames.shape)}; wanted [F, {SIZE}, {SIZE}, 3]")
    opening, _, mouth_x, mouth_y = measure_lips(frames)
    seen = np.isfinite(opening)
    tracks = {name: np.full(len(frames), np.nan, np.float32) for name in FaceTracks.__annotations__}
    if seen.sum() >= 2:
        for name, track in _measure(frames[seen], np.stack([mouth_x[seen], mouth_y[seen]])).items():
            tracks[name][seen] = track
    return FaceTracks(**tracks)


def _measure(frames: np.ndarray, mouth: np.ndarray) -> dict[str, np.ndarray]:
    """The tracks of frames with mouths at [2, F]."""
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    roll, times = np.zeros(len(frames), np.float32), np.arange(len(frames))
    for _ in range(ROUNDS):
        origin = mouth - MOUTH * np.stack([-np.sin(roll), np.cos(roll)])
        faces = _upright(pictures, origin, roll)
        skin = np.median(faces[:, :, (_V > 5) & (_V < 9) & (np.abs(_U) > 8) & (np.abs(_U) < 20)], axis=(0, 2))
        differs = np.clip((np.linalg.norm(faces - skin[:, None, None], axis=1) - 28) / 30, 0, 1)
        left, right = (_middle(differs, _window(side, 9.5, 8.5)) for side in (-1, 1))
        # Of closed eyes too little is seen, and a brow that comes into their window would lead astray.
        area = differs[:, _window(-1, 9.5, 8.5) | _window(1, 9.5, 8.5)].sum(axis=1)
        is_open = area >= 0.75 * np.quantile(area, 0.85)
        roll = roll + np.arctan2(right[1] - left[1], right[0] - left[0])
        roll = np.interp(times, times[is_open], roll[is_open]).astype(np.float32)
    # A smile and an open mouth shift what is taken for the mouth's middle, so the eyes tell the height.
    height = np.interp(times, times[is_open], ((left[1] + right[1]) / 2 - EYES)[is_open])
    origin[1] += height - np.median(height)
    found = {"x": origin[0] - FACE[0], "y": origin[1] - FACE[1], "roll": roll}
    found["turn"] = _turn(faces, skin)
    apart = float(np.median(right[0] - left[0])) / 2
    for name, side in (("left", -1), ("right", 1)):
        found |= {f"{name}_{key}": track for key, track in _eye(faces, differs, skin, side, side * apart).items()}
    found["sharpness"] = _sharpness(pictures, origin, roll)
    return found


def _upright(pictures: torch.Tensor, origin: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Faces [F, 3, rows, columns] from pictures [F, 3, SIZE, SIZE], around an origin [2, F]."""
    cosine, sine = np.cos(roll)[:, None, None], np.sin(roll)[:, None, None]
    x = origin[0][:, None, None] + cosine * _U - sine * _V
    y = origin[1][:, None, None] + sine * _U + cosine * _V
    grid = torch.from_numpy(np.stack([x, y], axis=-1) * 2 / SIZE - 1).float()
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False).numpy()


def _window(side: int, half_width: float, half_height: float) -> np.ndarray:
    """Where the eye of a side is."""
    x, y = EYE_DISTANCE, EYES
    return np.asarray((np.abs(_U - side * x) < half_width) & (np.abs(_V - y) < half_height))


def _middle(weight: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Weighted means [2, F] of u and v in a window."""
    inside = weight[:, window]
    total = np.maximum(inside.sum(axis=1), 1e-3)
    return np.stack([(inside * _U[window]).sum(axis=1) / total, (inside * _V[window]).sum(axis=1) / total])


def _eye(faces: np.ndarray, differs: np.ndarray, skin: np.ndarray, side: int, x: float) -> dict[str, np.ndarray]:
    """Gaze, lid and brow of the eye whose middle is at x."""
    window = _window(side, 11.5, 8.5)
    area = differs[:, window].sum(axis=1)
    lid = (1 - area / np.quantile(area, 0.85)) / (1 - CLOSED)
    white = differs * np.clip((faces.min(axis=1) - 140) / 100, 0, 1)
    gaze = -GAZE * (white[:, window] * (_U[window] - x)).sum(axis=1) / np.maximum(area, 1)
    above = (side * _U > 8) & (side * _U < 14) & (_V > -26) & (_V < -14.5)
    dark = np.clip(0.8 - faces.mean(axis=1) / skin.mean(), 0, 0.3)
    brow = EYES - _middle(dark, above)[1]
    return {"gaze": np.where(lid < MOST_CLOSED, gaze, np.nan), "lid": lid, "brow": brow}


def _turn(faces: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """How far the features are from the middle between the edges of the face's skin, at the height of the cheeks."""
    row = faces[:, :, (_V[:, 0] > 4) & (_V[:, 0] < 14)].mean(axis=2)
    contrast = np.linalg.norm(row - skin[:, None], axis=1) / EDGE_CONTRAST
    edges = [_first_above(contrast[:, ::side], side) for side in (-1, 1)]
    middle = (edges[0] + edges[1]) / 2
    return np.where(np.maximum(*np.abs(edges)) < RIGHT, -middle / (1 - FACE_TURN), np.nan)


def _first_above(contrast: np.ndarray, side: int) -> np.ndarray:
    """Where, from the cheek to a side, contrasts [F, columns], which run to that side, first reach 1: u [F]."""
    first = CHEEK - LEFT + np.argmax(contrast[:, CHEEK - LEFT :] >= 1, axis=1)
    rows = np.arange(len(contrast))
    before, at = contrast[rows, first - 1], contrast[rows, first]
    way = np.where(at >= 1, first - np.clip((at - 1) / np.maximum(at - before, 1e-3), 0, 1), RIGHT - LEFT)
    return np.asarray(side * (way + LEFT + 0.5))


def _sharpness(pictures: torch.Tensor, origin: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Deviation of the Laplacian around the eyes [F], in the picture's own pixels."""
    edges = laplacian(F.pad(pictures.mean(dim=1), (1, 1, 1, 1), mode="replicate")).numpy()
    x, y = EYE_DISTANCE, EYES
    found = []
    for frame, (column, row), turned in zip(edges, origin.T, roll, strict=True):
        parts = []
        for side in (-1, 1):
            at = round(float(column + side * x * np.cos(turned) - y * np.sin(turned)))
            down = round(float(row + side * x * np.sin(turned) + y * np.cos(turned)))
            parts.append(frame[max(0, down - 8) : down + 8, max(0, at - 10) : at + 10])
        found.append(np.mean([part.std() for part in parts]))
    return np.array(found, np.float32)
