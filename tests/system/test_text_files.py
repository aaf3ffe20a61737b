"""A text file that users write is read by its lines, or refused in one line that names it."""

from pathlib import Path

import pytest

from diffsynth_omniavatar.system.text_files import parse_json, read_lines, read_text

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

INSIDE = "one\u2028two\u2029three\u0085four\vfive\x0csix\x1cseven\x1deight\x1enine"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_only_an_end_of_line_ends_a_line(tmp_path: Path, end: str, encoding: str) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(end.join([f" {INSIDE} ", "", "\t", "last"]).encode(encoding))
    assert read_lines(path) == [(1, INSIDE), (4, "last")]


def test_a_file_that_is_not_utf_8_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("eins\nzwei\nfünf\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"^{path} is not UTF-8: byte 0xfc in line 3"):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "line 1"), ("[" * 100_000, "nested too deep"), ('{"a": 1, "a": 2}', "a stands there twice"), ("", "line 1")],
)
def test_faulty_json_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^the table is not valid JSON: .*{words}"):
        parse_json(text, "the table")
