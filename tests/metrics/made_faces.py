"""Faces with landmarks, and what is done to them."""

from dataclasses import replace

import numpy as np
import torch
from drawn_faces import face_at

from diffsynth_omniavatar.media.faces.face import POINTS, Face

EYES = ((33, 133), (263, 362))
LIDS = (((160, 144), (158, 153)), ((385, 380), (387, 373)))


def landmarks(seed: int = 0) -> np.ndarray:
    """Places [468, 2] at random, but for the eyes, whose corners are 30 apart, lids 9, and centres 60."""
    points = np.random.default_rng(seed).uniform(20, 108, (POINTS, 2))
    for (outer, inner), lids, middle in zip(EYES, LIDS, (34.0, 94.0), strict=True):
        points[[outer, inner]] = [[middle - 15, 50], [middle + 15, 50]]
        for part, (upper, lower) in enumerate(lids):
            points[[upper, lower]] = [[middle + 5 * part, 45.5], [middle + 5 * part, 54.5]]
        points[list({33: (159, 145), 263: (386, 374)}[outer])] = [[middle, 45], [middle, 55]]
    return points


def face_with(points: np.ndarray, **changes: float) -> Face:
    """A face of these landmarks [468, 2]."""
    return replace(face_at(64, 64, 88, **changes), points=torch.from_numpy(np.pad(points, ((0, 0), (0, 1)))).float())
