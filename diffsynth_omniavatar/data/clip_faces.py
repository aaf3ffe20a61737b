"""The face of a clip that is a video file: whether one can train V2V with it, and the crops that follow it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..media.faces.align import align, crop_transforms, inside_share
from ..media.faces.face import Track
from ..media.faces.find import FaceFinder
from ..media.faces.scene_tracks import SceneTracker
from ..media.faces.template import Template
from ..media.faces.turned import turn_of, turned_face, turned_video
from ..media.images import Size, fit_layout
from ..media.video import iter_frames
from .face_rules import ALIGNED, face_figures, face_rules
from .figure_rules import faults

FaceMode = Literal["any", "checked", "aligned"]
"""V2V clips: taken as they are whatever they show; as they are, if `face_faults` finds none; or cut out of their frames
to where the model expects the face, if that finds none."""


class FaceFaults(ValueError):
    """One cannot train V2V with a clip's face.

    Attributes:
        reasons: all that is wrong with it.
    """

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True, eq=False)
class SeenFaces:
    """What is seen in a video of N frames."""

    frames: int
    height: int
    width: int
    cuts: tuple[int, ...]
    duplicates: frozenset[int]
    tracks: tuple[Track, ...]
    turn: int
    """How often the video has to be turned to the left by 90 degrees."""

    def main_track(self) -> Track | None:
        """The person who is seen most: by the sizes of the sure faces over all frames."""
        return max(self.tracks, key=_presence, default=None)

    def transforms(self, track: Track, template: Template) -> Tensor:
        """[N, 2, 3] the crops of a track as `crop_transforms` has them; before and after it they stand still."""
        own = crop_transforms(track, template, duplicates=self.duplicates)
        return own[(torch.arange(self.frames) - track.start).clamp(0, len(own) - 1)]


def _presence(track: Track) -> float:
    return sum(face.size for face in track.faces if face is not None and face.is_sure)


def see_faces(video: Path) -> SeenFaces:
    """Look at all frames of a video.

    Raises:
        ValueError: it cannot be read.
    """
    tracker, size = SceneTracker(), (0, 0)
    for picture in iter_frames(video):
        size = picture.shape[0], picture.shape[1]
        tracker.add(picture)
    tracker.finish()
    cuts, duplicates = tuple(tracker.cuts), frozenset(tracker.duplicates)
    return SeenFaces(tracker.frames, *size, cuts, duplicates, tuple(tracker.tracks()), tracker.turn())


def face_crops(video: Path, size: Size, template: Template, *, aligned: bool) -> Tensor | None:
    """Judge a clip by its face.

    Args:
        video: the clip.
        size: height and width of samples.
        template: where the model expects the face.
        aligned: whether the face is to be cut out.

    Returns:
        [N, 2, 3] the transforms of the crops; None for frames that are to be taken as they are.

    Raises:
        FaceFaults: the clip breaks a rule of `face_rules` or is turned, or is to be taken as it is and the face lies
            elsewhere.
        ValueError: the video cannot be read.
    """
    seen = see_faces(video)
    track = seen.main_track()
    if seen.turn:
        raise FaceFaults([turned_video(seen.turn)])
    if track is None:
        raise FaceFaults(["there is no face"])
    transforms, found = seen.transforms(track, template), dict[str, str]()
    if not aligned:
        misplacement = {ALIGNED.figure: _misplacement(seen, track, template, size)}
        found = {name: f"{fault}, or --align" for name, fault in faults(misplacement, [ALIGNED]).items()}
    inside = torch.ones(seen.frames) if not aligned and not found else inside_share(transforms, seen.height, seen.width)
    # A second face anywhere counts: it may be the one who speaks.
    whole = torch.tensor([0.0, 0, seen.width, seen.height]).expand(seen.frames, 4)
    others = [other for other in seen.tracks if other is not track]
    figures = face_figures(track, range(seen.frames), others, whole, inside) | {"cuts": float(len(seen.cuts))}
    if seen.cuts:  # then no track is as long as the clip, and what others there are may be the same person
        figures = {name: value for name, value in figures.items() if name in ("cuts", "face_size", "nose_offset")}
    found |= faults(figures, face_rules("v2v"))
    if found:
        raise FaceFaults([*found.values()])
    return transforms if aligned else None


def _misplacement(seen: SeenFaces, track: Track, template: Template, size: Size) -> float:
    """Mean distance of brows and nose from their places in the template, in sides of the sample; median over time."""
    (height, width), (left, _, top, _) = fit_layout(seen.height, seen.width, size)
    anchors = torch.tensor([face.anchors for face in track.faces if face is not None])
    scale = torch.tensor([width / seen.width, height / seen.height])
    shown = (anchors * scale + torch.tensor([left, top])) / torch.tensor([size[1], size[0]])
    canvas = torch.tensor(template.canvas)
    wanted = torch.tensor([template.left_brow, template.right_brow, template.nose]) / canvas
    return float((shown - wanted).norm(dim=2).mean(dim=1).median())


def cut_frames(video: Path, transforms: Tensor, size: Size) -> Iterator[Tensor]:
    """The crops of a video's frames, uint8 [*size, 3] each."""
    for picture, transform in zip(iter_frames(video), transforms, strict=True):
        yield _cut(picture, transform, size)


def cut_picture(image: Image.Image, size: Size, template: Template) -> Tensor:
    """The crop of the largest face in a picture, uint8 [*size, 3].

    Raises:
        ValueError: there is none, or it lies on its side or is upside down.
    """
    picture = torch.from_numpy(np.array(image.convert("RGB")))
    finder = FaceFinder()
    if turn := turn_of(finder, picture):
        raise ValueError(f"in the reference image {turned_face(turn)}")
    face = next((face for face in finder.faces(picture) if face.is_sure), None)
    if face is None:
        raise ValueError("there is no face in the reference image")
    return _cut(picture, crop_transforms(Track(start=0, faces=(face,)), template)[0], size)


def _cut(picture: Tensor, transform: Tensor, size: Size) -> Tensor:
    return align(picture[None], transform[None], size)[0].round().clamp(0, 255).to(torch.uint8)
