"""Which files belong together, and what is told where they do not."""

from pathlib import Path

import pytest

from diffsynth_omniavatar.app.evaluate_pairs import pair_clips

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["made/a.mp4", "made/b.MOV", "made/notes.txt", "real/b.mp4", "real/a.webm", "real/a2.mp4", "speech/a.wav"]
    for name in [*names, "c.mp4"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()


def paired(*arguments: list[str]) -> list[tuple[str | None, ...]]:
    clips = pair_clips(*arguments)
    return [tuple(file and file.as_posix() for file in (clip.generated, clip.reference, clip.audio)) for clip in clips]


def test_folders_are_paired_by_name_whatever_the_ending():
    assert paired(["made"], ["real"]) == [("made/a.mp4", "real/a.webm", None), ("made/b.MOV", "real/b.mp4", None)]
    assert paired(["made/a.mp4"], ["real"], ["speech"]) == [("made/a.mp4", "real/a.webm", "speech/a.wav")]


def test_files_are_paired_in_their_order_and_one_serves_all():
    found = paired(["c.mp4", "made/a.mp4"], ["real/b.mp4", "real/a.webm"], ["speech/a.wav"])
    assert found == [("c.mp4", "real/b.mp4", "speech/a.wav"), ("made/a.mp4", "real/a.webm", "speech/a.wav")]


def test_a_table_names_files_beside_it(tmp_path: Path):
    table = tmp_path / "made" / "pairs.csv"
    table.write_text(f"generated,reference,portrait\na.mp4,../real/a.webm,\nb.MOV,,{tmp_path}/c.mp4\n")
    first, second = pair_clips(["made/pairs.csv"])
    assert (first.generated, first.reference, first.portrait) == (Path("made/a.mp4"), Path("made/../real/a.webm"), None)
    assert second.reference is None and second.portrait == tmp_path / "c.mp4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["none.mp4"],), "none.mp4 does not exist"),
        ((["speech"],), "speech has no files that end in .mp4"),
        ((["made"], ["speech"]), "speech has no files"),
        ((["c.mp4"], ["real"]), "--reference: there is no file named c for c.mp4"),
        ((["made", "c.mp4"], ["real/a.webm", "real/b.mp4"]), "--reference has 2 files for 3 videos"),
        ((["made"], [], ["c.mp4", "c.mp4", "c.mp4"]), "--audio has 3 files for 2 videos"),
        ((["pairs.csv"],), "pairs.csv does not exist"),
        ((["c.mp4", "pairs.csv"],), "pairs.csv is a table: give nothing else"),
        ((["pairs.csv"], ["real"]), "pairs.csv is a table: give nothing else"),
    ],
)
def test_what_does_not_fit_is_told(arguments: tuple[list[str], ...], message: str):
    with pytest.raises(ValueError, match=message):
        pair_clips(*arguments)


def test_two_files_of_one_name_are_told():
    Path("speech/a.mp3").touch()
    with pytest.raises(ValueError, match=r"speech/a.mp3 and speech/a.wav are both named as made/a.mp4"):
        pair_clips(["made/a.mp4"], [], ["speech"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("generated,sound\nc.mp4,x\n", "has the columns generated, sound; wanted generated, reference"),
        ("reference\nc.mp4\n", "the first filled in"),
        ("generated,reference\nc.mp4,\n,c.mp4\n", "line 3.*the first filled in"),
        ("generated\nd.mp4\n", "pairs.csv, line 2: d.mp4 does not exist"),
        ("generated\n", "pairs.csv has no rows"),
        ("generated,reference\nc.mp4\n", "line 2 has 1 field"),
        ("generated;reference\nc.mp4;c.mp4\n", "wanted commas"),
    ],
)
def test_faults_of_a_table_are_told(table: str, message: str):
    Path("pairs.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        pair_clips(["pairs.csv"])
