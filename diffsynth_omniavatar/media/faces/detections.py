"""Tracks in a file that people and other detectors can write: JSON lines, one for each frame; see docs/faces.md."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...system.atomic import write_text_atomically
from ...system.text_files import parse_json, read_lines
from .face import Face, Track, as_anchors

_DEFAULTS = {
    "score": 1.0,
    "flag": 1.0,
    "openness": 0.0,
    "width": 0.0,
    "yaw": 0.0,
    "pitch": 0.0,
    "roll": 0.0,
    "nose_offset": 0.0,
}
"""Fields of a face that may be left out."""

_ANCHORS = ("left brow", "right brow", "nose")


def write_detections(path: str | Path, tracks: Sequence[Track]) -> None:
    """Write tracks to a file that `read_detections` reads; the landmarks are left out.

    Track numbers are places in `tracks`, counted from 1; numbers are rounded to thousandths.
    """
    faces: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, track in enumerate(tracks, start=1):
        for frame, face in zip(track.frames, track.faces, strict=True):
            if face is not None:
                faces[frame].append({"track": number, **_fields(face)})
    lines = (json.dumps({"frame": frame, "faces": faces[frame]}) + "\n" for frame in sorted(faces))
    write_text_atomically(Path(path), "".join(lines))


def read_detections(path: str | Path) -> list[Track]:
    """The tracks of a file, by their numbers.

    Raises:
        ValueError: the file is not as docs/faces.md says; the message names the file and the line.
        OSError: it cannot be read.
    """
    seen: dict[int, dict[int, Face]] = defaultdict(dict)
    last = -1
    for number, text in read_lines(path):
        name = f"{path}, line {number}"
        line = parse_json(text, name)
        _check_keys(line, name, ("frame", "faces"), ())
        frame = line["frame"]
        if type(frame) is not int or frame <= last:
            raise ValueError(
                f'{name}: "frame" is {frame!r}; wanted is a whole number, from 0 on, above that of the line before'
            )
        last = frame
        if not isinstance(line["faces"], list):
            raise ValueError(f'{name}: "faces" is {line["faces"]!r}; wanted is a list of faces')
        for place, entry in enumerate(line["faces"], start=1):
            track, face = _parsed(entry, f"{name}, face {place}")
            if frame in seen[track]:
                raise ValueError(f"{name}, face {place}: track {track} has two faces in frame {frame}")
            seen[track][frame] = face
    return [_track(seen[number]) for number in sorted(seen)]


def _fields(face: Face) -> dict[str, Any]:
    numbers = {name: round(getattr(face, name), 3) for name in _DEFAULTS}
    anchors = [[round(value, 3) for value in anchor] for anchor in face.anchors]
    return {"box": [round(value, 3) for value in face.box], "anchors": anchors, **numbers}


def _track(faces: dict[int, Face]) -> Track:
    start, last = min(faces), max(faces)
    return Track(start=start, faces=tuple(faces.get(frame) for frame in range(start, last + 1)))


def _parsed(entry: Any, name: str) -> tuple[int, Face]:
    """The number of the track, and the face."""
    _check_keys(entry, name, ("box", "anchors"), ("track", *_DEFAULTS))
    track = entry.get("track", 1)
    if type(track) is not int or track < 1:
        raise ValueError(f'{name}: "track" is {track!r}; wanted is a whole number from 1 on')
    box = _numbers(entry["box"], 4, f'{name}: "box"', "left, top, right, bottom in pixels")
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise ValueError(f'{name}: "box" is {entry["box"]}; wanted are left < right and top < bottom')
    anchors = entry["anchors"]
    if not isinstance(anchors, list) or len(anchors) != len(_ANCHORS):
        raise ValueError(f'{name}: "anchors" is {anchors!r}; wanted are [x, y] of {", ".join(_ANCHORS)}')
    points = [
        _numbers(anchor, 2, f'{name}: "anchors"', f"x and y of the {part}")
        for anchor, part in zip(anchors, _ANCHORS, strict=True)
    ]
    if points[0][0] == points[1][0] and points[0][1] == points[1][1]:
        raise ValueError(f'{name}: "anchors" has both brows at {points[0]}')
    values: dict[str, Any] = {
        key: _numbers([entry.get(key, default)], 1, f'{name}: "{key}"', "one number")[0]
        for key, default in _DEFAULTS.items()
    }
    return track, Face(box=(left, top, right, bottom), anchors=as_anchors(points), **values)


def _check_keys(value: Any, name: str, needed: Iterable[str], others: Iterable[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: is {value!r}; wanted is an object with {', '.join(needed)}")
    missing = [key for key in needed if key not in value]
    if missing:
        raise ValueError(f"{name}: lacks {', '.join(missing)}")
    known = [*needed, *others]
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ValueError(f"{name}: has {', '.join(unknown)}; known are {', '.join(known)}")


def _numbers(value: Any, count: int, name: str, wanted: str) -> list[float]:
    is_list = isinstance(value, list) and len(value) == count
    if not is_list or not all(type(one) in (int, float) and math.isfinite(one) for one in value):
        raise ValueError(f"{name} is {value!r}; wanted: {wanted}")
    return [float(one) for one in value]
