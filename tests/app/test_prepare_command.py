"""`omniavatar prepare` counts, makes, and sums up."""

from pathlib import Path

import pytest
from prepare_looks import look, track
from synthetic_clips import noise, write_levels

from diffsynth_omniavatar.app.cli import main
from diffsynth_omniavatar.data.prepare import process

SPOKEN = [range(8, 22)]


def test_the_command_counts_makes_and_sums_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    write_levels(raw / "good.mp4", 40, sound=noise(40 / 25))
    (raw / "empty.mp4").write_bytes(b"")
    look_at = process.look_at
    seen = look(40, [track(range(40), 16, 14, 10, SPOKEN)], SPOKEN, size=(32, 32))
    monkeypatch.setattr(process, "look_at", lambda path, tell: seen if path.stem == "good" else look_at(path, tell))
    command = ["prepare", str(raw), "--out", str(out), "--mode", "i2v", "--workers", "1", "--height", "32"]
    command += [
        "--width",
        "32",
        "--min_seconds",
        ".4",
        "--min_face_size",
        "5",
        "--max_enlargement",
        "9",
        "--min_speech_share",
        ".2",
    ]
    assert main([*command, "--dry_run"]) == 0 and not out.exists()
    assert "2 files, 0.00 hours; 1 file cannot be used; 0 finished" in capsys.readouterr().out
    assert main(command) == 0
    said = capsys.readouterr()
    assert "1 clip kept" in said.out and "1 rejected" in said.out and "the file cannot be read" in said.out
    assert "1 of 2: " in said.err and "cannot be read" in said.err
    assert main([*command, "--min_face_size", "30"]) == 1
    assert main([*command, "--width", "33"]) == 2
    capsys.readouterr()
    for flag, value in (("--min_seconds", "nan"), ("--max_seconds", "inf"), ("--min_face_size", "nan")):
        assert main([*command, flag, value]) == 2
        assert f"{flag[2:]} is {value}" in capsys.readouterr().err
