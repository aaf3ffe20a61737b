"""What the faces of a clip have to be like to train with: rules that `check`, `precompute` and `prepare` share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..media.faces import faults as face_faults
from ..media.faces.face import Track
from .figure_rules import Mode, Rule

MIN_FACE_SIZE = {"i2v": 80.0, "v2v": 160.0}
"""Pixels of the source. An aligned crop is 1.33 faces high: at 512 pixels a face of 160 is enlarged 2.4 times."""

MIN_FACE_SHARE = 0.9
"""Of the frames of a clip those in which its face is found."""

MAX_NOSE_OFFSET = {"i2v": 0.6, "v2v": face_faults.MAX_NOSE_OFFSET}
"""Distances between the eyes by which the nose may be beside their middle; more is a profile."""

MAX_OTHER_FACE_SHARE = 0.1
"""Of the frames of a clip those in which the crop shows a second face of some size."""

OTHER_FACE_SIZE = 0.4
"""A second face counts from this part of the size of the first on."""

MIN_INSIDE_SHARE = {"i2v": 0.95, "v2v": face_faults.MIN_INSIDE_SHARE}
"""Of the aligned crop, or of the head, the part that lies in the picture."""


ALIGNED = Rule(
    figure="misplacement",
    title="brows and nose",
    unit="sides of the picture away from their places",
    meaning="mean distance of the brows and the nose from where the model expects them, median over the clip",
    complaint="the face is not aligned",
    most=0.08,
)
"""For clips that are taken as they are. Crops that LatentSync or this package made have 0.03 to 0.04."""


def face_rules(mode: Mode) -> tuple[Rule, ...]:
    """The rules for the faces of clips for "i2v" or "v2v"."""
    head = "the aligned crop" if mode == "v2v" else "the head"
    return (
        Rule(
            figure="face_share",
            title="frames with the face",
            meaning="part of the frames in which the face is found",
            complaint="the face is not seen all the time",
            least=MIN_FACE_SHARE,
        ),
        Rule(
            figure="face_size",
            title="face size",
            unit="pixels",
            meaning="longer side of the face's box in the source, median over the clip",
            complaint="the face is too small",
            least=MIN_FACE_SIZE[mode],
        ),
        Rule(
            figure="nose_offset",
            title="nose beside the middle",
            unit="eye distances",
            meaning="how far the nose is beside the middle of the eyes, exceeded in 5 % of the frames",
            complaint="the face is in profile",
            most=MAX_NOSE_OFFSET[mode],
        ),
        Rule(
            figure="other_face_share",
            title="frames with a second face",
            meaning="part of the frames whose crop shows a second face",
            complaint="there are two faces",
            most=MAX_OTHER_FACE_SHARE,
        ),
        Rule(
            figure="inside_share",
            title="part inside the picture",
            meaning=f"part of {head} inside the picture, less in 5 % of the frames",
            complaint="the face is cut off",
            least=MIN_INSIDE_SHARE[mode],
        ),
        Rule(
            figure="cuts",
            title="cuts",
            meaning="number of cuts between scenes within the clip",
            complaint="there is a cut in the middle",
            most=0,
        ),
    )


def face_figures(
    track: Track, frames: range, others: Sequence[Track], bounds: Tensor, inside: Tensor
) -> dict[str, float]:
    """The figures of a face in a clip that `face_rules` has bounds for, but for the number of cuts.

    Args:
        track: whose face the clip shows.
        frames: n frames of the video.
        others: other tracks of the video.
        bounds: [n, 4] left, top, right and bottom of what each frame of the clip shows, in pixels of the video.
        inside: [n] part of the aligned crop inside the picture, or of the head inside the crop.
    """
    faces = [track.at(frame) for frame in frames]
    sure = [face for face in faces if face is not None and face.is_sure]
    if not sure:
        return {"face_share": 0.0}
    size = float(torch.tensor([face.size for face in sure]).median())
    offsets = torch.tensor([abs(face.nose_offset) for face in sure])
    return {
        "face_share": len(sure) / len(frames),
        "face_size": size,
        "nose_offset": float(offsets.quantile(0.95)),
        "other_face_share": _other_face_share(frames, others, bounds, size),
        "inside_share": float(inside.quantile(0.05)),
    }


def _other_face_share(frames: range, others: Sequence[Track], bounds: Tensor, size: float) -> float:
    """Part of the frames that show the middle of another face of some size."""
    seen = 0
    others = [other for other in others if other.start < frames.stop and other.frames.stop > frames.start]
    for frame, (left, top, right, bottom) in zip(frames, bounds.tolist(), strict=True):
        faces = [face for face in (other.at(frame) for other in others) if face is not None and face.is_sure]
        middles = [
            ((face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2)
            for face in faces
            if face.size >= OTHER_FACE_SIZE * size
        ]
        seen += any(left <= x <= right and top <= y <= bottom for x, y in middles)
    return seen / len(frames)
