"""The list of clips: tables, lists of prepared directories, caches."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .cache import Cache
from .clips import ClipSource
from .prepared import PreparedClip
from .video_clip import VideoClip


def read_clips(path: str | Path, base_path: str | Path | None = None) -> list[ClipSource]:
    """The clips that a file or folder names, in its order.

    Args:
        path: one of
            a cache, the folder that `precompute` wrote;
            a table .csv, .json (a list of objects) or .jsonl with `video` and `prompt`, and optionally `audio`,
            `reference` (identity image) and `mask`; where `video` is a directory, it is a prepared one and needs no
            `prompt`;
            any other file: a list of prepared directories, one a line.
        base_path: folder that the paths start from; None or "" for the folder of the file.

    Raises:
        ValueError: the file is missing, unreadable or names no clip.
        StaleCacheError: the cache is not usable.
    """
    path = Path(path)
    if path.is_dir():
        return list(Cache(path).clips)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a table of clips, a list of directories or a cache")
    base = Path(base_path) if base_path else path.parent
    is_table = path.suffix.lower() in _TABLE_READERS
    rows = _read_table(path) if is_table else [{"video": line} for line in _lines(path)]
    if not rows:
        raise ValueError(f"{path} names no clip")
    empty_text = functools.lru_cache(maxsize=None)(lambda folder: _find_empty_text(base, folder))
    return [_clip_of(row, base, not is_table, empty_text) for row in rows]


def _clip_of(
    row: Mapping[str, Any], base: Path, is_directory: bool, empty_text: Callable[[Path], Path | None]
) -> ClipSource:
    name = str(row["video"])
    video = base / name
    if is_directory or video.is_dir():
        prompt = row.get("prompt") or None
        return PreparedClip(name=name, folder=video, prompt=prompt, empty_text=empty_text(video.parent))
    other = {part: base / row[part] if row.get(part) else None for part in ("audio", "reference", "mask")}
    return VideoClip(name=name, video=video, prompt=row.get("prompt") or "", **other)


def _find_empty_text(base: Path, folder: Path) -> Path | None:
    """`neg_text_emb.pt` in the root of prepared directories: the base folder, or the one they are in."""
    found = (root / "neg_text_emb.pt" for root in (base, folder) if (root / "neg_text_emb.pt").is_file())
    return next(found, None)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _read_csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8-sig", newline="") as content:
        return list(csv.DictReader(content))


_TABLE_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _read_csv,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8-sig")),
    ".jsonl": lambda path: [json.loads(line) for line in _lines(path)],
}


def _read_table(path: Path) -> list[dict[str, Any]]:
    try:
        rows = _TABLE_READERS[path.suffix.lower()](path)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("video") for row in rows):
        raise ValueError(f"{path}: every row needs a `video`; wanted the columns video, prompt, audio, reference, mask")
    return rows
