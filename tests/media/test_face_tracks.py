"""A track is one person: it goes on through gaps and crossings, and ends at cuts; tracks keep little."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from face_pictures import drawn_person, placed, real_person
from PIL import Image

from diffsynth_omniavatar.media.faces.face import Face, Track
from diffsynth_omniavatar.media.faces.find import FaceFinder
from diffsynth_omniavatar.media.faces.scene_tracks import SceneTracker
from diffsynth_omniavatar.media.faces.tracks import LONGEST_GAP, Tracker, find_tracks

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

SIDE = 40
RED, BLUE, GREY = (170, 90, 90), (90, 90, 170), (120, 120, 120)


def face_at(x: float, y: float = 100, side: float = SIDE, **fields: Any) -> Face:
    anchors = ((x - side / 4, y - side / 4), (x + side / 4, y - side / 4), (x, y))
    values = {"score": 0.9, "flag": 1.0, "openness": 0, "width": 0, "yaw": 0, "pitch": 0, "roll": 0, "nose_offset": 0}
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return Face(box=box, anchors=anchors, points=torch.zeros(468, 3), **{**values, **fields})


class Scripted:
    """Finds what it is told, frame by frame."""

    def __init__(self, faces: Sequence[Sequence[Face]]) -> None:
        self._faces = iter(faces)

    def follow(self, picture: torch.Tensor, faces: Sequence[Face]) -> Sequence[Face]:
        return next(self._faces)


def picture_of(faces: Sequence[Face], colours: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    """Squares of one colour each."""
    picture = torch.full((200, 400, 3), 30, dtype=torch.uint8)
    for face, colour in zip(faces, colours, strict=False):
        left, top, right, bottom = (max(0, round(value)) for value in face.box)
        picture[top:bottom, left:right] = torch.tensor(colour, dtype=torch.uint8)
    return picture


def tracks_of(
    faces: Sequence[Sequence[Face]], colours: Sequence[tuple[int, int, int]] = (GREY,) * 9, **arguments: Any
) -> list[Track]:
    pictures = [picture_of(present, colours) for present in faces]
    return find_tracks(pictures, finder=Scripted(faces), **arguments)  # type: ignore[arg-type]


def middles(track: Track) -> list[float | None]:
    return [None if face is None else (face.box[0] + face.box[2]) / 2 for face in track.faces]


def crossing(frame: int) -> list[Face]:
    """Two that cross in frame 15; the second is hidden while they overlap by half."""
    first, second = face_at(50 + 10 * frame), face_at(350 - 10 * frame)
    return [first] if abs(frame - 15) < 2 else [first, second]


def bounce(frame: int) -> list[Face]:
    """Two that come close, are not seen where their motion would let them cross, and go back."""
    way = 14 * min(frame, 30 - frame)
    first, second = face_at(50 + 0.7 * way), face_at(350 - 0.7 * way)
    return [] if abs(frame - 15) < 2 else [first, second]


def test_one_face_is_one_track() -> None:
    (track,) = tracks_of([[face_at(100 + frame)] for frame in range(5)])
    assert track.frames == range(5) and middles(track) == [100, 101, 102, 103, 104]
    assert track.at(2) is track.faces[2] and track.at(5) is None and track.size == SIDE


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("colours", [(RED, BLUE), (GREY, GREY)])
def test_crossing_faces_keep_their_tracks(colours: Sequence[tuple[int, int, int]], backward: bool) -> None:
    """Also those that look alike, and in whatever order the finder gives them."""
    faces = [crossing(frame) for frame in range(31)]
    pictures = [picture_of(present, colours) for present in faces]
    ordered = [present[::-1] if backward else present for present in faces]
    one, other = find_tracks(pictures, finder=Scripted(ordered))  # type: ignore[arg-type]
    right, left = sorted((one, other), key=lambda track: track.faces[0].box[0])  # type: ignore[union-attr]
    assert middles(right) == [50 + 10 * frame for frame in range(31)]
    assert middles(left) == [None if abs(frame - 15) < 2 else 350 - 10 * frame for frame in range(31)]


def test_faces_that_turn_back_keep_their_tracks() -> None:
    one, other = tracks_of([bounce(frame) for frame in range(31)], (RED, BLUE))
    assert middles(one)[-1] == 50 and middles(other)[-1] == 350 and one.start == other.start == 0


def test_who_is_hidden_by_a_neighbour_keeps_the_own_looks() -> None:
    """Two come near and go back; before both are lost, the first one's place shows the second one's colours."""
    ways = [4 * min(frame, 40 - frame) for frame in range(41)]
    both = [[face_at(100 + way), face_at(250 - way)] for way in ways]
    faces = [[] if 15 <= frame < 26 else present for frame, present in enumerate(both)]
    pictures = [picture_of(present, (BLUE if 11 <= frame < 15 else RED, BLUE)) for frame, present in enumerate(faces)]
    one, other = find_tracks(pictures, finder=Scripted(faces))  # type: ignore[arg-type]
    assert middles(one)[-1] == 100 and middles(other)[-1] == 250


def test_a_face_that_moved_on_while_it_was_lost_is_not_taken_to_be_faster() -> None:
    faces = [[] if 10 <= frame < 30 else [face_at(50 + 5 * frame)] for frame in range(40)]
    (track,) = tracks_of(faces)
    assert track.frames == range(40)


@pytest.mark.parametrize("gap", [1, LONGEST_GAP])
@pytest.mark.parametrize("lost", [[], [face_at(100, score=0.55)], [face_at(100, flag=0.4)]])
def test_track_goes_on_after_a_gap(gap: int, lost: list[Face]) -> None:
    (track,) = tracks_of([[face_at(100)], *[lost] * gap, [face_at(100)]])
    assert track.frames == range(gap + 2)
    assert all((face is None) if not lost else (face is lost[0] or not face.is_sure) for face in track.faces[1:-1])


@pytest.mark.parametrize("lost", [[], [face_at(100, score=0.55)]])
def test_track_ends_with_its_last_sure_face(lost: list[Face]) -> None:
    first, second = tracks_of([[face_at(100)], [face_at(100)], *[lost] * (LONGEST_GAP + 1), [face_at(100)]])
    assert first.frames == range(2) and second.start == LONGEST_GAP + 3
    (open_one,) = tracks_of([[face_at(100)], lost, lost])
    assert open_one.frames == range(1)


def test_unsure_face_begins_no_track() -> None:
    assert tracks_of([[face_at(100, score=0.59)], [face_at(100, flag=0.49)]] * 3) == []


@pytest.mark.parametrize(
    "other", [face_at(100 + 1.3 * SIDE), face_at(100, side=2 * SIDE)], ids=["elsewhere", "of another size"]
)
def test_another_face_is_another_track(other: Face) -> None:
    assert len(tracks_of([[face_at(100)], [other]])) == 2


def test_another_looks_are_another_track() -> None:
    faces = [[face_at(100)], [face_at(100)]]
    pictures = [picture_of(faces[0], [(250, 240, 230)]), picture_of(faces[1], [(20, 40, 10)])]
    assert len(find_tracks(pictures, finder=Scripted(faces))) == 2  # type: ignore[arg-type]


def test_track_goes_on_when_the_light_changes() -> None:
    faces = [[face_at(100)]] * 11
    pictures = [picture_of(present, [(40 + 20 * frame,) * 3]) for frame, present in enumerate(faces)]
    assert len(find_tracks(pictures, finder=Scripted(faces))) == 1  # type: ignore[arg-type]


def test_cut_ends_all_tracks() -> None:
    tracks = tracks_of([[face_at(100), face_at(300)]] * 6, cuts={0, 2})
    assert [track.frames for track in tracks] == [range(2), range(2), range(2, 6), range(2, 6)]


def test_larger_of_two_that_come_together_is_first() -> None:
    faces = [[face_at(300, side=20), face_at(100)]] * 2 + [[face_at(300, side=20), face_at(100), face_at(200, side=60)]]
    assert [(track.start, track.size) for track in tracks_of(faces)] == [(0, SIDE), (0, 20), (2, 60)]


def test_landmarks_are_kept_where_asked_for() -> None:
    faces = [[face_at(100)]] * 2
    (without,), (kept,) = tracks_of(faces), tracks_of(faces, keep_points=True)
    assert all(face.points is None for face in without.faces if face)
    assert all(face.points is not None for face in kept.faces if face)


def test_tracks_so_far_can_be_asked_for() -> None:
    faces = [[face_at(100)]] * 3
    tracker = Tracker(Scripted(faces))  # type: ignore[arg-type]
    for count, present in enumerate(faces, start=1):
        assert tracker.add(picture_of(present, [GREY])) == present
        assert [track.frames for track in tracker.tracks()] == [range(count)]


def meeting(people: Sequence[Image.Image], frames: int, place: Callable[[float], float]) -> list[torch.Tensor]:
    """The first goes to the right before the second, who goes to the left."""
    first, second = people
    ways = [place(frame / (frames - 1)) for frame in range(frames)]
    return [placed([(first, 60 + 280 * way, 90), (second, 340 - 280 * way, 90)], 180, 400, oval=True) for way in ways]


@pytest.mark.parametrize("people, way", [("drawn", "cross"), ("real", "cross"), ("real", "turn back")])
def test_people_who_meet_keep_their_tracks(request: pytest.FixtureRequest, people: str, way: str) -> None:
    """Seen by the networks, one person hiding the other."""
    if people == "drawn":
        both = [drawn_person(1, 110), drawn_person(4, 110)]
    else:
        folder = request.getfixturevalue("shared_data")
        both = [real_person(folder, name, 110) for name in ("demo1_video", "demo3_video")]
    crosses = way == "cross"
    frames = meeting(both, 20, lambda part: part if crosses else 0.44 * (1 - abs(1 - 2 * part)))
    tracks = find_tracks(frames, finder=FaceFinder())
    ends = sorted((middles(track)[0], middles(track)[-1]) for track in tracks if len(track.faces) > 1)
    near, far = pytest.approx(60, abs=15), pytest.approx(340, abs=15)
    assert ends == ([(near, far), (far, near)] if crosses else [(near, near), (far, far)])


def test_a_face_without_points_is_of_numbers_alone():
    """A tensor of its own for each face would keep the large blocks around it: 0.4 MB a frame were seen."""
    kept = vars(face_at(100).without_points())
    assert kept.pop("points") is None
    numbers = [*kept.pop("box"), *(number for anchor in kept.pop("anchors") for number in anchor), *kept.values()]
    assert len(numbers) == 18 and {type(number) for number in numbers} <= {int, float}


def test_a_cut_that_is_found_ends_a_track() -> None:
    """Also where somebody looks the same in both scenes."""
    still = [face_at(200)]
    first = picture_of(still, [GREY])
    second = torch.where(first == 30, 160, first)
    tracker = SceneTracker(finder=Scripted([still] * 24))  # type: ignore[arg-type]
    for picture in [first] * 12 + [second] * 12:
        tracker.add(picture)
    tracker.finish()
    assert tracker.cuts == [12]
    assert [track.frames for track in tracker.tracks()] == [range(12), range(12, 24)]
