"""Faces are found wherever they lie and whatever their size, nothing else is, and their figures mean what they say."""

import hashlib
import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from face_pictures import drawn_person, head_of, moved, pictures_without_faces, placed
from PIL import Image, ImageOps

from diffsynth_omniavatar.media.faces.face import POINTS, Face
from diffsynth_omniavatar.media.faces.find import FaceFinder
from diffsynth_omniavatar.media.faces.measures import LEFT_EYE, RIGHT_EYE
from diffsynth_omniavatar.media.faces.networks import WEIGHTS
from diffsynth_omniavatar.media.video import read_frames

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

MIDDLE = (320, 180)


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


@pytest.fixture(scope="module")
def woman(shared_data: Path) -> torch.Tensor:
    """The first frames of a real clip."""
    return read_frames(shared_data / "talking_heads" / "demo1_video.mp4", count=9)


@pytest.fixture(scope="module", params=["drawn", "real"])
def person(request: pytest.FixtureRequest) -> Image.Image:
    """Somebody's head in a square of 192 pixels; half of it is the face."""
    if request.param == "drawn":
        return drawn_person(4)
    return head_of(request.getfixturevalue("woman")[0], "demo1_video")


def only(faces: list[Face]) -> Face:
    sure = [face for face in faces if face.is_sure]
    assert len(sure) == 1, f"{len(sure)} faces"
    return sure[0]


def places(face: Face) -> np.ndarray:
    assert face.points is not None
    return face.points[:, :2].numpy().astype(np.float64)


def between_eyes(face: Face) -> float:
    points = places(face)
    return float(np.linalg.norm(points[list(LEFT_EYE)].mean(0) - points[list(RIGHT_EYE)].mean(0)))


def around_middle(degrees: float, scale: float, right: float = 0, down: float = 0) -> np.ndarray:
    angle = math.radians(degrees)
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.c_[turn, MIDDLE + np.array([right, down]) - turn @ MIDDLE]


def test_weights_are_the_published_ones() -> None:
    listed = dict(reversed(line.split()) for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines())
    networks = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in WEIGHTS.glob("*.tflite")}
    assert networks == listed and len(networks) == 2


def test_landmarks_follow_the_picture(finder: FaceFinder, person: Image.Image) -> None:
    """Moved, scaled, rotated: by less than 5 % of the distance between the eyes on average, the angles by 4 degrees."""
    picture = placed([(person, *MIDDLE)])
    face = only(finder.faces(picture))
    for matrix in (around_middle(0, 1, 40, -30), around_middle(0, 1.5), around_middle(-35, 0.8, 10, -5)):
        seen = only(finder.faces(moved(picture, matrix)))
        expected = places(face) @ matrix[:, :2].T + matrix[:, 2]
        assert np.linalg.norm(places(seen) - expected, axis=1).mean() < 0.05 * between_eyes(seen)
        rotation = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))
        assert (seen.yaw, seen.pitch, seen.roll) == pytest.approx((face.yaw, face.pitch, face.roll + rotation), abs=4)
        assert seen.openness == pytest.approx(face.openness, abs=0.05)
        assert seen.width == pytest.approx(face.width, rel=0.08)
        assert seen.nose_offset == pytest.approx(face.nose_offset, abs=0.08)


def test_left_and_right_are_the_pictures(finder: FaceFinder, person: Image.Image) -> None:
    face = only(finder.faces(placed([(person, *MIDDLE)])))
    mirrored = only(finder.faces(placed([(ImageOps.mirror(person), *MIDDLE)])))
    for seen in (face, mirrored):
        (left, _), (right, _), (nose, nose_y) = seen.anchors
        assert left < nose < right and nose_y > max(seen.anchors[0][1], seen.anchors[1][1])
    assert (mirrored.yaw, mirrored.roll) == pytest.approx((-face.yaw, -face.roll), abs=6)
    assert mirrored.nose_offset == pytest.approx(-face.nose_offset, abs=0.08)


def test_face_is_measured_where_it_lies(finder: FaceFinder, person: Image.Image) -> None:
    face = only(finder.faces(placed([(person, 200, 150)])))
    assert face.points is not None and face.points.shape == (POINTS, 3) and face.points.dtype == torch.float32
    left, top, right, bottom = face.box
    assert 104 < left < right < 296 and 54 < top < bottom < 246 and right - left == pytest.approx(bottom - top)
    assert face.without_points().points is None and face.without_points().box == face.box


