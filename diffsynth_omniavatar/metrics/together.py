"""The figures of all clips together, FID and FVD, collected while the clips are watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from .clip import FACE_SIZE, Clip, Window
from .crops import cut_squares
from .distribution import Features, Fid, Fvd
from .groups import has_square
from .networks import Networks

SET_GROUPS = {
    "fid": "FID of all frames, whole and face, to the references'",
    "fvd": "FVD of all clips to the references, by I3D",
    "fvd_videomae": "the same by VideoMAE",
}
"""What can be asked for, and what it measures, for the help text."""


class Together:
    """Takes the clips that have a reference, window by window.

    Args:
        names: out of `SET_GROUPS`.
        networks: where their weights lie.
    """

    def __init__(self, names: Sequence[str], networks: Networks) -> None:
        self._figures: dict[str, Fid | Fvd] = {}
        if "fid" in names:
            self._figures |= {name: Fid(networks.inception, networks.device) for name in ("fid", "fid_face")}
        if "fvd" in names:
            self._figures["fvd"] = Fvd(networks.fvd)
        if "fvd_videomae" in names:
            self._figures["fvd_videomae"] = Fvd(networks.fvd_videomae)

    def watch(self, clip: Clip, window: Window) -> None:
        """Take the next frames of a clip."""
        if window.reference is None or not self._figures:
            return
        whole = (window.frames, window.reference)
        for name, figure in self._figures.items():
            if name != "fid_face":
                figure.add(*whole)
            elif has_square(clip):
                figure.add(*_faces(clip, window))

    def end_clip(self) -> dict[str, Features]:
        """What was seen of a clip, for `take`; the next frames are another clip's."""
        return {name: figure.end_clip() for name, figure in self._figures.items()}

    def take(self, seen: Mapping[str, Features]) -> None:
        """Count a clip. The order of the clips changes the last digits."""
        for name, features in seen.items():
            self._figures[name].take(features)

    def results(self) -> Iterator[tuple[str, float | None]]:
        """Each figure by name; None where there was too little."""
        for name, figure in self._figures.items():
            yield name, figure.compute()


def _faces(clip: Clip, window: Window) -> tuple[Tensor, Tensor]:
    assert window.reference is not None
    boxes = clip.boxes[window.places]
    return cut_squares(window.frames, boxes, FACE_SIZE), cut_squares(window.reference, boxes, FACE_SIZE)
