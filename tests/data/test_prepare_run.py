"""`prepare` writes clips that training reads; what is finished is not done again; bad files have their reason."""

import csv
import errno
import io
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from prepare_looks import look, track
from synthetic_clips import noise, shown, write_levels

from diffsynth_omniavatar.data.clips import ClipSettings
from diffsynth_omniavatar.data.prepare import cut, process
from diffsynth_omniavatar.data.prepare.captions import Captions
from diffsynth_omniavatar.data.prepare.look import Look, look_at
from diffsynth_omniavatar.data.prepare.records import ClipRecord
from diffsynth_omniavatar.data.prepare.run import PrepareReport, prepare
from diffsynth_omniavatar.data.prepare.settings import PrepareSettings
from diffsynth_omniavatar.data.prepare.sources import Shard, find_sources
from diffsynth_omniavatar.data.prepare.split import people_of, splits, validation_people
from diffsynth_omniavatar.data.prepare.sync import Sync
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.data.scan import check_dataset
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.generation.samples import read_samples
from diffsynth_omniavatar.media.images import load_image
from diffsynth_omniavatar.media.sound import load_sound
from diffsynth_omniavatar.media.video import iter_frames, read_frames
from diffsynth_omniavatar.system.tensor_files import read_safetensors

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

FRAMES, SPOKEN = 40, [range(8, 22)]
"""Of each source: a clip of frames 3 to 26 comes of it."""
LOOSE = {"min_seconds": 0.4, "min_face_size": 5, "max_enlargement": 9, "min_speech_share": 0.2}
"""Bounds for clips of 32x32 pixels."""


def settings(**changes: Any) -> PrepareSettings:
    bounds = LOOSE | changes.pop("bounds", {})
    return PrepareSettings(**{"mode": "i2v", "sizes": ((32, 32),), "crf": 0, "bounds": bounds, **changes})


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are looked at; readable ones show a person that speaks in the frames `SPOKEN`."""
    names: list[str] = []

    def looks(path: Path, tell: Callable[[float], None]) -> Look:
        names.append(path.name)
        frames = sum(1 for _ in iter_frames(path))
        size = {"size": (32, 32), "thumbnails": torch.randint(0, 255, (2, 8, 9), dtype=torch.uint8)}
        return look(frames, [track(range(frames), 16, 14, 10, SPOKEN)], SPOKEN, **size)

    def maybe(path: Path, tell: Callable[[float], None]) -> Look:
        return looks(path, tell) if path.stem.startswith("good") else look_at(path, tell)

    monkeypatch.setattr(process, "look_at", maybe)
    return names


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for number in range(3):
        write_levels(folder / f"good {number}.mp4", FRAMES, sound=noise(FRAMES / 25, number))
    (folder / "empty.mp4").write_bytes(b"")
    return folder


def made(raw: Path, **options: Any) -> PrepareReport:
    out = raw.parent / "out"
    given = options.pop("settings", settings())
    return prepare(find_sources([raw], out), out, given, **options)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def stamps(folder: Path) -> dict[str, int]:
    """When each clip and strip was written."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for part in ("clips", "strips")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("directories", [False, True])
def test_training_reads_the_tables_and_clips_show_their_frames(raw: Path, looked: list[str], directories: bool) -> None:
    report = made(raw, settings=settings(directories=directories))
    out = raw.parent / "out"
    assert report.kept == 3 and report.reasons() == {"unreadable": 1}
    train, validation = rows(out / "metadata.csv"), rows(out / "validation.csv")
    assert len(train) == 2 and len(validation) == 1
    (sample,) = read_samples(out / "validation.txt")[0].values()
    assert load_image(sample.source).size == (32, 32) and sample.prompt == validation[0]["prompt"]
    assert {Path(row["source"]).name for row in train + validation} == {f"good {number}.mp4" for number in range(3)}
    recipe = Recipe(prefix_frames=(1, 5))
    for table in ("metadata.csv", "validation.csv"):
        assert not check_dataset(read_clips(out / table), ClipSettings(height=32, width=32), recipe)
    video = out / train[0]["video"] / "sub_clip.mp4" if directories else out / train[0]["video"]
    assert shown(read_frames(video)) == list(range(3, 27)) and float(train[0]["start"]) == 0.12
    sound = load_sound(video).samples[0]
    number = int(Path(train[0]["source"]).stem[-1])
    original = noise(FRAMES / 25, number).samples[0][3 * 640 : 27 * 640]
    assert len(sound) == len(original) and np.corrcoef(sound, original)[0, 1] > 0.9
    if directories:
        wave, rate = soundfile.read(out / train[0]["video"] / "audio.wav")
        assert rate == 16000 and len(wave) == 24 * 640
        assert (out / train[0]["video"] / "prompt.txt").read_text().strip() == train[0]["prompt"]


