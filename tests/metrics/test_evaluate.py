"""Videos of a drawn person, measured from file to figures."""

import dataclasses
import hashlib
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image

from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.metrics import clip as clips
from diffsynth_omniavatar.metrics import evaluate as evaluation
from diffsynth_omniavatar.metrics import groups, measure
from diffsynth_omniavatar.metrics.clip import Clip, ClipFiles
from diffsynth_omniavatar.metrics.evaluate import HIGHER_IS_BETTER, LOWER_IS_BETTER, Evaluation, evaluate
from diffsynth_omniavatar.metrics.lips import LIPS, landmarks
from diffsynth_omniavatar.metrics.meanings import MEANINGS
from diffsynth_omniavatar.metrics.networks import PUBLISHED, Networks
from diffsynth_omniavatar.nano.speaker.clips import SpeakerClip, draw_clip
from diffsynth_omniavatar.system.workers import Done, WorkerDiedError

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

FREE = ["lips", "motion", "stability", "picture", "file"]
FRAMES = 12


@pytest.fixture(scope="module")
def drawn() -> SpeakerClip:
    return draw_clip(3, FRAMES, split="evaluation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, drawn: SpeakerClip) -> Path:
    """real.mp4 of a drawn person, blurred.mp4, and wide.mp4 and grey.mp4 of nobody."""
    folder = tmp_path_factory.mktemp("videos")
    frames = torch.from_numpy(drawn.frames)
    soft = F.avg_pool2d(frames.permute(0, 3, 1, 2).float(), 5, 1, 2).permute(0, 2, 3, 1).round().to(torch.uint8)
    grey = torch.full((FRAMES, 96, 96, 3), 128, dtype=torch.uint8)
    videos = {"real": frames, "blurred": soft, "grey": grey, "wide": grey[:, :48]}
    for name, video in videos.items():
        sound = Sound(drawn.waveform[None], 16000)
        with VideoWriter(folder / f"{name}.mp4", *video.shape[1:3], sound=sound) as writer:
            writer.write(video)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Evaluation:
    """real and blurred against real."""
    real = folder / "real.mp4"
    return evaluate([ClipFiles(generated=folder / f"{name}.mp4", reference=real) for name in ("real", "blurred")], FREE)


def test_a_video_equals_itself(found: Evaluation):
    same = found.clips[0].values
    best = {"psnr": 100, "psnr_face": 100, "psnr_outside": 100, "ssim": 1, "ssim_face": 1, "ssim_outside": 1}
    best |= {"lmd": 0, "openness_r": 1, "width_r": 1, "openness_lag": 0, "face_share": 1, "frame_rate": 25}
    assert {name: same[name] for name in best} == pytest.approx(best, abs=1e-5)
    assert not found.failed and not found.missing


def test_a_blurred_video_is_the_worst_of_both(found: Evaluation):
    summary = found.summary()
    for name in ("psnr", "ssim", "ssim_face", "psnr_outside", "sharpness"):
        assert str(summary[name]["worst_clip"]).endswith("blurred.mp4")
    assert summary["ssim"]["mean"] == pytest.approx((1 + found.clips[1].values["ssim"]) / 2)
    assert summary["ssim"]["clips"] == 2 and "worst" not in summary["mouth_openness"]


def test_too_short_a_clip_has_no_figures_of_its_sound(found: Evaluation):
    clip = found.clips[0]
    assert np.isnan([clip.values[name] for name in ("openness_heard_r", "openness_heard_lag")]).all()
    assert clip.missing == dict.fromkeys(
        ("openness_heard_r", "openness_heard_lag"), measure.UNKNOWN["openness_heard_r"]
    )
    assert "openness_heard_lag" not in found.summary()


def test_curves_have_a_number_for_each_frame(found: Evaluation):
    assert {len(curve) for curve in found.clips[1].curves.values()} == {FRAMES}


def test_each_figure_has_a_meaning_and_is_described(found: Evaluation):
    measured = {name for clip in found.clips for name in clip.values}
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert measured <= set(MEANINGS) and set(MEANINGS) >= LOWER_IS_BETTER | HIGHER_IS_BETTER
    assert [name for name in MEANINGS if f"`{name}`" not in documented] == []


def test_small_windows_change_nothing(folder: Path, found: Evaluation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clips, "WINDOW_PIXELS", 5 * 128 * 128)
    files = ClipFiles(generated=folder / "blurred.mp4", reference=folder / "real.mp4")
    again = evaluate([files], ["stability", "picture"]).clips[0].values
    assert again == pytest.approx({name: found.clips[1].values[name] for name in again}, rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [("real", "short"), ("short", "real")])
def test_both_videos_are_cut_to_the_shorter(
    folder: Path,
    drawn: SpeakerClip,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ours: str,
    theirs: str,
):
    with VideoWriter(folder / "short.mp4", 128, 128) as writer:
        writer.write(torch.from_numpy(drawn.frames[:7]))
    files = ClipFiles(generated=folder / f"{ours}.mp4", reference=folder / f"{theirs}.mp4")
    clip = Clip(files)
    (window,) = clip.windows()
    assert clip.frames == 7 and window.frames.shape == window.reference.shape == (7, 128, 128, 3)
    monkeypatch.setattr(clips, "SHORTER", 0.1)
    clips.open_all(files)
    assert ("short.mp4 has 0.3 s, and" in caplog.text) == (ours == "real")


def test_what_cannot_be_opened_is_told_first_and_the_rest_is_measured(folder: Path):
    files = [ClipFiles(generated=folder / f"{name}.mp4") for name in ("grey", "broken")]
    files.append(ClipFiles(generated=folder / "grey.mp4", reference=folder / "wide.mp4"))
    told: list[tuple[int, bool]] = []
    found = evaluate(files, ["motion", "file"], on_clip=lambda place, result: told.append((place, type(result) is str)))
    assert told == [(1, True), (2, True), (0, False)]
    assert "broken.mp4" in found.failed[str(folder / "broken.mp4")]
    assert "wide.mp4 has 96x48 pixels" in found.failed[str(folder / "grey.mp4")]
    assert found.clips[0].missing == {"motion": "there is no face in any frame"}


def test_a_reference_without_a_face_leaves_the_figures_that_need_none(folder: Path):
    files = ClipFiles(generated=folder / "real.mp4", reference=folder / "grey.mp4")
    networks = Networks()
    networks._loaded |= {"syncnet": None}
    networks.syncnet_path = folder / "real.mp4"
    clip = evaluate([files], ["lips", "picture", "sync"], networks).clips[0]
    why = "there is no face in any frame of the reference"
    figures = ["openness_r", "width_r", "openness_lag", "lmd", "psnr_outside", "psnr_face", "ssim_outside", "ssim_face"]
    assert {name for name in clip.missing if clip.missing[name] == why} == {"sync", *figures}
    assert {"psnr", "mouth_openness"} <= set(clip.values) and not {"psnr_face", "lmd", "openness_lag"} & set(
        clip.values
    )


def test_wrong_requests_are_told_before_a_video_is_opened(tmp_path: Path):
    clip = [ClipFiles(generated=tmp_path / "none.mp4")]
    with pytest.raises(ValueError, match="there are no figures lip; wanted some of lips"):
        evaluate(clip, ["lip"])
    with pytest.raises(ValueError, match=r"nothing can be measured: sync: needs --syncnet_path: get syncnet_v2.model"):
        evaluate(clip, ["sync"])
    with pytest.raises(FileNotFoundError, match=r"other.pt does not exist.*stable_syncnet.pt"):
        evaluate(clip, ["lips", "stable_sync"], Networks(stable_syncnet_path=tmp_path / "other.pt"))


class Colours:
    """In place of `Together`: the brightness of the clips that it was given."""

    def __init__(self, *_):
        self.clip, self.taken = [], []

    def watch(self, clip, window):
        self.clip.append(float(window.frames.float().mean()))

    def end_clip(self):
        seen, self.clip = {"fid": (np.array(self.clip),) * 2}, []
        return seen

    def take(self, seen):
        self.taken += [float(brightness.sum()) for brightness, _ in seen.values()]

    def results(self):
        return [("fid", tuple(self.taken))]


def test_a_clip_that_breaks_does_not_count_for_the_distances(folder: Path, monkeypatch: pytest.MonkeyPatch):
    class Breaking(groups.FileGroup):
        def result(self):
            if "real" in str(self.clip.files.generated):
                raise OSError("damaged after 1 s")
            return groups.Measured()

    for module in (evaluation, measure):
        monkeypatch.setattr(module, "Together", Colours)
    monkeypatch.setitem(groups.GROUPS, "file", Breaking)
    found = evaluate([ClipFiles(generated=folder / f"{name}.mp4") for name in ("real", "grey")], ["file"])
    assert found.values["fid"] == (pytest.approx(128, abs=2),) and list(found.failed.values()) == ["damaged after 1 s"]


def test_several_processes_find_what_one_finds(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Their work travels as pickles, and is done in any order."""
    threads = torch.get_num_threads()

    def backwards(work, items, workers):
        assert workers == 3
        for item in reversed(items):
            yield Done(item, pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(work))(item, print))))

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3 * threads)  # as many for each process as for the one
    for module in (evaluation, measure):
        monkeypatch.setattr(module, "Together", Colours)
    clips = [ClipFiles(generated=folder / f"{name}.mp4") for name in ("grey", "broken", "real", "blurred")]
    one = evaluate(clips, ["stability"])
    monkeypatch.setattr(evaluation, "work_through", backwards)
    told: list[int] = []
    several = evaluate(clips, ["stability"], workers=5, on_clip=lambda place, _: told.append(place))
    assert told == [1, 3, 2, 0]
    assert [clip.files for clip in several.clips] == [clips[place] for place in (0, 2, 3)]
    assert several.values == one.values and several.failed == one.failed and several.summary() == one.summary()
    for ours, theirs in zip(several.clips, one.clips, strict=True):
        np.testing.assert_array_equal(ours.curves["brightness"], theirs.curves["brightness"])


def test_a_process_that_dies_costs_its_clip_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def dying(work, items, workers):
        yield Done(items[0], None, WorkerDiedError("ended by SIGKILL"))
        yield Done(items[1], work(items[1], print))

    monkeypatch.setattr(evaluation, "work_through", dying)
    found = evaluate([ClipFiles(generated=folder / f"{name}.mp4") for name in ("grey", "real")], ["file"], workers=2)
    assert found.failed == {str(folder / "grey.mp4"): "ended by SIGKILL"} and len(found.clips) == 1


def test_weights_other_than_the_published_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    weights = folder / "w.pt"
    weights.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    networks = Networks(syncnet_path=weights, stable_syncnet_path=weights)
    networks._loaded |= {"syncnet": None, "stable": None}
    clip = [ClipFiles(generated=folder / "grey.mp4")]
    found = evaluate(clip, ["file", "sync", "stable_sync"], networks)
    (warning,) = found.warnings  # of StableSyncNet none is published
    assert "sync: " in warning and "is not the published file" in warning and warning in caplog.text
    assert found.protocol["weights"] == {"sync": digest, "stable_sync": digest}
    monkeypatch.setitem(PUBLISHED, "sync", digest)
    assert not evaluate(clip, ["file", "sync"], networks).warnings


def test_speech_is_opened_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    real, short = folder / "real.mp4", folder / "short.wav"
    soundfile.write(short, np.sin(np.arange(1000)), 16000)
    monkeypatch.setattr(clips, "SHORTER", 0.2)
    told: list[int] = []
    files = [ClipFiles(generated=real, audio=audio) for audio in (short, folder / "broken.mp4", real)]
    found = evaluate(files, ["file"], on_clip=lambda place, _: told.append(place))
    assert told == [1, 0, 2] and "broken.mp4" in found.failed[str(real)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{short} has 0.1 s, and {real} 0.5 s: figures of sound are of the first part alone"
    ]


class ByColour:
    """Takes a picture's mean colour for its embedding."""

    def __call__(self, frame, face):
        colour = frame.mean(axis=(0, 1))
        return colour / np.linalg.norm(colour)


def test_csim_is_the_cosine_to_the_first_frame_with_a_face(folder: Path):
    clip = Clip(ClipFiles(generated=folder / "real.mp4"))
    face = clip.faces[0]
    clip.faces = [None, *[face] * 11]
    networks = Networks()
    networks._loaded["embedder"] = ByColour()
    group = groups.IdentityGroup(clip, networks)
    window = next(clip.windows())
    changed = window.frames.clone()
    changed[10, ..., 0] = 0
    group.watch(dataclasses.replace(window, frames=changed))
    curve = group.result().curves["csim"]
    first, last = (frames.numpy().mean(axis=(0, 1)) for frames in (window.frames[1], changed[10]))
    cosine = first @ last / np.linalg.norm(first) / np.linalg.norm(last)
    assert np.flatnonzero(np.isfinite(curve)).tolist() == [5, 10]
    assert curve[[5, 10]] == pytest.approx([1, cosine], abs=1e-3) and cosine < 0.95


def test_what_changes_at_the_mouth_does_not_count_outside(folder: Path):
    clip = Clip(ClipFiles(generated=folder / "real.mp4", reference=folder / "real.mp4"))
    window = next(clip.windows())
    mouth = groups._mouth(window, clip) > 0.999
    x, y = landmarks(clip.faces[0])[list(LIPS)].mean(axis=0).round().astype(int)
    assert mouth[0, y, x] and not mouth[0, 0, 0]
    frames = torch.where(mouth[..., None], 255 - window.frames, window.frames)
    group = groups.PictureGroup(clip, Networks())
    group.watch(dataclasses.replace(window, frames=frames))
    values = group.result().values
    assert values["psnr_outside"] > 60 > 30 > values["psnr"] and values["ssim_outside"] > values["ssim"]


def test_lpips_is_asked_of_the_whole_picture_and_the_face_in_plus_minus_one(folder: Path):
    clip = Clip(ClipFiles(generated=folder / "blurred.mp4", reference=folder / "real.mp4"))
    clip.reference_faces = Clip(ClipFiles(generated=folder / "real.mp4")).faces
    networks = Networks()
    networks._loaded["lpips"] = lambda a, b: (a - b).abs().mean() / 2
    group = groups.LpipsGroup(clip, networks)
    window = next(clip.windows())
    group.watch(window)
    found = group.result().values
    difference = (window.frames.float() - window.reference.float()).abs().mean() / 255
    assert found["lpips"] == pytest.approx(float(difference), rel=1e-4) and found["lpips_face"] > 0


def test_the_portrait_is_of_the_largest_face(folder: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("RGB", (16, 16), "teal").save(folder / "portrait.png")
    faces = [SimpleNamespace(size=size) for size in (1, 3, 2)]
    monkeypatch.setattr(clips, "FaceFinder", lambda: SimpleNamespace(faces=lambda picture: faces))
    files = ClipFiles(generated=folder / "real.mp4", portrait=folder / "portrait.png")
    assert Clip(files).portrait[1] is faces[1]
    faces.clear()
    with pytest.raises(ValueError, match=r"there is no face in .*portrait\.png"):
        _ = Clip(files).portrait


def test_a_portrait_that_is_no_picture_is_told_at_once(folder: Path):
    with pytest.raises(ValueError, match=r"broken.mp4"):
        Clip(ClipFiles(generated=folder / "real.mp4", portrait=folder / "broken.mp4"))
