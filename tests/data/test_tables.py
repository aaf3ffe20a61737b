"""Tables in every form name the same clips; unusable ones are refused by name."""

import json
from pathlib import Path

import pytest
from synthetic_clips import write_table

from diffsynth_omniavatar.data.tables import read_clips

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_tables_in_every_form_name_the_same_clips(tmp_path: Path) -> None:
    rows = [{"video": f"{name}.mp4", "prompt": f"Speaks, {name}."} for name in "ab"]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    write_table(tmp_path / "t.csv", rows)
    wanted = read_clips(tmp_path / "t.csv")
    assert [clip.prompt for clip in wanted] == ["Speaks, a.", "Speaks, b."]
    assert wanted == read_clips(tmp_path / "t.json") == read_clips(tmp_path / "t.jsonl")
    assert read_clips(tmp_path / "t.csv", tmp_path / "videos")[0].video == tmp_path / "videos" / "a.mp4"
    assert read_clips(tmp_path / "t.csv", "")[0].video == tmp_path / "a.mp4"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.json", "{", "cannot be read"),
        ("t.json", "{}", "every row needs a `video`"),
        ("t.csv", "path,prompt\na.mp4,x\n", "every row needs a `video`"),
        ("t.csv", "video,prompt\n", "names no clip"),
        ("list.txt", "\n\n", "names no clip"),
    ],
)
def test_unusable_tables_are_refused_by_name(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*{words}"):
        read_clips(tmp_path / name)
    with pytest.raises(ValueError, match=r"nothing\.csv does not exist"):
        read_clips(tmp_path / "nothing.csv")
