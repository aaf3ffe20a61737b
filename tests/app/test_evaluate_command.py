"""`omniavatar evaluate` on small videos: what it writes, says and refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from media_files import write_greys

from diffsynth_omniavatar.app import evaluate as command
from diffsynth_omniavatar.app.cli import main
from diffsynth_omniavatar.metrics import groups

FREE = ["--figures", "stability,file", "--device", "cpu"]


@pytest.fixture(autouse=True)
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """made/a.mp4, made/<b>&'.mp4, made/other/a.mp4 and made/videos/a.mp4 of 6 frames."""
    monkeypatch.chdir(tmp_path)
    Path("made/other").mkdir(parents=True)
    Path("made/videos").mkdir()
    for name in ("made/a.mp4", "made/<b>&'.mp4", "made/other/a.mp4", "made/videos/a.mp4"):
        write_greys(Path(name), range(6), rate=25)


def figures(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "figures.json").read_text(encoding="utf-8"))


def test_a_folder_is_measured_and_told(capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", "made", "--out", "found", *FREE]) == 0
    said = capsys.readouterr()
    assert re.search(r"^frame_rate +25 +25 +2$", said.out, re.MULTILINE)
    assert "clip 2 of 2, made/a.mp4: " in said.err
    found = figures("found")
    assert found["summary"]["frame_rate"] == {"mean": 25, "median": 25, "clips": 2}
    assert found["clips"][1]["files"] == {"generated": "made/a.mp4"} and found["protocol"]["frame_rate"] == 25
    assert found["clips"][1]["values"]["sound_offset"] is None
    assert found["clips"][1]["missing"] == dict.fromkeys(("sound_offset", "sound_duration"), "there is no sound")
    assert "not in 2 of 2 clips: sound_offset, sound_duration: there is no sound" in said.out
    rows = Path("found/clips.csv").read_text().splitlines()
    assert rows[0].startswith("clip,sharpness,") and rows[1].startswith("made/<b>&'.mp4,") and len(rows) == 3
    assert not Path("found/.lock").exists()


def test_the_page_has_all_videos_and_no_name_is_taken_for_html():
    main(["evaluate", "made", "--out", "found", "--reference", "made", *FREE])
    main(["evaluate", "made", "--out", "found", *FREE])
    page = Path("found/report.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "made/&lt;b&gt;" in page
    content = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [clip["name"] for clip in content["clips"]] == ["made/<b>&'.mp4", "made/a.mp4"]
    assert sorted(path.name for path in Path("found/videos").iterdir()) == ["0000_generated.mp4", "0001_generated.mp4"]
    assert content["clips"][0]["videos"] == [["generated", "videos/0000_generated.mp4"]]
    assert len(content["clips"][0]["curves"]["brightness"]) == 6


def test_a_clip_that_fails_is_listed_and_the_exit_code_tells(capsys: pytest.CaptureFixture[str]):
    Path("made/bad.mp4").write_bytes(b"")
    assert main(["evaluate", "made", "--out", "found", *FREE]) == 1
    said = capsys.readouterr()
    assert said.err.index("made/bad.mp4: failed: ") < said.err.index("made/a.mp4: ")
    assert "failed: made/bad.mp4: " in said.out and list(figures("found")["failed"]) == ["made/bad.mp4"]
    assert "made/bad.mp4 failed" in Path("found/report.html").read_text()


def test_an_interrupt_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(self: groups.Group) -> groups.Measured:
        if self.clip.files.generated.name == "a.mp4":
            raise KeyboardInterrupt
        return groups.Measured(values={"frame_rate": 25.0})

    monkeypatch.setattr(groups.FileGroup, "result", interrupted)
    assert main(["evaluate", "made", "--out", "found", "--figures", "file"]) == 130
    assert "1 measured clip of 2 written to found" in capsys.readouterr().err
    found = figures("found")
    assert [clip["files"]["generated"] for clip in found["clips"]] == ["made/<b>&'.mp4"]
    assert found["failed"] == {"made/a.mp4": "not measured: interrupted"} and Path("found/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give videos to measure, or --compare A B, or --checkpoints RUN, or --nano"),
        (["made", "--compare", "x", "y"], "give videos to measure, or --compare"),
        (["--compare", "x", "y", "--reference", "made"], "--reference and --audio belong to videos"),
        (["none.mp4"], "none.mp4 does not exist"),
        (["made", "--figures", "lip"], "there are no figures lip; wanted some of lips, motion"),
        (["made", "--figures", "sync,fid"], "nothing can be measured: sync: needs --syncnet_path"),
        (["made", "--syncnet_path", "none.model"], "none.model does not exist or is no file; get syncnet_v2.model"),
        (["made", "--device", "cuda:99"], "device 'cuda:99': PyTorch sees"),
        (["made", "--out", "made/a.mp4"], "made/a.mp4 is no folder"),
        (["--compare", "made", "made"], "made has no figures.json"),
        (["made", "--workers", "0"], "--workers is 0, wanted 1 or more"),
        (["--nano", "--workers", "2"], "--workers belongs to videos that are measured"),
        (["made/videos", "--out", "made"], "made/videos/a.mp4 lies where the report has its videos"),
    ],
)
def test_wrong_requests_are_told_before_anything_is_measured(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("diffsynth_omniavatar.metrics.evaluate.open_all", None)
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err and not Path("evaluation").exists()


def write_run(folder: str, values: dict[str, float | None], **protocol: Any) -> None:
    Path(folder).mkdir()
    clips = [{"files": {"generated": f"{folder}-videos/{name}"}, "values": {"lmd": x}} for name, x in values.items()]
    content = {"clips": clips, "summary": {"fid": {"value": 30.0}, "lmd": {"mean": 1}}, "protocol": protocol}
    Path(folder, "figures.json").write_text(json.dumps(content))


def test_runs_are_compared_by_the_paths_of_their_clips(capsys: pytest.CaptureFixture[str]):
    write_run("one", {"x/talk.mp4": 1.0, "y/talk.mp4": 5.0, "z/talk.mp4": None, "only.mp4": 1.0})
    write_run("two", {"y/talk.mp4": 6.0, "x/talk.mp4": 2.0, "z/talk.mp4": 3.0})
    assert main(["evaluate", "--compare", "one", "two", "--out", "found"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^lmd +3 +4 +1   1 to 1 \*$", said, re.MULTILINE)
    assert re.search(r"^fid +30 +30 +0 ", said, re.MULTILINE) and "only in A: 1 clip (only.mp4)" in said
    written = json.loads(Path("found/compare.json").read_text())["differences"]["lmd"]
    assert written["clips"] == 2 and written["difference"] == 1


def test_runs_that_were_measured_differently_are_not_compared(capsys: pytest.CaptureFixture[str]):
    write_run("one", {"a.mp4": 1.0}, face_size=256, weights={"sync": "abc"})
    write_run("two", {"a.mp4": 1.0}, face_size=256, weights={"sync": "def"})
    write_run("old", {"a.mp4": 1.0}, face_size=128, weights={})
    Path("other").mkdir()
    Path("other/figures.json").write_text("[]")
    for second, message in {
        "two": "sync is 'abc' in the first and 'def' in the second",
        "old": "face_size is 256 in the first and 128 in the second",
        "other": "was not written by `omniavatar evaluate GENERATED`",
    }.items():
        assert main(["evaluate", "--compare", "one", second]) == 2
        assert message in capsys.readouterr().err


def test_two_runs_do_not_write_to_one_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def busy(_: Path) -> None:
        raise ValueError("found is in use by another run")

    monkeypatch.setattr(command, "reserved", busy)
    assert main(["evaluate", "made", "--out", "found", *FREE]) == 2
    assert "in use by another run" in capsys.readouterr().err