def test_every_rejected_file_and_clip_has_its_reason_and_figures(raw: Path, looked: list[str]) -> None:
    report = made(raw, settings=settings(bounds={"min_face_size": 20}))
    assert report.kept == 0
    rejected = rows(raw.parent / "out" / "rejected.csv")
    assert len(rejected) == 4 and all(row["reasons"] for row in rejected)
    (broken,) = [row for row in rejected if row["source"].endswith("empty.mp4")]
    assert "cannot be read" in broken["reasons"]
    small = next(row for row in rejected if row is not broken)
    assert "the face is too small: face size 10 pixels, wanted 20 or more" in small["reasons"]
    assert float(small["face_size"]) == 10 and float(small["seconds"]) == 0.96


def test_what_is_finished_is_kept_and_what_changed_is_made_again(raw: Path, looked: list[str]) -> None:
    out = raw.parent / "out"
    made(raw)
    first = stamps(out)
    assert len(looked) == 3 and len(first) == 6
    made(raw)
    assert len(looked) == 3 and stamps(out) == first
    write_levels(raw / "good 1.mp4", FRAMES - 8, sound=noise(FRAMES / 25, 1))
    made(raw)
    changed = {name for name, time in stamps(out).items() if first.get(name) != time}
    assert looked[3:] == ["good 1.mp4"] and len(changed) == 2 and all("good-1" in name for name in changed)
    again = stamps(out)
    made(raw, settings=settings(bounds={"min_face_share": 0.5}))
    assert len(looked) == 4 and stamps(out) == again  # other bounds, and the same clips
    made(raw, settings=settings(bounds={"min_face_size": 20}))
    assert len(looked) == 4 and not list((out / "clips").rglob("*.mp4")) and not (out / "metadata.csv").exists()
    made(raw, settings=settings(sizes=((48, 32),)))
    assert len(looked) == 4 and len(list((out / "clips").rglob("*.mp4"))) == 3


