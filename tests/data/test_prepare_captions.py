"""Captions of raw footage: what a program or a file says that is no caption is refused, and others keep theirs."""

import shlex
import sys
from pathlib import Path

import pytest

from diffsynth_omniavatar.data.prepare.captions import Captions
from diffsynth_omniavatar.data.prepare.records import ClipRecord

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def captioned(folder: Path, code: str, place: str = "{clip}") -> list[ClipRecord]:
    """Three clips; the program is Python code, and the first two have files beside them."""
    (folder / "a.txt").write_text("Of its\nown.")
    (folder / "b.txt").write_text("no words" * 2000)
    clips = [ClipRecord(name=name, source=str(folder / f"{name}.mp4"), start=0, frames=50) for name in "abcde"]
    command = shlex.join([sys.executable, "-ISc", f"import sys; print({code})", place])
    return Captions(command=command).write(clips, folder, lambda part: None)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("'a' * 10001", "a caption of 10001 characters"),
        (r"'\x1b[31mred'", r"control character '\x1b'"),
        ("' '", "printed nothing"),
        ("sys.stdin.read() or 1 / 0", "exit code 1: ZeroDivisionError"),
    ],
    ids=["long", "coloured", "nothing", "asks"],
)
def test_what_is_no_caption_is_refused(tmp_path: Path, code: str, words: str) -> None:
    first, second, third, *_ = captioned(tmp_path, code)
    assert first.prompt == "Of its own."
    assert "b.txt: a caption of 16000 characters" in second.reasons["caption"]
    assert words in third.reasons["caption"] and not third.prompt


def test_a_bad_line_of_many_leaves_the_others(tmp_path: Path) -> None:
    clips = captioned(tmp_path, r"'One\u2028line.\n\0\n\nThree.'", "{clips}")[2:]
    assert [clip.prompt for clip in clips] == ["One line.", "", "Three."]
    assert [list(clip.reasons) for clip in clips] == [[], ["caption"], []]


def test_a_program_that_is_stopped_has_not_worked_in_vain(tmp_path: Path) -> None:
    def stop(part: float) -> None:
        raise KeyboardInterrupt

    clips = [ClipRecord(name=name, source=f"{name}.mp4", start=0, frames=50) for name in "ab"]
    says = "import pathlib, sys; pathlib.Path(sys.argv[2]).open('a').write('x'); print('Said.')"
    captions = Captions(command=shlex.join([sys.executable, "-ISc", says, "{clip}", str(tmp_path / "asked")]))
    with pytest.raises(KeyboardInterrupt):
        captions.write(clips, tmp_path, stop)
    assert [clip.prompt for clip in captions.write(clips, tmp_path, lambda part: None)] == ["Said.", "Said."]
    assert (tmp_path / "asked").read_text() == "xx"
