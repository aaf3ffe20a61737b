"""Dubbed videos: the source's bits outside the mouth, its times, and a mouth that hears what sounds beside it."""

import weakref
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_faces import still, track_at, write_faces
from media_files import tone

from diffsynth_omniavatar.generation.dub import dub
from diffsynth_omniavatar.generation.generate import generate
from diffsynth_omniavatar.generation.request import RequestError
from diffsynth_omniavatar.media.clip import Clip
from diffsynth_omniavatar.media.pictures import PictureScan
from diffsynth_omniavatar.media.sound import Sound, load_sound
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.model.config import Conventions

CONVENTIONS = Conventions(image_sizes=((64, 64),), max_tokens=36, leading_audio_rows=0)
"""Chunks of 9 frames."""
FAST = {"steps": 1, "cfg_scale": 1.0, "show_progress": False, "overlap": 5, "crf": 0}


class FakePipe:
    """Its frames have the grey level of the row of features that they hear, which is counted from 1."""

    def __init__(self, conventions=CONVENTIONS, in_dim=49):
        self.conventions = conventions
        self.dit = SimpleNamespace(config=SimpleNamespace(in_dim=in_dim))
        self.calls = []
        self.is_first_process = True

    def encode_prompt(self, prompt):
        return torch.zeros(1, 1, 1)

    def encode_speech(self, waveform, rows):
        return torch.arange(1.0, rows + 1)[:, None]

    def __call__(self, **inputs):
        self.calls.append(inputs)
        for _ in inputs["progress_bar_cmd"](range(inputs["num_inference_steps"])):
            pass
        levels = inputs["audio_features"][:, 0] / 127.5 - 1
        frames = levels.view(1, -1, 1, 1).expand(3, -1, inputs["height"], inputs["width"])
        if inputs["on_frames"] is not None:
            inputs["on_frames"](frames)
        return frames


def noise(seconds, rate=16000):
    samples = 0.1 * np.random.default_rng(0).standard_normal((1, round(seconds * rate)))
    return Sound(samples.astype(np.float32), rate)


def film(path, count, rate=25, size=(96, 160), sound=None, cut=None):
    """A clip of noise that moves a pixel a frame; at `cut` it becomes another one."""
    rng = np.random.default_rng(1)
    scenes = rng.integers(60, 200, (2, size[0] // 8, size[1] // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    with VideoWriter(path, *size, frame_rate=rate, sound=sound, crf=0) as writer:
        for index in range(count):
            scene = scenes[int(cut is not None and index >= cut)]
            writer.write(torch.from_numpy(np.roll(scene, index, axis=1))[None])
    return path


def pictures_of(path):
    scan = PictureScan(path)
    return torch.stack(list(scan)), scan.times()


@pytest.fixture
def written(monkeypatch):
    """The frames of each video as they go into the encoder, by its name."""
    frames, write = {}, VideoWriter.write

    def keep(writer, pictures, times=None):
        frames.setdefault(writer.path.name, []).extend(pictures)
        write(writer, pictures, times)

    monkeypatch.setattr(VideoWriter, "write", keep)
    return lambda name: torch.stack(frames[name])


FACE = (80, 48)


@pytest.mark.parametrize("rate", [25, 30, Fraction(30000, 1001)])
def test_the_mouth_alone_is_new_and_hears_what_sounds(tmp_path, written, rate):
    source = film(tmp_path / "film.mp4", 36, rate)
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 36, *FACE))
    pipe = FakePipe()
    made = dub(pipe, video=source, audio=noise(1.0), out=tmp_path / "out.mp4", detections=faces, **FAST)
    before, times = pictures_of(source)
    after = written("out.mp4")
    changed = (after != before).any(dim=0).any(dim=-1)
    # The mask is 41 % of the crop, whose width is 0.91 of the face's.
    assert 200 < changed.sum() < 1000 and (changed.nonzero() - torch.tensor([48, 80])).abs().max() < 40
    assert torch.equal(after[:, ~changed], before[:, ~changed]) and made.dubbed == 36 and not made.untouched
    # Below the nose the mouth's grey tells which row of features it heard: the one that sounds nearest in time.
    heard = after[:, 62, 80].float().mean(dim=-1) - 1
    assert (heard / 25 - torch.arange(36) / float(rate)).abs().max() <= 0.0201
    # Duration, times and sound are the source's.
    _, again = pictures_of(tmp_path / "out.mp4")
    wanted = [float(tick * times.tick) for tick in [*times.starts, times.stop]]
    assert [float(tick * again.tick) for tick in [*again.starts, again.stop]] == pytest.approx(wanted, abs=1e-3)
    assert load_sound(tmp_path / "out.mp4").duration == pytest.approx(times.duration, abs=1e-3)


