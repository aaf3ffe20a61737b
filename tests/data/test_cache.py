"""A cache is whole and finite, or the clip and the file that are not are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data_clips import SETTINGS, draw, make, write_cache
from safetensors.torch import load_file, save_file

from diffsynth_omniavatar.data.cache_index import StaleCacheError, text_key
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.data.scan import check_dataset, scan_clips
from diffsynth_omniavatar.data.tables import read_clips

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

RECIPE = Recipe(prefix_frames=(1, 5), max_tokens=200)
TEXT, EMPTY = (f"text/{text_key(prompt)}.safetensors" for prompt in ("Speaks.", ""))


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def test_a_whole_cache_has_no_faults(tmp_path: Path) -> None:
    write_cache(tmp_path)
    assert check_dataset(read_clips(tmp_path), SETTINGS, RECIPE) == []
    assert draw(make(read_clips(tmp_path), RECIPE), 1).sources == ["two.mp4"]


@pytest.mark.parametrize(
    ("file", "name", "place", "clips"),
    [
        ("clips/key1.safetensors", "input_latents", 5, ["two.mp4"]),
        ("clips/key1.safetensors", "reference_latents", 5, ["two.mp4"]),
        ("clips/key1.safetensors", "reference_latents", -1, ["two.mp4"]),
        ("clips/key1.safetensors", "audio_features", -1, ["two.mp4"]),
        ("clips/key1.safetensors", "waveform", -1, ["two.mp4"]),
        (TEXT, "context", -1, ["one.mp4", "two.mp4"]),
        (EMPTY, "context", 0, ["one.mp4", "two.mp4"]),
        ("silence.safetensors", "5", 0, ["one.mp4", "two.mp4"]),
    ],
)
def test_a_check_reads_every_number(tmp_path: Path, file: str, name: str, place: int, clips: list[str]) -> None:
    write_cache(tmp_path)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[place] = float("nan")

    change(tmp_path / file, spoil)
    faults = check_dataset(read_clips(tmp_path), SETTINGS, RECIPE)
    assert [fault.clip for fault in faults] == clips
    assert f"{tmp_path / file} has NaN or infinite values in {name}" in faults[0].reason


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def lose(*names: str) -> Callable[[Path], None]:
    return lambda path: change(path, lambda tensors: [tensors.pop(name) for name in names])


def shorten(name: str) -> Callable[[Path], None]:
    return lambda path: change(path, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))


@pytest.mark.parametrize(
    ("damage", "file", "words", "clips"),
    [
        (cut, "clips/key1.safetensors", "is no safetensors file", ["two.mp4"]),
        (Path.unlink, "clips/key1.safetensors", "is missing", ["two.mp4"]),
        (lose("audio_features"), "clips/key1.safetensors", "has no audio_features", ["two.mp4"]),
        (shorten("reference_latents"), "clips/key1.safetensors", r"reference_latents is \[1, 16", ["two.mp4"]),
        (shorten("audio_features"), "clips/key1.safetensors", "audio_features is", ["two.mp4"]),
        (cut, TEXT, "is no safetensors file", ["one.mp4", "two.mp4"]),
        (Path.unlink, EMPTY, "is missing", ["one.mp4", "two.mp4"]),
        (lose("9"), "silence.safetensors", "has no 9", ["one.mp4", "two.mp4"]),
    ],
)
def test_cut_and_foreign_files_are_named_before_training(
    tmp_path: Path, damage: Callable[[Path], None], file: str, words: str, clips: list[str]
) -> None:
    write_cache(tmp_path)
    damage(tmp_path / file)
    faults = scan_clips(read_clips(tmp_path), SETTINGS, RECIPE).faults
    assert [fault.clip for fault in faults] == clips
    for fault in faults:
        with pytest.raises(ValueError, match=f"{file}.*{words}"):
            raise ValueError(fault.reason)


def test_an_index_that_is_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    index = write_cache(tmp_path)
    path = tmp_path / "index.json"
    text = path.read_text()
    for end in range(1, len(text), 97):
        path.write_text(text[:end])
        with pytest.raises(StaleCacheError, match=r"index\.json is not valid JSON.*line"):
            read_clips(tmp_path)
    for name in ("complete", "settings", "texts", "clips"):
        path.write_text(json.dumps({key: value for key, value in index.items() if key != name}))
        with pytest.raises(StaleCacheError, match=rf"index\.json is damaged: it has {name}"):
            read_clips(tmp_path)
    for name in index["clips"][1].keys() - {"mask"}:
        for value in (None, [1], -1):
            path.write_text(json.dumps({**index, "clips": [index["clips"][0], {**index["clips"][1], name: value}]}))
            with pytest.raises(
                StaleCacheError, match=rf"index\.json is damaged: clip 2 (has {name}|needs text)|a source of clip 2"
            ):
                read_clips(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "5", "null", "[" * 100_000, '{"format": 2}', '{"format": 99}', "\ud800"]
)
def test_foreign_indices_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(StaleCacheError, match=r"^[^\n]*index\.json [^\n]*$"):
        read_clips(tmp_path)
