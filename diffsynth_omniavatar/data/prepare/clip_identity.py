"""Who is in a clip: their face as numbers, by which clips of the same person are told."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...media.faces.face import Face, Track
from ...media.faces.find import FaceFinder
from ...metrics.identity import FaceEmbedder


class ClipIdentity:
    """Collects embeddings of a clip's face from some of its pictures.

    Args:
        track: whose face it is.

    Raises:
        ImportError: a package of `metrics.identity` is not installed.
    """

    def __init__(self, track: Track) -> None:
        self._track, self._finder, self._embedder = track, FaceFinder(), FaceEmbedder()
        self._found: list[np.ndarray] = []

    def add(self, picture: Tensor, index: int) -> None:
        """A picture uint8 [H, W, 3], frame `index` of the source."""
        face = self._track.at(index)
        if face is None or not face.is_sure:
            return
        nearest = min(self._finder.faces(picture), key=lambda other: _distance(face, other), default=None)
        if nearest is not None and _distance(face, nearest) < face.size / 2:
            self._found.append(self._embedder(picture.numpy(), nearest))

    def fingerprint(self) -> dict[str, list[float]]:
        """ "face": [128] the mean embedding, of length 1; empty where no picture showed the face well."""
        if not self._found:
            return {}
        mean = np.mean(self._found, axis=0)
        return {"face": [round(float(value), 5) for value in mean / np.linalg.norm(mean)]}


def _distance(one: Face, other: Face) -> float:
    """Pixels between the middles of two faces."""
    middles = [np.array([box[0] + box[2], box[1] + box[3]]) / 2 for box in (one.box, other.box)]
    return float(np.linalg.norm(middles[0] - middles[1]))
