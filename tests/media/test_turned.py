"""A video or a picture that lies on its side or stands on its head is told; one that shows nobody is not."""

from types import SimpleNamespace

import pytest
import torch
from face_pictures import GREY, drawn_person, placed

from diffsynth_omniavatar.media.faces.find import FaceFinder
from diffsynth_omniavatar.media.faces.turned import TurnWatch, turn_of, turned_video

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

PERSON = placed([(drawn_person(3, 120), 130, 90)], 200, 240)
NOBODY = torch.tensor(GREY, dtype=torch.uint8).expand(200, 240, 3)


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


def turn(finder: FaceFinder, pictures: list[torch.Tensor], seen: int = 0) -> int:
    """What a watch says of a video; in the first `seen` pictures the face is found at once."""
    watch = TurnWatch()
    for number, picture in enumerate(pictures):
        watch.add(picture, finder.faces(picture) if number < seen else [])
    return watch.turn(finder)


@pytest.mark.parametrize("turns", range(4))
def test_a_turned_video_is_told_with_the_turn_that_mends_it(finder: FaceFinder, turns: int) -> None:
    assert turn(finder, [torch.rot90(PERSON, -turns)]) == turns


def test_most_of_some_pictures_decide(finder: FaceFinder) -> None:
    turned = torch.rot90(PERSON, 2)
    assert turn(finder, [NOBODY, turned, turned]) == 2
    assert turn(finder, [NOBODY, turned]) == turn(finder, [PERSON, turned]) == turn(finder, [NOBODY]) == 0
    assert turn_of(finder, NOBODY) is None


def test_a_video_whose_faces_are_seen_well_is_not_turned(finder: FaceFinder) -> None:
    class Nothing:
        """Looks at nothing more."""

    watch = TurnWatch()
    for _ in range(3):
        watch.add(PERSON, finder.faces(PERSON))
    assert watch.turn(Nothing()) == 0  # type: ignore[arg-type]


def test_a_face_that_is_seen_nearly_as_well_as_it_lies_is_not_turned() -> None:
    """One that is tilted may be found only in the picture that is turned once."""

    class Tilted:
        def __init__(self, unturned: float) -> None:
            self.scores = [0.8, 0.2, 0.2, unturned]

        def faces(self, picture: torch.Tensor) -> list[SimpleNamespace]:
            return [SimpleNamespace(is_sure=True)] if len(picture) == 240 else []

        def standing(self, picture: torch.Tensor, face: SimpleNamespace) -> list[float]:
            return self.scores

    assert turn_of(Tilted(0.75), NOBODY) == 0  # type: ignore[arg-type]
    assert turn_of(Tilted(0.65), NOBODY) == 1  # type: ignore[arg-type]


def test_few_small_pictures_of_a_long_video_are_kept_from_all_over_it(finder: FaceFinder) -> None:
    watch = TurnWatch()
    large = torch.zeros(1300, 2600, 3, dtype=torch.uint8)
    for number in range(100):
        watch.add(torch.full_like(NOBODY, number) if number else large, [])
    kept = [int(picture[0, 0, 0]) for picture in watch._kept]
    assert 5 <= len(kept) <= 9 and kept == [*range(0, 100, kept[1])]
    assert max(picture.numel() for picture in watch._kept) <= 3 * 640 * 1280


def test_the_remedy_turns_the_other_way_for_the_other_side() -> None:
    assert "to the left" in turned_video(1) and "transpose=cclock" in turned_video(1)
    assert "upside down" in turned_video(2) and "hflip,vflip" in turned_video(2)
    assert "to the right" in turned_video(3) and "transpose=clock" in turned_video(3)
