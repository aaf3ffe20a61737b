"""The report's page has all clips with their figures and reasons, whatever they are called."""

import dataclasses
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffsynth_omniavatar.data.figure_rules import faults
from diffsynth_omniavatar.data.prepare import report
from diffsynth_omniavatar.data.prepare.clip_rules import clip_rules
from diffsynth_omniavatar.data.prepare.records import OTHER_REASONS, ClipRecord, SourceRecord

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

RULES = clip_rules("v2v")
NASTY = '</script><img src=x onerror=alert(1)> & "a, b" \u2028 日本 \udcff'


def record(name: str = "clip", figures: dict[str, float] | None = None, **changes: Any) -> ClipRecord:
    figures = {"face_size": 200.0} if figures is None else figures
    reasons = {**changes.pop("reasons", {}), **faults(figures, RULES)}
    return ClipRecord(name=name, source="a.mp4", start=50, frames=100, figures=figures, reasons=reasons, **changes)


def source(*clips: ClipRecord, path: str = "a.mp4", **changes: Any) -> SourceRecord:
    return SourceRecord(path=path, size=1, modified_ns=0, clips=clips, **changes)


class Scripts(HTMLParser):
    """The page's tags outside scripts, and the data that its script reads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.data, self.is_data = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)
        self.is_data = ("id", "report") in attributes

    def handle_data(self, data: str) -> None:
        if self.is_data:
            self.data += data


def written(folder: Path, *sources: SourceRecord) -> dict[str, Any]:
    report.write_report(folder, sources, RULES, "v2v")
    parser = Scripts((folder / "report.html").read_text(encoding="utf-8"))
    assert "img" not in parser.tags
    return json.loads(parser.data)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    clip = dataclasses.replace(record(NASTY, prompt=NASTY, video=f"clips/{NASTY}.mp4"), source=NASTY)
    data = written(tmp_path, source(clip, path=NASTY))
    (shown,) = data["clips"]
    assert shown["name"] == shown["source"] == shown["prompt"] == data["sources"][0][0] == NASTY


def test_figures_that_were_not_measured_are_none(tmp_path: Path) -> None:
    data = written(tmp_path, source(record(figures={"face_size": 123.4567891, "sharpness": math.nan})))
    figures = dict(zip([rule["figure"] for rule in data["rules"]], data["clips"][0]["figures"], strict=True))
    assert figures.pop("face_size") == 123.457 and set(figures.values()) == {None}
    # Nobody can move a bound so that what is no number keeps it.
    assert list(data["clips"][0]["fixed"]) == ["sharpness"]


def test_reasons_of_no_figure_stay(tmp_path: Path) -> None:
    small = record(figures={"face_size": 20.0}, reasons={"no_speech": OTHER_REASONS["no_speech"]})
    data = written(tmp_path, source(small, record("b")))
    assert [clip["fixed"] for clip in data["clips"]] == [{"no_speech": "nobody speaks"}, {}]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 clips are kept, 0:04 of 0:08 minutes" in text


def test_files_of_which_nothing_is_used_have_their_reason(tmp_path: Path) -> None:
    good = source(record(), seconds=10.0, height=1920, width=1080, frame_rate=29.97, scenes=2, tracks=1)
    data = written(tmp_path, good, source(path="b.mp4", reasons={"unreadable": "b.mp4: cannot be read"}))
    assert data["sources"] == [
        ["a.mp4", "1080x1920", "29.97", "10.0", "2", "1", "0.0", "1 of 1", ""],
        ["b.mp4", "", "", "", "", "", "", "0 of 0", "b.mp4: cannot be read"],
    ]
    assert data["unused"] == {"unreadable": 1}


def test_pictures_of_large_sets_stay_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strips").mkdir()
    Image.new("RGB", (64, 8)).save(tmp_path / "strips" / "a b.jpg")
    sources = source(record(strip="strips/a b.jpg"), record("b", strip="strips/gone.jpg"))
    inside = [clip["strip"] for clip in written(tmp_path, sources)["clips"]]
    assert inside[0].startswith("data:image/jpeg;base64,") and inside[1] is None
    monkeypatch.setattr(report, "MOST_EMBEDDED", 10)
    assert [clip["strip"] for clip in written(tmp_path, sources)["clips"]] == ["strips/a%20b.jpg", None]
