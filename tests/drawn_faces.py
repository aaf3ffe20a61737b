"""Made-up faces: tracks, and the files that bring them in place of the detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffsynth_omniavatar.media.faces.detections import write_detections
from diffsynth_omniavatar.media.faces.face import Face, Track, as_anchors


def face_at(x: float, y: float, size: float = 48.0, **changes: Any) -> Face:
    """A face whose box has its middle at x, y."""
    half = size / 2
    anchors = [[x - size / 4, y - size / 5], [x + size / 4, y - size / 5], [x, y + size / 20]]
    values: dict[str, Any] = dict.fromkeys(("openness", "width", "yaw", "pitch", "roll", "nose_offset"), 0.0)
    values |= {"score": 1.0, "flag": 1.0, **changes}
    return Face(box=(x - half, y - half, x + half, y + half), anchors=as_anchors(anchors), **values)


def track_at(start: int, places: Sequence[tuple[float, float] | None], size: float = 48.0) -> Track:
    """A track from the places of its faces' middles."""
    return Track(start=start, faces=tuple(None if at is None else face_at(*at, size) for at in places))


def still(start: int, count: int, x: float, y: float, size: float = 48.0) -> Track:
    """A face that keeps still for `count` frames."""
    return track_at(start, [(x, y)] * count, size)


def with_faces(track: Track, changes: Mapping[int, Mapping[str, Any]]) -> Track:
    """The track with other values in the faces of some frames of the video."""
    faces = list(track.faces)
    for frame, values in changes.items():
        face = track.at(frame)
        assert face is not None
        left, top, right, bottom = face.box
        faces[frame - track.start] = face_at((left + right) / 2, (top + bottom) / 2, right - left, **values)
    return Track(start=track.start, faces=tuple(faces))


def write_faces(path: Path, *tracks: Track) -> Path:
    """A file of detections."""
    write_detections(path, tracks)
    return path
