"""Results of `omniavatar evaluate` as tables of the page, whatever lies in their folders."""

import json

import pytest

from diffsynth_omniavatar.app.evaluate_compare import FIGURES_FILE, read_comparison
from diffsynth_omniavatar.app.page.evaluations import (
    COMPARISON_HEAD,
    SUMMARY_HEAD,
    common_clips,
    comparison_rows,
    evaluation_folder,
    evaluations,
    read_tables,
    videos_of,
)
from diffsynth_omniavatar.app.page.readable import Readable

pytestmark = pytest.mark.one_host("files that other commands wrote")

NASTY = "<img src=x onerror=alert(1)>.mp4"


def content(clips):
    return {
        "protocol": {"frames": 25},
        "summary": {"sync_c": {"mean": 4.0, "median": 4.0, "worst": 3.0, "worst_clip": "a", "clips": 2}},
        "missing": {"fid": "weights"},
        "failed": {NASTY: "no video"},
        "warnings": ["careful"],
        "clips": [{"files": {"generated": f"/v/{name}"}, "values": values, "missing": {}} for name, values in clips],
    }


def write(folder, what):
    folder.mkdir(parents=True)
    (folder / FIGURES_FILE).write_text(json.dumps(what))
    return folder


@pytest.fixture
def two(tmp_path):
    first = [(f"{number}.mp4", {"sync_d": 8.0 + number, "odd": 1.0, "empty": None}) for number in range(5)]
    second = [(f"{number}.mp4", {"sync_d": 6.0 + number, "odd": 1.0}) for number in range(1, 6)]
    return write(tmp_path / "data/a", content(first)), write(tmp_path / "data/deep/b", content(second))


def test_tables_of_an_evaluation(two):
    found = read_tables(two[0])
    assert found.summary == [["sync_c", "4", "4", "3", "higher", found.summary[0][5]]]
    assert len(found.summary[0]) == len(SUMMARY_HEAD)
    assert found.figures == ["sync_d", "odd"] and found.clips[1] == ["1.mp4", "9", "1"]
    assert found.notes == ["fid is missing: weights", f"{NASTY} failed: no video", "careful"]


def test_paired_differences_say_which_is_better(two):
    compared = read_comparison(*two)
    rows = {row[0]: row for row in comparison_rows(compared)}
    assert all(len(row) == len(COMPARISON_HEAD) for row in rows.values())
    assert rows["sync_d"][3:] == ["-2", "-2 to -2", "B is better"]
    assert rows["odd"][-1] == "no clear difference"
    assert common_clips(compared) == ["1.mp4", "2.mp4", "3.mp4", "4.mp4"]


def test_curves_of_an_evaluation_of_checkpoints(tmp_path):
    steps = [{"step": step, "figures": {"validation_loss": 1 / step, "none": None}} for step in (1, 2)]
    found = read_tables(write(tmp_path / "c", {"run": "r", "checkpoints": steps, "best": {"validation_loss": 2}}))
    assert len(found.curves) == 1 and found.summary[0][4] == "best at step 2"


def test_evaluations_are_found_in_the_folders_that_may_be_read(two, tmp_path):
    readable = Readable([tmp_path / "data", tmp_path / "nowhere"])
    assert evaluations(readable) == [str(folder) for folder in two]
    assert evaluation_folder(two[0] / FIGURES_FILE) == two[0]
    with pytest.raises(ValueError, match=r"has no figures\.json"):
        evaluation_folder(tmp_path)


def test_videos_are_those_beside_the_report(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("0001_generated.mp4", "0001_reference.html", "0002_generated.mp4", "0002_reference.MOV"):
        (tmp_path / "videos" / name).touch()
    assert [title for title, _ in videos_of(tmp_path, 1)] == ["generated"]
    assert [path.name for _, path in videos_of(tmp_path, 2)] == ["0002_generated.mp4", "0002_reference.MOV"]
    assert videos_of(tmp_path, 0) == [] == videos_of(tmp_path / "nowhere", 1)


GOOD = content([("a.mp4", {"sync_d": 1.0})])


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"checkpoints": 3}',
        '{"checkpoints": [{"step": "x", "figures": {}}], "best": {}}',
        *(
            json.dumps({**GOOD, name: value})
            for name in GOOD
            if name != "protocol"
            for value in (None, 3, [3], {"a": 3})
        ),
        json.dumps({**GOOD, "clips": [{"files": {"generated": 3}, "values": {"a": "<b>"}}]}),
    ],
)
def test_damaged_results_break_nothing_and_are_told(tmp_path, damaged):
    (tmp_path / FIGURES_FILE).write_text(damaged)
    try:
        read_tables(tmp_path)
    except ValueError as error:
        assert FIGURES_FILE in str(error)
