"""A face cut out of a clip as models take it, and put back: what `dub` does around its model, for other uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..media.clip import Clip
from ..media.faces.align import align
from ..media.faces.paste import paste
from ..media.faces.template import LATENTSYNC, Template
from ..media.images import Size
from ..media.timeline import DEFAULT_OVERLAP, chunk_length
from .dub_faces import choose_tracks
from .dub_plan import PlacedTrack, place_track, plan_face
from .dub_request import face_fault
from .footage import OnPicture, find_footage
from .masks import load_mouth_mask
from .playback import plan_playback
from .request import RequestError, faults_of

CROP_SIZE = (512, 512)
"""Height and width of the crops that released V2V models take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FacePlaces:
    """Where the crops of a clip's face lie."""

    transforms: Tensor
    """Float32 [F, 2, 3] from `align.crop_transforms`, one for each frame; where the face is not seen, the nearest."""
    strengths: Tensor
    """Float32 [F] in 0..1: how much of a crop is put back; 0 where the face is not seen, turned aside or uncertain."""
    reasons: tuple[str | None, ...]
    """Why a frame stays as it is; None where it does not."""
    size: Size
    """Height and width of the clip's frames."""


def cut_face(
    clip: Clip,
    face: str = "largest",
    size: Size = CROP_SIZE,
    *,
    template: Template = LATENTSYNC,
    detections: str | Path | None = None,
    on_picture: OnPicture | None = None,
) -> tuple[Tensor, FacePlaces]:
    """Find a face of a clip, follow it and cut it out.

    Args:
        clip: the video.
        face: whose: "largest", "left", "right", "speaking" or a number, as of `DubRequest`.
        size: height and width of the crops.
        template: where the face lies in them.
        detections: a file of faces as docs/faces.md describes, instead of those that are found.
        on_picture: as for `find_footage`.

    Returns:
        Crops, float32 [F, h, w, 3], RGB in 0..255; and where they lie.

    Raises:
        RequestError: there is no face, or not that one.
    """
    if (fault := face_fault(face)) is not None:
        raise RequestError(f"{fault}.")
    with faults_of("video"):
        footage = find_footage(clip, detections, on_picture=on_picture)
    placed = [place_track(track, footage, template) for track in choose_tracks(footage, [face])[0]]
    length = chunk_length(*CROP_SIZE)  # of chunks, which nobody makes
    plan = plan_face(footage, plan_playback(footage.times, 0, "stop"), placed, length=length, overlap=DEFAULT_OVERLAP)
    transforms = _of_all_frames(placed, len(clip.frames))
    height, width = clip.frames.shape[1:3]
    places = FacePlaces(
        transforms=transforms, strengths=plan.strengths, reasons=plan.reasons, size=(int(height), int(width))
    )
    return align(clip.frames, transforms, size), places


def _of_all_frames(tracks: Sequence[PlacedTrack], count: int) -> Tensor:
    """Transforms [count, 2, 3]: those of the tracks, and elsewhere those of the last one before, or the first one."""
    known = {frame: placed.transform(frame) for placed in tracks for frame in placed.track.frames}
    found: list[Tensor] = []
    for frame in range(count):
        found.append(known.get(frame, found[-1] if found else known[min(known)]))
    return torch.stack(found)


def paste_face(frames: Tensor, crops: Tensor, places: FacePlaces, mask: Tensor | None = None) -> Tensor:
    """Put crops back where they were cut out.

    Args:
        frames: uint8 [F, H, W, 3], RGB.
        crops: [F, h, w, 3], RGB in 0..255, of any size.
        places: where they lie, from `cut_face`.
        mask: [h, w] of 1 and 0: 1 where the crop is shown; at any size. None for the mouth that V2V models make.

    Returns:
        New uint8 frames; outside the mask their bits are the old ones.

    Raises:
        RequestError: the numbers of frames, crops and places differ, the frames have another size than those that the
            crops were cut out of, or there is no frame to put one into.
    """
    counts = [len(frames), len(crops), len(places.transforms)]
    if len(set(counts)) > 1:
        raise RequestError("{} frames, {} crops and {} places, wanted one of each.".format(*counts))
    if tuple(frames.shape[1:3]) != places.size:
        sizes = ["{1}x{0}".format(*size) for size in (frames.shape[1:3], places.size)]
        raise RequestError("frames of {} pixels; the crops were cut out of frames of {}.".format(*sizes))
    if not places.strengths.any():
        told = ", ".join(f"{reason} in {count}" for reason, count in Counter(places.reasons).most_common())
        raise RequestError(f"No crop can be put back: of {len(frames)} frames the face is {told}.")
    with faults_of("mask"):
        kept = load_mouth_mask(None if mask is None else 1 - mask, *crops.shape[1:3])[0]
    return paste(frames, crops, places.transforms, 1 - kept, places.strengths)
