"""Every file of a clip and every setting stands in a cache's keys: none changes unnoticed, and nothing else matters."""

import copy
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from data_clips import draw
from PIL import Image
from safetensors.torch import load_file
from synthetic_clips import noise, write_table, write_texture
from test_precompute import FLOAT32, RECIPE, SETTINGS, encoders, write

from diffsynth_omniavatar.data.cache_index import StaleCacheError
from diffsynth_omniavatar.data.cache_writer import plain_settings
from diffsynth_omniavatar.data.clips import ClipSettings
from diffsynth_omniavatar.data.dataset import OmniAvatarDataset
from diffsynth_omniavatar.data.encode import CacheOptions
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.nano.family import write_random_family

FRAMES = 19


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> OmniAvatarPipeline:
    return encoders(write_random_family(tmp_path_factory.mktemp("family"), in_dim=65))


def write_sound(path: Path, seconds: float, seed: int = 0) -> None:
    soundfile.write(path, noise(seconds, seed).samples[0], 16000)


def write_file(folder: Path, part: str, seed: int) -> Path:
    """A file of a clip; another seed is another content."""
    path = folder / {"video": "a.mp4", "audio": "a.wav", "reference": "face.png", "mask": "mask.png"}[part]
    if part == "video":
        write_texture(path, FRAMES, seed)
    elif part == "audio":
        write_sound(path, FRAMES / 25, seed)
    elif part == "reference":
        Image.new("RGB", (32, 32), (0, 0, 200 * seed)).save(path)
    else:
        half = np.full((32, 32), 255, np.uint8)
        half[16 * seed : 16 * seed + 16] = 0
        Image.fromarray(half).save(path)
    return path


MADE_OF = {
    "video": {"input_latents", "masked_latents"},
    "audio": {"audio_features", "waveform"},
    "reference": {"reference_latents"},
    "mask": {"masked_latents", "mouth_mask_latents"},
}
"""File of a clip -> the tensors of the cache that are made of it."""