def test_uneven_times_and_odd_sizes_are_kept(tmp_path, written):
    starts = [0, 40, 80, 95, 180, 200, 240, 333, 400, 480, 520]
    with VideoWriter(tmp_path / "film.mkv", 98, 162, tick=Fraction(1, 1000), crf=0) as writer:
        pixels = torch.randint(60, 200, (11, 98, 162, 3), dtype=torch.uint8)
        writer.write(pixels, list(zip(starts, [*starts[1:], 560], strict=True)))
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 11, *FACE))
    made = dub(FakePipe(), video=tmp_path / "film.mkv", audio=noise(0.3), out=tmp_path / "out.mp4", detections=faces,
               **FAST)  # fmt: skip
    _, times = pictures_of(tmp_path / "out.mp4")
    assert [float(1000 * start * times.tick) for start in times.starts] == pytest.approx(starts, abs=1)
    assert times.duration == pytest.approx(0.56, abs=1e-3) and (made.height, made.width) == (98, 162)


def test_cuts_end_chunks_and_gaps_stay(tmp_path, written):
    source = film(tmp_path / "film.mp4", 50, cut=26)
    one = track_at(0, [FACE] * 26 + [(60, 50)] * 8 + [None] * 4 + [(60, 50)] * 12)
    faces = write_faces(tmp_path / "faces.jsonl", one)
    pipe = FakePipe()
    made = dub(pipe, video=source, audio=noise(2.0), out=tmp_path / "out.mp4", detections=faces, **FAST)
    before, _ = pictures_of(source)
    after = written("out.mp4")
    same = [bool(torch.equal(one, other)) for one, other in zip(after, before, strict=True)]
    assert [place for place, kept in enumerate(same) if kept] == [34, 35, 36, 37]
    assert made.untouched == {"no face": 4} and made.dubbed == 46
    starts = [int(call["audio_features"][0]) - 1 for call in pipe.calls if call["prefix_video"] is None]
    assert starts == [0, 26, 38]  # of each span the first chunk knows no frames
    assert len(pipe.calls) == made.chunks > 3
    for before_, call in zip(pipe.calls, pipe.calls[1:], strict=False):
        if call["prefix_video"] is not None:
            rows = before_["audio_features"][-5:, 0] / 127.5 - 1
            assert torch.allclose(call["prefix_video"][0, :, 0, 0], rows)


def test_several_faces_are_those_of_single_runs(tmp_path, written):
    source = film(tmp_path / "film.mp4", 20)
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 20, 40, 48), still(0, 12, 120, 48))
    common = {"video": source, "detections": faces, **FAST}
    sounds = [noise(0.8), noise(0.4)]
    both = dub(FakePipe(), audio=sounds, face=[1, 2], out=tmp_path / "both.mp4", **common)
    assert both.dubbed == 20 and not both.untouched  # one of them is always there
    for face, sound in ((1, sounds[0]), (2, sounds[1])):
        dub(FakePipe(), audio=sound, face=face, out=tmp_path / f"{face}.mp4", **common)
    left, right = written("1.mp4"), written("2.mp4")
    assert not torch.equal(left, right)
    assert torch.equal(written("both.mp4"), torch.cat([left[:, :, :80], right[:, :, 80:]], dim=2))


@pytest.mark.parametrize(("extend", "frames"), [("loop", 20), ("hold", 20), ("stop", 12)])
def test_a_short_video_is_extended(tmp_path, written, caplog, extend, frames):
    source = film(tmp_path / "film.mp4", 12)
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 12, *FACE))
    caplog.set_level("INFO")
    dub(FakePipe(), video=source, audio=noise(0.8), out=tmp_path / "out.mp4", detections=faces, extend=extend, **FAST)
    before, _ = pictures_of(source)
    after = written("out.mp4")
    assert len(after) == probe_video(tmp_path / "out.mp4").frames == frames
    order = {"loop": [*range(12), *range(10, 2, -1)], "hold": [*range(12), *[11] * 8], "stop": list(range(12))}
    assert torch.equal(after[:, :16], before[order[extend], :16])
    assert "The speech lasts 0.80 s, the video 0.48 s" in caplog.text


