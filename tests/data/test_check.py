"""All processes get the same scan; a check lists all faults of all clips."""

import argparse
import struct
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import av
import numpy as np
import pytest
import torch
from data_clips import RECIPE, SETTINGS, C, FakeClip, draw, fill, make, numbered
from safetensors import SafetensorError
from synthetic_clips import noise, write_levels, write_prepared, write_table

from diffsynth_omniavatar.data import check, scan
from diffsynth_omniavatar.data.clips import BadSampleError, ClipSettings, ClipSource
from diffsynth_omniavatar.data.scan import check_dataset, scan_clips
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.model.config import Conventions

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_all_processes_get_the_same_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [FakeClip(name=f"clip{index}", faults=("bad",) * (index in (2, 5))) for index in range(7)]
    alone = scan_clips(clips, SETTINGS, RECIPE)
    assert alone.bad_clips == 2 and [fault.index for fault in alone.faults] == [2, 5]
    rank, shares, all_done = threading.local(), {}, threading.Barrier(3, timeout=60)

    def gather(share: Any) -> list[Any]:
        shares[rank.number] = share
        all_done.wait()
        return [shares[number] for number in range(3)]

    def scan_on(number: int) -> Any:
        rank.number = number
        return scan_clips(clips, SETTINGS, RECIPE)

    monkeypatch.setattr(scan, "rank_and_world", lambda: (rank.number, 3))
    monkeypatch.setattr(scan, "_gather", gather)
    with ThreadPoolExecutor(3) as processes:
        assert list(processes.map(scan_on, range(3))) == [alone] * 3
    assert sorted(len(share) for share in shares.values()) == [2, 2, 3]


OTHER_ERRORS = (
    OSError("the share is gone"),
    KeyError("clips"),
    RecursionError("too deep"),
    zipfile.BadZipFile("no zip file"),
    MemoryError(),
    struct.error("unpack requires 4 bytes"),
    RuntimeError("inside of torch"),
    UnpicklingError("a pickle"),
    SafetensorError("a header"),
    av.FFmpegError(1, "a codec"),
)


