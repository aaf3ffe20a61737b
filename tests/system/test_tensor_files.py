"""Files are written whole or not at all, and a damaged one is named, wherever it is cut."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from diffsynth_omniavatar.model.checkpoint import CheckpointError, load_checkpoint
from diffsynth_omniavatar.system.atomic import write_text_atomically
from diffsynth_omniavatar.system.tensor_files import (
    DamagedFileError,
    read_pickle,
    read_safetensors,
    write_pickle,
    write_safetensors,
)

TENSORS = {f"blocks.{number}.x": torch.arange(64.0) for number in range(20)}
WRITERS: Any = pytest.mark.parametrize("write", [write_pickle, write_safetensors])


@WRITERS
def test_a_file_that_does_not_fit_on_the_disk_is_an_oserror_with_its_name(tmp_path, write):
    path = tmp_path / "model"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        with pytest.raises(OSError, match=r"File too large: '.*model'"):
            write(path, TENSORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


@WRITERS
def test_a_file_has_the_permissions_of_any_new_file_and_nothing_lies_beside_it(tmp_path, write):
    write(tmp_path / "model", TENSORS)
    write_text_atomically(tmp_path / "text", "x")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "text"}
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "other").stat().st_mode}


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    happened = []
    monkeypatch.setattr(os, "fsync", lambda handle: happened.append(os.readlink(f"/proc/self/fd/{handle}")))
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, new: happened.append("rename") or rename(path, new))
    write_text_atomically(tmp_path / "file", "x")
    assert [Path(step).name for step in happened] == ["file", "rename", tmp_path.name]


@pytest.mark.parametrize(("write", "read"), [(write_pickle, read_pickle), (write_safetensors, read_safetensors)])
def test_a_file_that_was_cut_anywhere_is_named(tmp_path, write, read):
    path = tmp_path / "pytorch_model.pt"
    write(path, TENSORS)
    whole = path.read_bytes()
    assert read(path).keys() == TENSORS.keys()
    for permille in range(0, 1000, 19):
        path.write_bytes(whole[: len(whole) * permille // 1000])
        with pytest.raises(DamagedFileError, match=rf"{path} is no .*cut"):
            read(path)
        with pytest.raises(CheckpointError, match=rf"{path} is no .*cut"):
            load_checkpoint(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read(path)