def test_other_bounds_and_faces_complete_what_is_there(
    raw: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneFace:
        def __init__(self, track: Any) -> None:
            pass

        def add(self, picture: torch.Tensor, index: int) -> None:
            pass

        def fingerprint(self) -> dict[str, list[float]]:
            return {"face": np.eye(128)[0].tolist()}

    for name in ("good 1.mp4", "empty.mp4"):
        (raw / name).unlink()
    monkeypatch.setattr(cut, "ClipIdentity", OneFace)
    out = raw.parent / "out"
    made(raw, settings=settings(bounds={"min_face_size": 20}))
    clips = [source.clips[0] for source in made(raw).sources]
    assert all((out / (clip.video or "nothing")).is_file() for clip in clips)
    assert {clip.split for clip in clips} == {"train", "validation"}
    assert {source.clips[0].split for source in made(raw, person="face").sources} == {"train"}
    assert len(looked) == 2


def test_an_interrupted_run_goes_on(raw: Path, looked: list[str]) -> None:
    def stop(record: Any) -> None:
        if len(looked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(raw, on_source=stop)
    assert not (raw.parent / "out" / "metadata.csv").exists()
    assert made(raw).kept == 3 and len(looked) == 3
    assert not list((raw.parent / "out" / "state").glob("*.part"))


def test_aligned_clips_keep_their_transforms(raw: Path, looked: list[str]) -> None:
    out = raw.parent / "out"
    loose = {"min_face_size": 5, "max_enlargement": 9, "min_inside_share": 0}
    made(raw, settings=settings(mode="v2v", bounds=loose))
    video = next((out / "clips").rglob("*.mp4"))
    assert read_safetensors(video.with_suffix(".safetensors"))["transforms"].shape == (24, 2, 3)
    assert read_frames(video).shape == (24, 32, 32, 3)


def test_shards_share_the_sources_and_a_last_run_writes_the_tables(raw: Path, looked: list[str]) -> None:
    out = raw.parent / "out"
    for number in (1, 2):
        made(raw, shard=Shard(number, 2))
        assert not (out / "metadata.csv").exists()
    assert len(looked) == 3 and made(raw).kept == 3 and len(looked) == 3
    assert [Shard.parse("2/3").of(list("abcdefg"))] == [list("be")]
    for wrong in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ValueError, match=f"--shard {wrong}"):
            Shard.parse(wrong)


def test_a_copy_is_rejected(raw: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    frames, spoken = 40, [range(40)]
    one = track(range(40), 16, 14, 10, spoken)
    swelling = torch.rand(frames, generator=torch.Generator().manual_seed(1)) * 1e-3
    thumbnails = torch.randint(0, 255, (2, 8, 9), dtype=torch.uint8)

    def looks(path: Path, tell: Callable[[float], None]) -> Look:
        changes = {"size": (32, 32), "power": swelling, "thumbnails": thumbnails}
        if path.stem.endswith("1"):
            changes |= {"power": 0.25 * swelling, "thumbnails": thumbnails.flip(2)}  # quieter, and mirrored
        if path.stem.endswith("2"):
            changes |= {"power": swelling.flip(0)}
        return look(frames, [one], spoken, **changes)

    (raw / "empty.mp4").unlink()
    monkeypatch.setattr(process, "look_at", looks)
    report = made(raw, settings=settings(bounds={"min_speech_to_noise": -99}))
    assert [list(source.clips[0].reasons) for source in report.sources] == [[], ["duplicate"], []]


def test_captions_come_from_the_first_that_has_one(raw: Path, looked: list[str], tmp_path: Path) -> None:
    (raw / "good 0.json").write_text('{"caption": "From a file."}')
    (raw / "good 1.txt").write_text("Not\nused.")
    (tmp_path / "table.csv").write_text("video,prompt\nraw/good 1.mp4,From a table.\n")
    says = "import sys; print('asked', file=open(sys.argv[2], 'a')); print('Of', sys.argv[1].split('/')[-2])"
    command = shlex.join([sys.executable, "-c", says, "{clip}", str(tmp_path / "asked")])
    captions = Captions(table=tmp_path / "table.csv", command=command)
    for _ in range(2):
        report = made(raw, captions=captions)
    texts = {Path(source.path).stem: clip.prompt for source in report.sources for clip in source.clips}
    assert texts["good 0"] == "From a file." and texts["good 1"] == "From a table."
    assert texts["good 2"].startswith("Of good-2-") and (tmp_path / "asked").read_text() == "asked\n"
    (raw / "good 0.json").unlink()
    report = made(raw, captions=Captions(command=shlex.join([sys.executable, "-c", "1/0", "{clips}"])))
    assert {Path(source.path).stem: list(source.clips[0].reasons) for source in report.sources if source.clips} == {
        "good 0": ["caption"],
        "good 1": [],
        "good 2": ["caption"],
    }
    for wrong, text in (("no-such-program {clip}", "no program"), (f"{sys.executable} -V", "wanted {clip}")):
        with pytest.raises(ValueError, match=text):
            Captions(command=wrong)


def test_a_file_that_changes_while_it_is_read_is_made_again(
    raw: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (raw / "good 0.mp4").unlink()
    looks = process.look_at

    def change(path: Path, tell: Callable[[float], None]) -> Look:
        found = looks(path, tell)
        if path.stem == "good 1":
            os.utime(path, ns=(1, 1))
        if path.stem == "good 2":
            path.rename(path.with_suffix(".away"))
        return found

    monkeypatch.setattr(process, "look_at", change)
    report = made(raw)
    reasons = ["".join(source.reasons.values()) for source in report.sources]
    assert report.kept == 0 and "good 1.mp4: it changed while it was read" in reasons[1] and reasons[2]
    assert not list((raw.parent / "out" / "clips").rglob("*.mp4"))
    monkeypatch.setattr(process, "look_at", looks)
    assert made(raw).kept == 1


def test_a_folder_that_cannot_be_searched_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.mp4").touch()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path) == os.fspath(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    video, folder = find_sources([tmp_path], tmp_path / "out")
    assert video.path.name == "a.mp4"
    work = process.SourceWork(out=tmp_path / "out", settings=settings())
    assert work(folder).reasons == {"unreadable": f"{closed}: Permission denied"}


def test_a_link_to_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "self.mp4").symlink_to("self.mp4")
    (source,) = find_sources([tmp_path], tmp_path / "out")
    (reason,) = process.SourceWork(out=tmp_path / "out", settings=settings())(source).reasons.values()
    assert reason == f"{tmp_path / 'self.mp4'}: Too many levels of symbolic links"


def test_sound_that_is_late_is_put_earlier(raw: Path, looked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(path: Path, waveform: torch.Tensor, places: Any, *others: Any) -> dict[str, tuple[float, int]]:
        return dict.fromkeys(places, (0.9, 5))

    monkeypatch.setattr(process, "measure_sync", measured)
    source, out = raw / "good 0.mp4", raw.parent / "out"
    report = prepare(find_sources([source], out), out, settings(), sync=Sync(source))
    (clip,) = report.sources[0].clips
    sound = load_sound(out / str(clip.video)).samples[0]
    original = noise(FRAMES / 25, 0).samples[0][8 * 640 : 32 * 640]
    assert len(sound) == len(original) and np.corrcoef(sound, original)[0, 1] > 0.9


def test_sources_come_from_folders_globs_and_lists(raw: Path, tmp_path: Path) -> None:
    (raw / "deep").mkdir()
    (raw / "deep" / "x.MOV").touch()
    (raw / ".hidden.mp4").touch()
    (raw / "notes.txt").write_text("good 0.mp4\ndeep/x.MOV\n")
    out = raw / "out"
    (out / "clips").mkdir(parents=True)
    (out / "clips" / "a.mp4").touch()

    def names(*given: Any) -> list[str]:
        return [source.path.name for source in find_sources(given, out)]

    assert names(raw) == ["empty.mp4", "good 0.mp4", "good 1.mp4", "good 2.mp4", "x.MOV"]
    assert names(raw / "notes.txt", raw / "good 0.mp4") == ["good 0.mp4", "x.MOV"]
    assert names(f"{raw}/**/*.M*") == ["x.MOV"] and names(f"{raw}/good*") == ["good 0.mp4", "good 1.mp4", "good 2.mp4"]
    for wrong in (tmp_path / "nothing.mp4", f"{raw}/*.avi", out):
        with pytest.raises(ValueError, match=str(wrong).replace("*", r"\*")):
            names(wrong)
    (raw / "wrong.txt").write_text("no.mp4\n")
    with pytest.raises(ValueError, match=r"line 1: no\.mp4 is not there"):
        names(raw / "wrong.txt")
    (raw / "wrong.txt").write_text("wrong.txt\n")
    with pytest.raises(ValueError, match=r"line 1: wrong\.txt is a list, too"):
        names(raw / "wrong.txt")
    (raw / "table.csv").write_text("video,prompt\ngood 0.mp4,x\n")
    with pytest.raises(ValueError, match=r"table\.csv is no video; give folders, .* goes to `omniavatar check`"):
        names(raw / "table.csv")


def test_no_person_trains_and_validates() -> None:
    files = [f"/data/{person}/{number}.mp4" for person in range(40) for number in range(3)]
    chosen = validation_people(files, 0.2)
    assert 10 < len(chosen) < 40 and validation_people(files[:60], 0.2) == chosen & set(files[:60])
    clips = [ClipRecord(name=file, source=file, start=0, frames=50) for file in files]
    folders = validation_people(people_of(clips, "folder").values(), 0.2)
    assert 2 < len(folders) < 16 and folders <= {f"/data/{person}" for person in range(40)}
    assert validation_people(files[:1], 0.2) == validation_people(files, 0) == set()
    assert len(validation_people(files[:2], 1e-9)) == 1
    for file in files:  # somebody is left to train with
        assert len(validation_people([file, "b"], 0.999)) == 1 and validation_people([file], 0.999) == set()


def test_files_that_show_the_same_face_are_on_one_side() -> None:
    """Also those that share a face with a third file; faces with a cosine of 0.9 are of different people."""
    faces = np.sqrt(0.1) * np.eye(3, 128)
    faces[:, 3] = np.sqrt(0.9)
    seen = {"a": [0], "b": [1], "c": [0], "d": [2], "e": [1, 2], "f": [None], "g": [None]}
    clips = []
    for source, numbers in seen.items():
        for face in numbers:
            print_ = {}
            if face is not None:
                noisy = faces[face] + 0.01 * np.random.default_rng(len(clips)).normal(size=128)
                print_ = {"face": (noisy / np.linalg.norm(noisy)).tolist()}
            clips.append(ClipRecord(name=str(len(clips)), source=source, start=0, frames=50, fingerprint=print_))
    people = people_of(clips, "face")
    assert people == {"a": "a", "b": "b", "c": "a", "d": "b", "e": "b", "f": "f", "g": "g"}
    for share in (0.2, 0.5, 0.8):
        sides = splits(people, share)
        assert sides["a"] == sides["c"] and sides["b"] == sides["d"] == sides["e"]
        assert set(sides.values()) == {"train", "validation"}