@pytest.mark.parametrize("error", OTHER_ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_clip_raises_is_its_fault_alone(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    clips: list[ClipSource] = [FakeClip(name="good"), FakeClip(name="bad", raises=error), FakeClip(name="also")]
    for faults in (scan_clips(clips, SETTINGS, RECIPE).faults, check_dataset(clips, SETTINGS, RECIPE)):
        (fault,) = faults
        assert fault.clip == "bad" and (str(error) in fault.reason) and fault.reason
    sound = scan_clips([FakeClip(name=clip.name) for clip in clips], SETTINGS, RECIPE)
    dataset = make(clips, scan=sound)
    assert [draw(dataset, index).sources for index in range(3)] == [["good"], ["also"], ["also"]]
    assert "bad: " in caplog.text and dataset.skipped == 1
    with pytest.raises(BadSampleError, match=r"^bad: ."):
        draw(make(clips, scan=sound, strict=True), 1)


def test_a_prompt_that_cannot_be_read_is_the_fault_of_its_clip(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_prepared(tmp_path / name)
    (tmp_path / "two" / "prompt.txt").write_bytes(b"Speaks.\nIn a caf\xe9.")
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    (fault,) = scan_clips(read_clips(tmp_path / "list.txt"), SETTINGS, RECIPE).faults
    assert fault.clip == "two" and "two/prompt.txt is not UTF-8: byte 0xe9 in line 2" in fault.reason


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Talk [id].mp4", "[red]x[/red].mp4", "[/].mp4"]
    write_table(tmp_path / "t.csv", [{"video": name, "prompt": "x"} for name in names])
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    assert check.run(parser.parse_args([str(tmp_path / "t.csv")])) == 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)


def write_faulty_data(folder: Path) -> list[tuple[str, str]]:
    """A table of good and bad clips; gives the faults."""
    write_levels(folder / "good.mp4", 30)
    write_levels(folder / "short.mp4", 16)
    write_levels(folder / "silent.mp4", 30, sound=Sound(np.zeros((1, 19200), np.float32), 16000))
    write_levels(folder / "half.mp4", 30, sound=noise(0.3))
    with VideoWriter(folder / "mute.mp4", 32, 32) as writer:
        writer.write(torch.zeros(30, 32, 32, 3, dtype=torch.uint8))
    whole = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("nan", "shape", "size", "text", "empty"):
        fill(write_prepared(folder / name))
    features = numbered(30, C)
    features[7, 3] = float("nan")
    torch.save({"audio_emb": features}, folder / "nan" / "audio_emb_omniavatar.pt")
    torch.save({"input_latents": numbered(16, 6, 4)}, folder / "shape" / "vae_latents.pt")
    torch.save({"input_latents": numbered(16, 6, 5, 4)}, folder / "size" / "vae_latents.pt")
    (folder / "text" / "text_emb.pt").write_bytes(b"not a file of tensors")
    (folder / "empty" / "text_emb.pt").unlink()
    (folder / "empty" / "prompt.txt").write_text(" \n")
    rows = [
        {"video": "good.mp4", "prompt": "x"},
        {"video": "gone.mp4", "prompt": "x", "audio": "gone.wav"},
        {"video": "mute.mp4", "prompt": "x"},
        {"video": "short.mp4", "prompt": " "},
        {"video": "silent.mp4", "prompt": "x"},
        {"video": "half.mp4", "prompt": "x"},
        {"video": "cut.mp4", "prompt": "x", "reference": "gone.png"},
        *({"video": name} for name in ("nan", "shape", "size", "text", "empty")),
    ]
    write_table(folder / "t.csv", rows)
    return [
        ("gone.mp4", "video .*gone.mp4 is missing"),
        ("gone.mp4", "audio .*gone.wav is missing"),
        ("mute.mp4", "no sound track"),
        ("short.mp4", "the prompt is empty"),
        ("short.mp4", "too short: 16 frames.*wanted 17"),
        ("silent.mp4", "silent"),
        ("half.mp4", "the sound lasts 8 video frames, a sample up to 29"),
        ("cut.mp4", "reference .*gone.png is missing"),
        ("cut.mp4", "cannot be read"),
        ("nan", "the audio has NaN"),
        ("shape", r"vae_latents.pt: input_latents is \[16, 6, 4\], wanted \[16, T, h, w\]"),
        ("size", "latents of 40x32, wanted multiples of 16"),
        ("text", "text_emb.pt is no file of tensors, and nothing of it was executed"),
        ("empty", "the prompt is empty"),
    ]


def test_a_check_lists_all_faults_of_all_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = write_faulty_data(tmp_path)
    settings = ClipSettings(conventions=Conventions(image_sizes=((32, 32),)))
    faults = check_dataset(read_clips(tmp_path / "t.csv"), settings, RECIPE)
    assert [fault.clip for fault in faults] == [clip for clip, _ in wanted]
    for fault, (_, words) in zip(faults, wanted, strict=True):
        with pytest.raises(ValueError, match=words):
            raise ValueError(fault.reason)
    quick = {fault.clip for fault in scan_clips(read_clips(tmp_path / "t.csv"), settings, RECIPE).faults}
    assert quick == {clip for clip, _ in wanted} - {"silent.mp4", "half.mp4", "nan"}  # these need decoding and reading

    parser = argparse.ArgumentParser()
    check.add_arguments(parser)
    flags = ["--height", "32", "--width", "32"]
    assert check.run(parser.parse_args([str(tmp_path / "t.csv"), *flags])) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:-1]] == [clip for clip, _ in wanted]
    assert said[-1] == "12 clips, 11 of them with faults"
    write_table(tmp_path / "good.csv", [{"video": "good.mp4", "prompt": "x"}])
    assert check.run(parser.parse_args([str(tmp_path / "good.csv"), *flags])) == 0
    assert "1 clip, 0 of them with faults" in capsys.readouterr().out


def test_faults_that_only_loading_shows_do_not_stop_training(tmp_path: Path) -> None:
    write_faulty_data(tmp_path)
    rows = [{"video": name, "prompt": "x"} for name in ("silent.mp4", "half.mp4", "good.mp4")]
    dataset = make(read_clips(write_table(tmp_path / "t.csv", rows)))
    assert [draw(dataset, index).sources for index in range(3)] == [["good.mp4"]] * 3
    assert dataset.skipped == 3