def test_silence_comes_before_the_speech(tmp_path):
    source = film(tmp_path / "film.mp4", 10)
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 10, *FACE))
    made = dub(FakePipe(), video=source, audio=noise(0.4), out=tmp_path / "out.mp4", detections=faces, silence=0.2,
               **FAST)  # fmt: skip
    heard = np.abs(load_sound(tmp_path / "out.mp4").samples[0])
    assert made.frames == 15 and heard[:3000].max() < 0.01 < heard[3400:9000].mean()


def test_gaps_keep_sound_and_pictures(tmp_path, written, monkeypatch):
    monkeypatch.setitem(dub.__globals__["read_dub_inputs"].__globals__, "speech_spans", lambda _: [(0.9, 1.09)])
    source = film(tmp_path / "film.mp4", 50, sound=Sound(tone(2.0, 16000)[None], 16000))
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 50, *FACE))
    pipe = FakePipe()
    made = dub(pipe, video=source, audio=noise(1.2), out=tmp_path / "out.mp4", detections=faces, keep_audio="gaps",
               **FAST)  # fmt: skip
    before, _ = pictures_of(source)
    after = written("out.mp4")
    same = [place for place in range(50) if torch.equal(after[place], before[place])]
    assert same == [*range(15), *range(35, 50)] and made.untouched == {"no new speech": 30}
    rows = torch.cat([call["audio_features"][:, 0] for call in pipe.calls])
    assert rows.min() == 16 and rows.max() < 40  # nothing is generated elsewhere
    own, mixed = load_sound(source).samples[0], load_sound(tmp_path / "out.mp4").samples[0]
    assert np.corrcoef(own[:12000], mixed[:12000])[0, 1] > 0.9
    assert abs(np.corrcoef(own[14720:17280], mixed[14720:17280])[0, 1]) < 0.2


def test_the_second_clip_is_another_part_of_the_face(tmp_path):
    source = film(tmp_path / "film.mp4", 20)
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 20, *FACE))
    pipe = FakePipe(in_dim=65)
    dub(pipe, video=source, audio=noise(0.8), out=tmp_path / "out.mp4", detections=faces, **FAST)
    seen = pipe.calls[-1]["input_video"]  # frames 12 to 19, and one beyond
    for call in pipe.calls:
        assert call["reference_video"].shape == (3, 9, 64, 64)
        assert torch.equal(call["reference_video"][:, 1:], seen[:, :8])


def test_of_several_processes_the_first_writes(tmp_path):
    source = film(tmp_path / "film.mp4", 12)
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 12, *FACE))
    made = []
    for is_first in (True, False):
        pipe = FakePipe()
        pipe.is_first_process = is_first
        out = tmp_path / f"{is_first}.mp4"
        dub(pipe, video=source, audio=noise(0.48), out=out, detections=faces, **FAST)
        made.append([call["audio_features"] for call in pipe.calls])
        assert out.exists() == is_first
    assert len(made[0]) > 1 and all(torch.equal(*pair) for pair in zip(*made, strict=True))


def test_few_pictures_are_held(tmp_path, monkeypatch):
    """The largest number of full pictures alive at once is the same for 30 frames and for 60."""
    most = []
    for count in (30, 60):
        source = film(tmp_path / f"{count}.mp4", count)
        faces = write_faces(tmp_path / "faces.jsonl", still(0, count, *FACE))
        counts, alive = [], set()

        def counted(array, counts=counts, alive=alive, make=torch.from_numpy):
            if array.shape == (96, 160, 3):
                alive.add(id(array))
                weakref.finalize(array, alive.discard, id(array))
                counts.append(len(alive))
            return make(array)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "from_numpy", counted)
            dub(FakePipe(), video=source, audio=noise(1.0), out=tmp_path / "out.mp4", detections=faces, **FAST)
        assert len(counts) > 2 * count
        most.append(max(counts))
    assert most[0] == most[1] < 20


def test_the_debug_video_shows_what_was_found(tmp_path, written):
    source = film(tmp_path / "film.mp4", 12)
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 8, *FACE), still(0, 12, 130, 48, 40))
    made = dub(FakePipe(), video=source, audio=noise(0.4), out=tmp_path / "out.mp4", detections=faces, face=1,
               debug_video=tmp_path / "debug.mp4", **FAST)  # fmt: skip
    assert made.untouched == {"no face": 4}
    plain, drawn = written("out.mp4"), written("debug.mp4")
    assert plain.shape == drawn.shape == (12, 96, 160, 3)
    box = drawn[:, 72, 70:90]  # the lower edge of face 1
    shown, fading = torch.tensor([0x30, 0xE0, 0x60]), torch.tensor([0xFF, 0xC0, 0x20])
    assert (box[:3] == shown).all() and (box[3:8] == fading).all()
    assert torch.equal(box[8:], plain[8:, 72, 70:90])
    assert (drawn[:, 48 + 20, 120:140] == torch.tensor([0x60, 0xB0, 0xFF])).all()


