"""Files with values of flags: what cannot be meant is refused in one line that begins with the file."""

import json

import pytest

from diffsynth_omniavatar.system.flag_files import read_flag_file

BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"max_steps: [1, 2\nb: }\n", "is not valid YAML: .*line 2"),
        (b"a: 1\nmax_steps: \xff\n", "is not UTF-8: byte 0xff in line 2"),
        (b"max_steps: 3\nseed: 1\nmax_steps: 4\n", "max_steps stands there twice"),
        (BOMB.encode(), r"an alias, \*a"),
        (b"a: &a [*a]\n", r"an alias, \*a"),
        (b"a: " + b"[" * 5000, "nested too deep"),
        (b"a: 1\n" * 300_000, "has 1500000 bytes"),
        (b"- a\n", "holds a list, wanted lines like"),
        (b"a: !!python/object/apply:os.system [x]\n", "is not valid YAML"),
    ],
)
def test_faulty_yaml(tmp_path, content, message):
    path = tmp_path / "flags.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} [^\n]*{message}[^\n]*$"):
        read_flag_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON"), ("[" * 100_000, "nested too deep"), ('{"a": 1, "a": 2}', "a stands there twice")],
)
def test_faulty_json(tmp_path, content, message):
    path = tmp_path / "flags.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{path} [^\n]*{message}[^\n]*$"):
        read_flag_file(path)


def test_good_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, 2.5], "b": None}))
    (tmp_path / "a.yaml").write_text("a: [1, 2.5]\nb:\n")
    (tmp_path / "mark.json").write_text('{"a": [1, 2.5], "b": null}', encoding="utf-8-sig")
    assert read_flag_file(tmp_path / "mark.json") == {"a": [1, 2.5], "b": None}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_flag_file(tmp_path / "a.json") == read_flag_file(tmp_path / "a.yaml") == {"a": [1, 2.5], "b": None}
    assert read_flag_file(tmp_path / "empty.yaml") == {}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_flag_file(tmp_path / "nowhere")
