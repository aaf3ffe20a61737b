"""Why a face in a picture cannot be dubbed."""

from __future__ import annotations

from .face import Face

MAX_NOSE_OFFSET = 0.45
"""Distances between the eyes by which the nose may be beside their middle; more is a profile."""

MIN_INSIDE_SHARE = 0.75
"""Part of the aligned crop that has to lie in the picture."""

MIN_SIZE = 32.0
"""Pixels of the longer side of a face; the crop of a smaller one has hardly any mouth."""

NO_FACE = "no face"
UNSURE = "not sure of the face"
PROFILE = "turned aside"
CUT_OFF = "partly outside the picture"
TOO_SMALL = "too small"


def face_fault(face: Face | None, inside: float) -> str | None:
    """Why a face of a track cannot be dubbed in one picture, in a few words; None if it can.

    Args:
        face: None where the track has lost it.
        inside: share of its crop that lies in the picture, from `align.inside_share`.
    """
    if face is None:
        return NO_FACE
    if not face.is_sure:
        return UNSURE
    if abs(face.nose_offset) > MAX_NOSE_OFFSET:
        return PROFILE
    if inside < MIN_INSIDE_SHARE:
        return CUT_OFF
    return TOO_SMALL if face.size < MIN_SIZE else None
