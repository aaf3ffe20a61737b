"""V2V clips need one aligned face; `check` names what is wrong with it, and `--align` cuts it out."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_clips import RECIPE
from nasty import drawn_people, encode
from PIL import Image
from synthetic_clips import write_table

from diffsynth_omniavatar.data import check
from diffsynth_omniavatar.data.clip_faces import FaceFaults, SeenFaces, cut_frames, face_crops
from diffsynth_omniavatar.data.clips import ClipSettings
from diffsynth_omniavatar.data.scan import check_dataset
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.media.faces.face import Face, Track
from diffsynth_omniavatar.media.faces.template import LATENTSYNC

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

SIZE = (256, 256)
SETTINGS = ClipSettings(in_dim=49, height=256, width=256)
RECIPE_OF_256 = replace(RECIPE, max_tokens=5000, prefix_frames=(1,))
PEOPLE = drawn_people(18, 288)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips of drawn people, and a table of them."""
    folder = tmp_path_factory.mktemp("clips")
    first, second = PEOPLE.first, PEOPLE.second
    shown = {
        "one": first,
        "far": np.pad(first[:, ::3, ::3], ((0, 0), (96, 96), (96, 96), (0, 0))),
        "two": np.concatenate([first, second], axis=2),
        "cut": np.concatenate([first[:9], second[:9, :, ::-1] // 2]),
        "nobody": np.full_like(first[:6], 90),
    }
    for name, frames in shown.items():
        encode(folder / f"{name}.mp4", frames, PEOPLE.speech)
    aligned = cut_frames(folder / "one.mp4", crops(folder / "one.mp4"), SIZE)
    encode(folder / "aligned.mp4", [frame.numpy() for frame in aligned], PEOPLE.speech, crf="5")
    write_table(folder / "t.csv", [{"video": f"{name}.mp4", "prompt": "x"} for name in ("aligned", *shown)])
    return folder


def crops(path: Path) -> torch.Tensor:
    transforms = face_crops(path, SIZE, LATENTSYNC, aligned=True)
    assert transforms is not None
    return transforms


def reasons(path: Path, aligned: bool) -> str:
    with pytest.raises(FaceFaults) as caught:
        face_crops(path, SIZE, LATENTSYNC, aligned=aligned)
    return "; ".join(caught.value.reasons)


def test_an_aligned_clip_is_taken_as_it_is(clips: Path) -> None:
    assert face_crops(clips / "aligned.mp4", SIZE, LATENTSYNC, aligned=False) is None


def test_ordinary_footage_is_told_to_be_aligned(clips: Path) -> None:
    told = reasons(clips / "one.mp4", aligned=False)
    assert told.startswith("the face is not aligned: ") and told.endswith(", or --align") and ";" not in told
    assert crops(clips / "one.mp4").shape == (18, 2, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody", "there is no face"),
        ("far", "the face is too small"),
        ("two", "there are two faces"),
        ("cut", "there is a cut in the middle"),
    ],
)
def test_what_is_wrong_with_a_face_is_named(clips: Path, name: str, words: str) -> None:
    assert reasons(clips / f"{name}.mp4", aligned=True).startswith(words)
    assert words in reasons(clips / f"{name}.mp4", aligned=False)


def test_a_face_that_is_too_small_is_told_beside_a_cut(clips: Path, tmp_path: Path) -> None:
    near = np.concatenate([PEOPLE.first[:9], PEOPLE.second[:9, :, ::-1] // 2])
    encode(tmp_path / "both.mp4", np.pad(near[:, ::3, ::3], ((0, 0), (96, 96), (96, 96), (0, 0))), PEOPLE.speech)
    told = reasons(tmp_path / "both.mp4", aligned=True)
    assert "too small" in told and "there is a cut" in told


def test_a_clip_on_its_head_is_told_how_to_stand(tmp_path: Path) -> None:
    encode(tmp_path / "turned.mp4", np.rot90(PEOPLE.first[:2], 2, (1, 2)), PEOPLE.speech)
    told = "the face is upside down: turn the picture, as `ffmpeg -i in.mp4 -vf hflip,vflip out.mp4` does"
    assert reasons(tmp_path / "turned.mp4", aligned=True) == told


def test_faces_matter_where_they_are_asked_for(clips: Path) -> None:
    listed = read_clips(clips / "t.csv")
    assert check_dataset(listed, SETTINGS, RECIPE_OF_256) == []
    checked = {fault.clip for fault in check_dataset(listed, replace(SETTINGS, faces="checked"), RECIPE_OF_256)}
    assert checked == {f"{name}.mp4" for name in ("one", "far", "two", "cut", "nobody")}
    aligned = {fault.clip for fault in check_dataset(listed[1:], replace(SETTINGS, faces="aligned"), RECIPE_OF_256)}
    assert aligned == checked - {"one.mp4"}
    assert replace(SETTINGS, height=None, width=None, faces="aligned").size_for(1920, 1080) == (720, 720)


def test_a_reference_to_align_needs_an_upright_face(clips: Path) -> None:
    person = Image.fromarray(PEOPLE.first[0])
    person.rotate(180).save(clips / "turned.png")
    Image.new("RGB", person.size).save(clips / "black.png")
    (clips / "broken.png").write_bytes(b"no picture")
    rows = [{"video": "one.mp4", "prompt": "x", "reference": f"{name}.png"} for name in ("turned", "black", "broken")]
    listed = read_clips(write_table(clips / "references.csv", rows))
    told = [fault.reason for fault in check_dataset(listed, replace(SETTINGS, faces="aligned"), RECIPE_OF_256)]
    assert len(told) == 3 and "broken.png" in told[2]
    assert told[:2] == [
        "in the reference image the face is upside down: turn the picture",
        "there is no face in the reference image",
    ]


def test_flags_choose_what_is_done_with_faces(clips: Path) -> None:
    parser = argparse.ArgumentParser()
    check.add_arguments(parser)

    def faces(*flags: str) -> str:
        _, settings, _ = check.data_of(parser.parse_args([str(clips / "t.csv"), *flags]))
        return settings.faces

    v2v = ("--omniavatar_mode", "v2v")
    assert [faces(), faces(*v2v), faces(*v2v, "--align"), faces(*v2v, "--no_face_check")] == [
        "any",
        "checked",
        "aligned",
        "any",
    ]
    with pytest.raises(ValueError, match="--align goes with --omniavatar_mode v2v"):
        faces("--align")
    with pytest.raises(ValueError, match="needs a V2V model"):
        ClipSettings(faces="checked")


def test_training_refuses_faces_that_only_precompute_cuts_out(clips: Path) -> None:
    settings = replace(SETTINGS, faces="aligned")
    clip = read_clips(clips / "t.csv")[1]
    facts = clip.inspect(settings, RECIPE_OF_256)
    with pytest.raises(ValueError, match="by precompute alone"):
        clip.load(facts, settings, 9, 0.0)


def test_the_main_person_is_seen_most_and_surely() -> None:
    face = Face(box=(0, 0, 40, 40), score=0.9, flag=0.9, anchors=((0, 0), (1, 0), (0, 1)), openness=0, width=0.5,
                yaw=0, pitch=0, roll=0, nose_offset=0)  # fmt: skip
    longer, unsure = Track(start=0, faces=(face, None, face, face)), replace(face, score=0.1, box=(0, 0, 90, 90))
    larger = Track(start=0, faces=(replace(face, box=(0, 0, 90, 90)), *[unsure] * 5))
    tracks = SeenFaces(6, 100, 100, (), frozenset(), (larger, longer), 0)
    assert tracks.main_track() is longer  # 120 pixels over its frames, the other 90
