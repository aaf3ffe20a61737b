"""Tracks go through a file unchanged; what is wrong in it is told with its line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffsynth_omniavatar.media.faces.detections import read_detections, write_detections
from diffsynth_omniavatar.media.faces.face import Face, Track

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

FACE = Face(
    box=(10, 20, 50.5, 60),
    score=0.875,
    flag=1.0,
    anchors=((20.0, 30.0), (40.0, 30.5), (30.0, 42.25)),
    openness=0.125,
    width=0.75,
    yaw=-12.5,
    pitch=3.0,
    roll=1.5,
    nose_offset=-0.25,
    points=torch.zeros(468, 3),
)
ENTRY = {"box": [10, 20, 50, 60], "anchors": [[20, 30], [40, 30], [30, 42]]}


def line(*faces: object, frame: object = 0) -> str:
    return json.dumps({"frame": frame, "faces": faces})


def test_tracks_are_read_as_written(tmp_path: Path) -> None:
    other = replace(FACE, box=(100, 20, 140, 60), score=0.5)
    tracks = [Track(start=3, faces=(FACE, None, other)), Track(start=4, faces=(other,))]
    write_detections(tmp_path / "faces.jsonl", tracks)
    read = read_detections(tmp_path / "faces.jsonl")
    assert [track.frames for track in read] == [range(3, 6), range(4, 5)] and read[0].faces[1] is None
    for before, after in ((FACE, read[0].at(3)), (other, read[0].at(5)), (other, read[1].at(4))):
        assert after is not None and after.points is None and after.anchors == before.anchors
        for name in ("box", "score", "flag", "openness", "width", "yaw", "pitch", "roll", "nose_offset"):
            assert getattr(after, name) == getattr(before, name), name


def test_box_and_anchors_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "faces.jsonl"
    path.write_text(f"{line(ENTRY)}\n\n{line(frame=1)}\n{line(ENTRY, frame=7)}\n", encoding="utf-8")
    (track,) = read_detections(path)
    face = track.at(7)
    assert track.frames == range(8) and face is not None and face.is_sure
    assert (face.score, face.flag, face.yaw, face.pitch, face.roll, face.nose_offset) == (1, 1, 0, 0, 0, 0)


def test_file_without_faces_has_no_tracks(tmp_path: Path) -> None:
    write_detections(tmp_path / "faces.jsonl", [])
    assert read_detections(tmp_path / "faces.jsonl") == []


@pytest.mark.parametrize(
    "text, fault",
    [
        ("{", "line 2 is not valid JSON"),
        ("[]", r"line 2: is \[\]; wanted is an object with frame, faces"),
        ('{"frame": 1}', "line 2: lacks faces"),
        (line(frame=0), 'line 2: "frame" is 0; wanted is a whole number, from 0 on, above that of the line before'),
        (line(frame=1.5), 'line 2: "frame" is 1.5'),
        ('{"frame": 1, "faces": 3}', 'line 2: "faces" is 3; wanted is a list of faces'),
        (line(3, frame=1), "line 2, face 1: is 3; wanted is an object with box, anchors"),
        (line({"box": [1, 2, 3, 4]}, frame=1), "line 2, face 1: lacks anchors"),
        (line(ENTRY, ENTRY, frame=1), "line 2, face 2: track 1 has two faces in frame 1"),
        (line({**ENTRY, "track": 0}, frame=1), 'line 2, face 1: "track" is 0; wanted is a whole number from 1 on'),
        (line({**ENTRY, "box": [1, 2, 3]}, frame=1), r'line 2, face 1: "box" is \[1, 2, 3\]; wanted: left, top, right'),
        (line({**ENTRY, "box": [5, 2, 3, 4]}, frame=1), 'line 2, face 1: "box" is .*; wanted are left < right'),
        (line({**ENTRY, "anchors": [[1, 2]]}, frame=1), r'"anchors" is \[\[1, 2\]\]; wanted are \[x, y\] of left brow'),
        (line({**ENTRY, "anchors": [[1, 2], [1, 2], [3, 4]]}, frame=1), '"anchors" has both brows at'),
        (line({**ENTRY, "anchors": [[1, 2], [3, "4"], [3, 4]]}, frame=1), "wanted: x and y of the right brow"),
        (line({**ENTRY, "yaw": float("nan")}, frame=1), 'line 2, face 1: "yaw" is .*nan'),
        (line({**ENTRY, "flag": True}, frame=1), 'line 2, face 1: "flag" is .*True'),
        (line({**ENTRY, "yow": 1}, frame=1), "line 2, face 1: has yow; known are box, anchors, track, score"),
    ],
)
def test_faults_are_named_with_file_and_line(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "faces.jsonl"
    path.write_text(f"{line(ENTRY)}\n{text}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{path}, .*{fault}"):
        read_detections(path)
