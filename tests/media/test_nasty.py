"""The nasty files are what they are said to be: each can be read, or is refused by name with its reason."""

from pathlib import Path

import pytest
from nasty import Nasty, drawn_people, write_nasty

from diffsynth_omniavatar.media.sound import load_sound
from diffsynth_omniavatar.media.video import iter_frames, probe_video

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

UPRIGHT = {"anamorphic.mp4": (64, 64), "rotated.mp4": (64, 64), "4k.mp4": (2160, 3840), "odd.mkv": (57, 43)}
"""Height and width of some of them as they are seen."""


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Nasty]]:
    folder = tmp_path_factory.mktemp("raw")
    return folder, write_nasty(folder, drawn_people(12, 64))


def read(path: Path) -> None:
    """Read all pictures and the sound."""
    for _ in iter_frames(path):
        pass
    load_sound(path)


def test_there_are_forty(nasty: tuple[Path, list[Nasty]]) -> None:
    folder, files = nasty
    assert sorted(file.name for file in files) == sorted(path.name for path in folder.iterdir())
    assert len(files) == 40


def test_each_is_read_or_refused_for_its_reason(nasty: tuple[Path, list[Nasty]]) -> None:
    folder, files = nasty
    for file in files:
        if file.fault:
            with pytest.raises(ValueError, match=f"^{folder / file.name}: .*({file.fault})"):
                read(folder / file.name)
        else:
            read(folder / file.name)


def test_they_are_seen_upright_with_square_pixels(nasty: tuple[Path, list[Nasty]]) -> None:
    folder, _ = nasty
    infos = {name: probe_video(folder / name) for name in UPRIGHT}
    assert {name: (info.height, info.width) for name, info in infos.items()} == UPRIGHT
