"""Writing a cache: a full disk takes one line and nothing is lost; what killed runs left is removed."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_clips import write_cache

from diffsynth_omniavatar.data.cache_index import text_key
from diffsynth_omniavatar.data.cache_writer import CacheWriter, reserved_cache, write_index
from diffsynth_omniavatar.system.atomic import clear_leftovers

MAIN: Any = SimpleNamespace(is_main_process=True, process_index=0, num_processes=1)


def writer_of(folder: Path) -> CacheWriter:
    """One without networks, that can save."""
    writer = object.__new__(CacheWriter)
    writer.folder, writer.state = folder, MAIN
    return writer


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file can have more than `size` bytes, as on a disk that gets full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_takes_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    writer.save(tmp_path / "clips" / "small.safetensors", {"x": torch.zeros(4)})
    words = rf"^{tmp_path} cannot be written: File too large. What is done is kept"
    with little_room(4096):
        with pytest.raises(OSError, match=words):
            writer.save(tmp_path / "clips" / "large.safetensors", {"x": torch.zeros(100_000)})
        with pytest.raises(OSError, match=words):
            write_index(tmp_path, {"clips": ["x" * 10_000]})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["small.safetensors"]


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write_cache(tmp_path)
    kept = set(tmp_path.rglob("*"))
    for left in (".index.json.x1y2z3.json", "clips/.tmpAbCdEf", "text/.half.safetensors.x1y2z3.safetensors"):
        (tmp_path / left).write_text("half")
    for folder in (".index.json.abcd1234", "clips/.key0.safetensors.a_cd1234"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".tmpAbCdEf").touch()
    for other in (".gitignore", "clips/.nfs000001"):
        (tmp_path / other).touch()
        kept.add(tmp_path / other)
    (tmp_path / ".link.abcd1234").symlink_to(tmp_path / "clips")
    kept.add(tmp_path / ".link.abcd1234")
    (tmp_path / ".git.abcd1234").mkdir()
    (tmp_path / ".git.abcd1234" / "HEAD").touch()
    with reserved_cache(tmp_path, MAIN):
        pass
    assert {*tmp_path.rglob("*")} == kept | {tmp_path / ".git.abcd1234", tmp_path / ".git.abcd1234" / "HEAD"}
    clear_leftovers(tmp_path / "not there")


def test_texts_and_silence_without_an_index_are_not_used_again(tmp_path: Path) -> None:
    write_cache(tmp_path)
    with reserved_cache(tmp_path, MAIN):
        assert (tmp_path / "silence.safetensors").is_file()
    (tmp_path / "index.json").unlink()
    with reserved_cache(tmp_path, MAIN):
        assert not (tmp_path / "silence.safetensors").exists()
        assert not (tmp_path / "text" / f"{text_key('')}.safetensors").exists()
        assert len([*(tmp_path / "clips").iterdir()]) == 2  # their names stand for the settings


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with (
        pytest.raises(OSError, match=rf"^{tmp_path / 'cache'} cannot be written: "),
        reserved_cache(tmp_path / "cache", MAIN),
    ):
        pass