def test_mouth_is_measured(finder: FaceFinder, woman: torch.Tensor) -> None:
    """She opens it in frame 2 and shuts it in frame 8."""
    opened, shut = only(finder.faces(woman[2])), only(finder.faces(woman[8]))
    assert shut.openness < 0.08 < 0.15 < opened.openness


@pytest.mark.parametrize("side", [170, 500, 1200])
def test_large_faces_are_found(finder: FaceFinder, person: Image.Image, side: int) -> None:
    """Of a head that is a sixth of the picture, half of it, and more than it."""
    large = person.resize((side, side))
    face = only(finder.faces(placed([(large, 300, 550)], 960, 540)))
    assert 0.35 * side < face.size < 0.75 * side


@pytest.mark.parametrize("side", [66, 140])
def test_small_faces_are_found(finder: FaceFinder, woman: torch.Tensor, side: int) -> None:
    """Of 30 and 66 pixels in a picture of 1920."""
    face = only(finder.faces(placed([(head_of(woman[0], "demo1_video", side), 480, 1150)], 1920, 1080)))
    assert 0.35 * side < face.size < 0.75 * side


def test_followed_face_is_the_detected_one(finder: FaceFinder, person: Image.Image) -> None:
    faces = finder.faces(placed([(person, 300, 170)]))
    picture = placed([(person, 306, 174)])
    followed, fresh = only(finder.follow(picture, faces)), only(finder.faces(picture))
    assert np.linalg.norm(places(followed) - places(fresh), axis=1).mean() < 0.03 * between_eyes(fresh)
    assert finder.follow(placed([]), faces) == []
    elsewhere = only(finder.follow(placed([(person, 540, 250)]), faces))
    assert elsewhere.box[0] > 440


def test_two_faces_are_two(finder: FaceFinder, person: Image.Image) -> None:
    picture = placed([(person, 150, 180), (drawn_person(5, 128), 480, 180)])
    faces = finder.faces(picture)
    assert len(faces) == 2 and faces[0].size > faces[1].size and faces[0].box[2] < 320 < faces[1].box[0]
    assert len(finder.follow(picture, faces)) == 2


@pytest.mark.parametrize("size", [(180, 320), (256, 256), (360, 240)])
def test_nothing_else_is_a_face(finder: FaceFinder, size: tuple[int, int]) -> None:
    for name, picture in pictures_without_faces(np.random.default_rng(sum(size)), *size).items():
        assert not any(face.is_sure for face in finder.faces(picture)), name


def test_people_without_their_faces_have_none(finder: FaceFinder, woman: torch.Tensor) -> None:
    for part in (woman[0, 900:], woman[0, :470], woman[0, :, :350], woman[0, :, 750:]):
        assert not any(face.is_sure for face in finder.faces(part))


@pytest.mark.parametrize("size", [(1, 1), (17, 1000), (1000, 17), (2, 3), (3001, 1999)])
def test_pictures_of_any_size(finder: FaceFinder, size: tuple[int, int]) -> None:
    assert finder.faces(torch.full((*size, 3), 90, dtype=torch.uint8)) == []


@pytest.mark.parametrize(
    "picture",
    [torch.zeros(8, 8, 3), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(0, 8, 3, dtype=torch.uint8)],
)
def test_other_pictures_are_refused(finder: FaceFinder, picture: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"picture is torch\.\w+ \[.*\]; faces are looked for in torch.uint8"):
        finder.faces(picture)


def test_same_picture_same_figures(person: Image.Image) -> None:
    picture = placed([(person, *MIDDLE)])
    one, other = (only(FaceFinder(threads).faces(picture)) for threads in (1, 2))
    assert torch.equal(one.points, other.points) and one.anchors == other.anchors
    assert astuple(one)[0] == astuple(other)[0]


def test_networks_say_nothing(capfd: pytest.CaptureFixture[str], finder: FaceFinder) -> None:
    finder.faces(placed([]))
    FaceFinder()
    assert capfd.readouterr() == ("", "")
