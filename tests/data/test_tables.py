"""Tables in every form name the same clips; unusable ones are refused by name."""

import json
from pathlib import Path

import pytest
from data_clips import RECIPE, SETTINGS
from synthetic_clips import write_table

from diffsynth_omniavatar.data.scan import check_dataset
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
    (tmp_path / "videos").mkdir()
    assert read_clips(tmp_path / "t.csv", tmp_path / "videos")[0].video == tmp_path / "videos" / "a.mp4"
    assert read_clips(tmp_path / "t.csv", "")[0].video == tmp_path / "a.mp4"


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "list.txt"])
def test_a_byte_order_mark_and_ends_of_lines_of_windows_are_no_content(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    texts = {
        "t.csv": "video,prompt\na,x",
        "t.json": '[{"video": "a", "prompt": "x"}]',
        "t.jsonl": '{"video": "a", "prompt": "x"}',
        "list.txt": "a",
    }
    (tmp_path / name).write_bytes((texts[name] + "\n").replace("\n", "\r\n").encode("utf-8-sig"))
    (clip,) = read_clips(tmp_path / name)
    assert clip.name == "a" and clip.prompt == (None if name == "list.txt" else "x")


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl"])
def test_a_prompt_keeps_every_character(tmp_path: Path, name: str) -> None:
    prompts = [f"one{mark}two, three" for mark in "\u2028\u2029\u0085\v\x0c\x1c\u00a0\"'"]
    rows = [{"video": "a.mp4", "prompt": prompt} for prompt in prompts]
    if name == "t.csv":
        write_table(tmp_path / name, rows)
    else:
        texts = [json.dumps(row, ensure_ascii=False) for row in rows]
        if name == "t.json":
            (tmp_path / name).write_text(f"[{','.join(texts)}]", encoding="utf-8")
        else:  # JSON escapes control characters, but neither U+2028 nor U+0085
            (tmp_path / name).write_text("\n".join(texts), encoding="utf-8")
    assert [clip.prompt for clip in read_clips(tmp_path / name)] == prompts


ROW = '{"video": "a.mp4", "prompt": "x"'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.json", "{", "is not valid JSON"),
        ("t.json", "{}", "every row needs a `video`"),
        ("t.json", "[" * 100_000, "nested too deep"),
        ("t.json", "[5]", "row 1: a int in place of an object"),
        ("t.json", f"[{ROW}}}, {ROW}, {ROW[1:]}}}]", "prompt stands there twice|is not valid JSON"),
        ("t.json", '[{"video": "a.mp4", "prompt": 5}]', "row 1: prompt is 5, a int"),
        ("t.json", f'[{ROW}, "audio": 5}}]', "row 1: audio is 5, a int"),
        ("t.json", f'[{ROW}}}, {ROW}, "mask": ["m.png"]}}]', r"row 2: mask is \['m.png'\], a list"),
        ("t.json", f'[{ROW}, "reference": {{"a": 1}}}}]', "row 1: reference is {'a': 1}, a dict"),
        ("t.json", '[{"video": true, "prompt": "x"}]', "row 1: video is True, a bool"),
        ("t.json", '[{"video": "a.mp4", "prompt": "\\ud800"}]', "row 1: prompt has half of a surrogate pair"),
        ("t.jsonl", f"{ROW}}}\n\n{ROW}\n", "line 3, is not valid JSON"),
        ("t.jsonl", f"{ROW}}}\n{'[' * 100_000}", "line 2, .*nested too deep"),
        ("t.jsonl", f'{ROW}, "prompt": "y"}}', "line 1, .*prompt stands there twice"),
        ("t.csv", "path,prompt\na.mp4,x\n", "line 2: no video; it has 'path', 'prompt'.*every row needs a `video`"),
        ("t.csv", "video_path,prompt\na.mp4,x\n", "did you mean to call 'video_path' 'video'"),
        ("t.csv", "Video,prompt\na.mp4,x\n", "a column 'Video', did you mean 'video'"),
        ("t.csv", "video, prompt\na.mp4,x\n", "a column ' prompt', did you mean 'prompt'"),
        ("t.csv", "video,prompt,audios\na.mp4,x,\n", "a column 'audios', did you mean 'audio'"),
        ("t.csv", "video;prompt\na.mp4;x, y\n", "has ';' between its columns, wanted commas"),
        ("t.csv", "video,prompt,video\na.mp4,x,b.mp4\n", "has the column video twice"),
        ("t.csv", "video,prompt\n", "names no clip"),
        (
            "t.csv",
            "video,prompt\na.mp4,x\nb.mp4,blue, red\n\nc.mp4\n",
            "line 3 has 3 fields; line 5 has 1 fields; .* 2",
        ),
        ("t.csv", 'video,prompt\na.mp4,"two\nlines"\nb.mp4,blue, red\n', "line 4 has 3 fields"),
        ("t.csv", 'video,prompt\na.mp4,"never closed\nb.mp4,x\n', "line 3: unexpected end"),
        ("t.csv", "video,prompt\n" + "a.mp4\n" * 8, "line 6 has 1 fields; and 3 more"),
        ("list.txt", "\n\n", "names no clip"),
        ("x.mp4", "any", "is no list of clips, it seems to be a file of video; wanted a table"),
        ("x.png", "any", "it seems to be a file of image"),
    ],
)
def test_unusable_tables_are_refused_by_name(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*({words})"):
        read_clips(tmp_path / name)
    with pytest.raises(ValueError, match=r"nothing\.csv does not exist"):
        read_clips(tmp_path / "nothing.csv")


def test_a_list_of_videos_is_told_what_belongs_in_it(tmp_path: Path) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "list.txt").write_text("prepared\n\nb.mp4\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 3: b\.mp4 is a file, .* videos belong in a table"):
        read_clips(tmp_path / "list.txt")


def test_a_folder_with_a_table_is_told_from_a_cache(tmp_path: Path) -> None:
    table = write_table(tmp_path / "metadata.csv", [])
    with pytest.raises(ValueError, match=rf"is no cache; .* give {table}"):
        read_clips(tmp_path)


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "list.txt"])
def test_a_table_that_is_not_utf_8_is_named_with_the_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"video,prompt\na.mp4,caf\xe9\n")
    with pytest.raises(ValueError, match=f"{name} is not UTF-8: byte 0xe9 in line 2"):
        read_clips(tmp_path / name)


def test_other_columns_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("video_id,video,prompt,task,duration\n7,a.mp4,x,y,3\n")
    (clip,) = read_clips(tmp_path / "t.csv")
    assert clip.prompt == "x"


def test_a_base_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"video": "a.mp4", "prompt": "x"}])
    with pytest.raises(ValueError, match=r"elsewhere, from which the paths in .*t\.csv start, is no folder"):
        read_clips(tmp_path / "t.csv", tmp_path / "elsewhere")


def test_a_name_that_no_file_can_have_is_a_fault_of_its_clip(tmp_path: Path) -> None:
    rows = [{"video": "a" * 5000, "prompt": "x"}, {"video": "a\0b", "prompt": "x", "audio": "b" * 5000}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    faults = check_dataset(read_clips(tmp_path / "t.json"), SETTINGS, RECIPE)
    assert {fault.index for fault in faults} == {0, 1}
