"""The two networks that see faces, run by LiteRT: MediaPipe's full-range detector and its face mesh.

Both take a picture of 192x192. Their files lie in weights/, with their origin and licence.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

WEIGHTS = Path(__file__).resolve().parent / "weights"
INPUT = 192
"""Height and width of both networks' input."""

_CELLS = 48
"""The detector's anchors: a square grid over the picture, at the middle of each cell, all of the picture's size."""


class Network:
    """A network that takes one picture [192, 192, 3]; not for several threads at once."""

    def __init__(self, name: str, threads: int) -> None:
        with _without_notice():
            self._interpreter = Interpreter(str(WEIGHTS / name), num_threads=threads)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """float32 [192, 192, 3] -> the outputs, each [1, ...]."""
        self._interpreter.set_tensor(self._input, picture[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


class Detector:
    """Boxes of faces that may be small in a whole picture.

    Its output holds, for each of 48x48 anchors, the middle of the box, its width and height, and six points, all in
    pixels of the input from the anchor; and the logit of the score.
    """

    def __init__(self, threads: int) -> None:
        self._network = Network("face_detection_full_range_sparse.tflite", threads)

    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """float32 [192, 192, 3] in [-1, 1], black around the picture, to all candidates.

        Returns boxes [2304, 4] (left, top, right, bottom), the left and right eye [2304, 2, 2], both in units of the
        input's side, and scores [2304] in 0 to 1.
        """
        raw, logits = self._network(picture)
        values = raw[0].reshape(-1, 8, 2) / INPUT
        middles = values[:, 0] + _anchors()
        half = values[:, 1] / 2
        boxes = np.concatenate([middles - half, middles + half], axis=1)
        return boxes, values[:, 2:4] + _anchors()[:, None], _sigmoid(logits[0, :, 0])


class Mesh:
    """468 landmarks of the face that a picture shows upright and filling two thirds of it."""

    def __init__(self, threads: int) -> None:
        self._network = Network("face_landmark.tflite", threads)

    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, float]:
        """float32 [192, 192, 3] in [0, 1] to landmarks [468, 3] in units of its side, and the flag in 0 to 1."""
        points, logit = self._network(picture)
        return points.reshape(-1, 3) / INPUT, float(_sigmoid(logit.reshape(())))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))


@lru_cache(maxsize=1)
def _anchors() -> np.ndarray:
    """float32 [2304, 2]: x and y of the anchors in units of the input's side."""
    places = (np.arange(_CELLS, dtype=np.float32) + 0.5) / _CELLS
    y, x = np.meshgrid(places, places, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


_STDERR = threading.Lock()
"""Of two threads that redirect it at once, one would restore the other's file."""


@contextmanager
def _without_notice() -> Iterator[None]:
    """Keeps LiteRT's line about its delegate from stderr, which no setting does; the rest is passed on."""
    with _STDERR, tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if b"Created TensorFlow Lite XNNPACK delegate" not in line:
                    os.write(2, line)