def test_generate_dubs_what_is_not_aligned(tmp_path, written):
    source = film(tmp_path / "film.mp4", 10)
    pipe = FakePipe()
    with pytest.raises(RequestError, match=r"video: .*film.mp4: shows no face in 10 pictures \(0.4 s\)"):
        generate(pipe, prompt="p", video=source, audio=noise(0.4), out=tmp_path / "out.mp4", **FAST)
    made = generate(pipe, prompt="p", video=source, audio=noise(0.4), out=tmp_path / "out.mp4", aligned=True, **FAST)
    assert (made.height, made.width) == (64, 64)


def test_a_clip_in_memory_is_dubbed_as_one_in_a_file(tmp_path, written):
    rate = 30  # of which the last picture's 25 a second are no whole part
    frames = torch.randint(60, 200, (12, 97, 161, 3), dtype=torch.uint8)
    clip = Clip(frames, Fraction(rate), noise(0.4))
    common = {"video": clip, "audio": noise(0.6), "detections": write_faces(tmp_path / "f.jsonl", still(0, 12, *FACE))}
    common |= {"extend": "hold", "keep_audio": "-20dB", **FAST}
    dub(FakePipe(), out=tmp_path / "out.mp4", **common)
    made = dub(FakePipe(), **common)
    _, times = pictures_of(tmp_path / "out.mp4")
    lasting = np.diff([*times.starts, times.stop]) * times.tick * rate  # in frames of the clip
    shown = written("out.mp4").repeat_interleave(torch.tensor([round(ticks) for ticks in lasting]), dim=0)
    assert torch.equal(made.clip.frames[:, :96, :160], shown) and made.clip.frames.shape[1:] == (97, 161, 3)
    assert made.path is None and made.clip.frame_rate == rate and len(shown) == round(0.6 * rate)
    assert made.dubbed and not torch.equal(made.clip.frames[:12], frames)
    assert made.clip.sound.duration == pytest.approx(0.6, abs=1e-3)
    silent = Clip(frames, Fraction(rate))
    with pytest.raises(RequestError, match="face speaking needs the video's own sound: the given clip has none"):
        dub(FakePipe(), **{**common, "video": silent, "face": "speaking"})
    with pytest.raises(RequestError, match="out is missing: only what is made of a clip"):
        dub(FakePipe(), **{**common, "video": tmp_path / "out.mp4"})


def test_what_cannot_be_dubbed_is_named(tmp_path, monkeypatch):
    source = film(tmp_path / "film.mp4", 10)
    common = {"video": source, "audio": noise(0.4), "out": tmp_path / "out.mp4", **FAST}
    with pytest.raises(RequestError, match=r"animates a portrait \(33 channels\); video needs a V2V checkpoint"):
        dub(FakePipe(in_dim=33), **common)
    small = write_faces(tmp_path / "faces.jsonl", still(0, 10, *FACE, 24))
    with pytest.raises(RequestError, match=r"face largest cannot be dubbed in .*film.mp4: too small in 10 frames\."):
        dub(FakePipe(), detections=small, **common)
    nobody = write_faces(tmp_path / "nobody.jsonl")
    with pytest.raises(RequestError, match=r"^detections: .*nobody.jsonl: has no face in any frame$"):
        dub(FakePipe(), detections=nobody, **common)
    late = write_faces(tmp_path / "late.jsonl", still(0, 11, *FACE))
    with pytest.raises(RequestError, match=r"detections: .*has a face in frame 10, but .*film.mp4 has only 10 frames"):
        dub(FakePipe(), detections=late, **common)
    with pytest.raises(RequestError, match="overlap is 9 in chunks of 9 frames"):
        dub(FakePipe(), **{**common, "overlap": 9})
    found = write_faces(tmp_path / "found.jsonl", still(0, 10, *FACE))
    with pytest.raises(RequestError, match="too few for a reference sequence of 9 frames"):
        dub(FakePipe(in_dim=65), detections=found, **common)
    monkeypatch.setitem(dub.__globals__["read_dub_inputs"].__globals__, "speech_spans", lambda _: [])
    with pytest.raises(RequestError, match=r"^audio has no voice in it for face largest, so keep_audio gaps"):
        dub(FakePipe(), detections=found, keep_audio="gaps", **common)
    assert not (tmp_path / "out.mp4").exists()