def write_whole_clip(folder: Path) -> Path:
    """The table of a clip that has all its files."""
    folder.mkdir(exist_ok=True)
    row = {part: write_file(folder, part, seed=0).name for part in MADE_OF}
    return write_table(folder / "t.csv", [{**row, "prompt": "x"}])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whole_clip(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def cache(pipe: OmniAvatarPipeline, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    assert write(pipe, table, folder).encoded == 1
    return folder


def test_the_table_has_every_file_of_a_clip(table: Path) -> None:
    (clip,) = read_clips(table)
    assert clip.files().keys() == MADE_OF.keys()


@pytest.mark.parametrize("part", MADE_OF)
def test_a_clip_with_another_file_is_stale_and_encoded_anew(
    pipe: OmniAvatarPipeline, cache: Path, tmp_path: Path, part: str
) -> None:
    table, folder = write_whole_clip(tmp_path / "clips"), tmp_path / "cache"
    shutil.copytree(cache, folder)
    assert write(pipe, table, folder).kept == 1  # the same content in another place
    before = load_file(read_clips(folder)[0].path)
    changed = write_file(table.parent, part, seed=1)
    with pytest.raises(StaleCacheError, match=f"{changed.name} has changed since it was encoded"):
        OmniAvatarDataset(read_clips(folder), settings=SETTINGS, recipe=RECIPE)
    assert write(pipe, table, folder).encoded == 1
    after = load_file(read_clips(folder)[0].path)
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == MADE_OF[part]


KEYED: dict[type, dict[str, Any]] = {
    ClipSettings: {
        "in_dim": 65,
        "conventions": Conventions(first_frame="masked"),
        "height": 48,
        "width": 48,
        "mouth_mask": "the clip's",
    },
    Recipe: {"num_frames": 9, "max_tokens": 21},
    CacheOptions: {"references": 3, "audio_dtype": torch.bfloat16, "tiled": True},
}
"""What the content of a cache depends on -> another value."""

WITHOUT_EFFECT: dict[type, dict[str, Any]] = {
    ClipSettings: {"sound": True, "portraits": True, "audio_dim": 5, "text_dim": 7},
    Recipe: {
        "prefix_frames": (1,),
        "text_drop_prob": 0.7,
        "audio_drop_prob": 0.7,
        "prefix_drop_prob": 0.7,
        "min_frames": 5,
        "dynamic_length": False,
        "curriculum_frames": ((0, 9),),
    },
    CacheOptions: {},
}
"""What is drawn or compared in training -> another value."""

ELSEWHERE = {ClipSettings: {"faces"}}
"""What needs clips with faces; see `test_faces_that_are_cut_out_are_another_cache`."""

ARGUMENTS = {ClipSettings: ("settings", SETTINGS), Recipe: ("recipe", RECIPE), CacheOptions: ("options", FLOAT32)}
SHOWN_AS = {"conventions": "first_frame", "height": "size", "width": "size"}


@pytest.mark.parametrize("settings", KEYED)
def test_the_tables_have_every_setting(settings: type) -> None:
    assert {field.name for field in fields(settings)} == {
        *KEYED[settings], *WITHOUT_EFFECT[settings], *ELSEWHERE.get(settings, ()),
    }  # fmt: skip


def test_faces_that_are_cut_out_are_another_cache() -> None:
    usual, cut = (plain_settings(replace(SETTINGS, faces=faces), RECIPE, CacheOptions(), torch.float32)
                  for faces in ("any", "aligned"))  # fmt: skip
    assert usual != cut and usual == {name: value for name, value in cut.items() if name != "align"}


def fitting(pipe: OmniAvatarPipeline, settings: ClipSettings) -> OmniAvatarPipeline:
    """The same networks for other settings."""
    other = copy.copy(pipe)
    other.conventions = settings.conventions
    other.dit = SimpleNamespace(config=replace(pipe.dit.config, in_dim=settings.in_dim))
    return other


@pytest.mark.parametrize(("settings", "name"), [(kind, name) for kind, names in KEYED.items() for name in names])
def test_another_setting_is_another_cache(
    pipe: OmniAvatarPipeline, table: Path, cache: Path, tmp_path: Path, settings: type, name: str
) -> None:
    argument, usual = ARGUMENTS[settings]
    value = KEYED[settings][name]
    value = table.parent / "mask.png" if name == "mouth_mask" else value
    changed = {argument: replace(usual, **{name: value})}
    other = fitting(pipe, changed.get("settings", SETTINGS))
    with pytest.raises(StaleCacheError, match=f"{SHOWN_AS.get(name, name)} is .*, this run has"):
        write(other, table, cache, **changed)
    shutil.copytree(cache / "clips", tmp_path / "clips")  # nor is a clip's file taken where the index is lost
    shutil.copytree(cache / "text", tmp_path / "text")
    assert write(other, table, tmp_path, **changed).encoded == 1


def test_the_sizes_among_which_clips_choose_are_settings(pipe: OmniAvatarPipeline, table: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, height=None, width=None, conventions=Conventions(image_sizes=((32, 32),)))
    write(pipe, table, tmp_path, settings=settings)
    more = replace(settings, conventions=Conventions(image_sizes=((32, 32), (32, 64))))
    with pytest.raises(StaleCacheError, match="image_sizes is "):
        write(pipe, table, tmp_path, settings=more)


def test_what_training_draws_is_no_setting_of_a_cache(pipe: OmniAvatarPipeline, table: Path, cache: Path) -> None:
    changed = {name: replace(usual, **WITHOUT_EFFECT[kind]) for kind, (name, usual) in ARGUMENTS.items()}
    report = write(pipe, table, cache, **changed)
    assert (report.encoded, report.kept) == (0, 1)


@pytest.mark.parametrize("name", ["vae", "text_encoder", "speech_encoder", "dtype"])
def test_another_network_is_another_cache(
    pipe: OmniAvatarPipeline, table: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "dtype":
        monkeypatch.setattr(pipe, "torch_dtype", torch.bfloat16)
    else:
        *_, weight = getattr(pipe, name).parameters()
        monkeypatch.setattr(weight, "data", weight.data + 0.1)
    with pytest.raises(StaleCacheError, match=f"{name} is '.*', this run has '") as refused:
        write(pipe, table, cache)
    assert str(refused.value).count("this run has") == 1


def test_clips_of_different_mouth_masks_are_no_batch(
    pipe: OmniAvatarPipeline, table: Path, cache: Path, tmp_path: Path
) -> None:
    """A batch has one mask: clips of a cache that were masked otherwise do not share it."""
    video = str(table.parent / "a.mp4")
    rows = [{"video": video, "mask": str(table.parent / "mask.png"), "prompt": "x"}, {"video": video, "prompt": "x"}]
    write(pipe, write_table(tmp_path / "t.csv", rows), tmp_path / "cache")
    clips = read_clips(tmp_path / "cache")
    dataset = OmniAvatarDataset(clips, settings=SETTINGS, recipe=RECIPE, batch_size=2)
    assert dataset.items == [(0,), (1,)]
    masks = [draw(dataset, index).mouth_mask_latents for index in range(2)]
    assert not torch.equal(masks[0][:, :, :1], masks[1][:, :, :1])
    for clip, mask in zip(clips, masks, strict=True):
        own = load_file(clip.path)["mouth_mask_latents"]
        assert torch.equal(mask, own.expand_as(mask))


def test_a_sound_that_is_longer_than_the_picture_is_cut_to_it(pipe: OmniAvatarPipeline, tmp_path: Path) -> None:
    """Live and in a cache: what is said behind the last frame does not reach the features of those before."""
    write_texture(tmp_path / "a.mp4", FRAMES)
    write_sound(tmp_path / "long.wav", 2.0)
    sound, rate = soundfile.read(tmp_path / "long.wav", dtype="float32")
    soundfile.write(tmp_path / "cut.wav", sound[: FRAMES * 640], rate)
    rows = [{"video": "a.mp4", "audio": name, "prompt": "x"} for name in ("long.wav", "cut.wav")]
    table = write_table(tmp_path / "t.csv", rows)
    live = OmniAvatarDataset(read_clips(table), settings=SETTINGS, recipe=RECIPE)
    (long,), (cut,) = draw(live, 0).waveforms, draw(live, 1).waveforms
    assert len(cut) == FRAMES * 640 and torch.equal(long, cut)
    write(pipe, table, tmp_path / "cache")
    (long, cut) = (load_file(clip.path) for clip in read_clips(tmp_path / "cache"))
    for name in ("waveform", "audio_features"):
        assert torch.equal(long[name], cut[name]), name
