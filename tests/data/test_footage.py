"""Clips of two lists that show the same video."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffsynth_omniavatar.data import footage
from diffsynth_omniavatar.data.cache import CachedClip
from diffsynth_omniavatar.data.footage import same_footage
from diffsynth_omniavatar.data.prepared import PreparedClip
from diffsynth_omniavatar.data.video_clip import VideoClip

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def video(path: Path, content: bytes | None = None) -> VideoClip:
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return VideoClip(name=path.name, video=path, prompt="")


def cached(path: Path, content: bytes) -> CachedClip:
    """Its video need not be there."""
    source = {"path": str(path), "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return CachedClip(cache=SimpleNamespace(), name=path.name, entry={"sources": [source]})


def test_the_same_path_or_the_same_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = [
        video(tmp_path / "a.mp4", b"aa"),
        video(tmp_path / "b.mp4", b"bbb"),
        cached(tmp_path / "gone" / "c.mp4", b"cccc"),
        PreparedClip(name="d", folder=tmp_path / "d"),
    ]
    (tmp_path / "d").mkdir()
    held_out = [
        video(tmp_path / "d" / ".." / "a.mp4"),
        video(tmp_path / "other" / "same_b.mp4", b"bbb"),
        video(tmp_path / "same_size.mp4", b"xxx"),
        video(tmp_path / "same_c.mp4", b"cccc"),
        cached(tmp_path / "elsewhere.mp4", b"aa"),
        cached(tmp_path / "same_size_c.mp4", b"dddd"),
        PreparedClip(name="d2", folder=tmp_path / "d"),
        video(tmp_path / "missing.mp4"),
    ]
    read: list[str] = []
    of_file = footage.file_sha256
    monkeypatch.setattr(footage, "file_sha256", lambda path: read.append(path.name) or of_file(path))
    held_out.append(video(tmp_path / "another_size.mp4", b"12345"))
    found = [clip.name for clip in same_footage(held_out, trained)]
    assert found == ["a.mp4", "same_b.mp4", "same_c.mp4", "elsewhere.mp4", "d2"]
    assert "another_size.mp4" not in read and same_footage([], trained) == []
