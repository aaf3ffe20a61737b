"""The list of clips: tables, lists of prepared directories, caches."""

from __future__ import annotations

import csv
import functools
import io
import mimetypes
import os.path
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..system.text_files import parse_json, read_lines, read_text
from .cache import Cache
from .clips import ClipSource
from .portrait_clip import PortraitClip
from .prepared import PreparedClip
from .video_clip import VideoClip

COLUMNS = ("video", "prompt", "audio", "reference", "mask")
_WANTED = (
    "wanted a table (.csv, .json or .jsonl, with the columns video and prompt), a text file with a prepared directory "
    "a line, or the folder of a cache"
)
SHOWN = 5
"""Most faults of a table that are told at once."""

Row = tuple[str, dict[str, Any]]
"""Where a row stands in its table, and its values by column."""


def read_clips(path: str | Path, base_path: str | Path | None = None) -> list[ClipSource]:
    """The clips that a file or folder names, in its order.

    Args:
        path: one of
            a cache, the folder that `precompute` wrote;
            a table .csv, .json (a list of objects) or .jsonl with `video` and `prompt`, and optionally `audio`,
            `reference` (identity image) and `mask`; where `video` is a directory, it is a prepared one and needs no
            `prompt`; a row without `video` is a portrait, in `reference`, with a speech in `audio`, for distillation;
            any other file: a list of prepared directories, one a line.
        base_path: folder that the paths start from; None or "" for the folder of the file.

    Raises:
        ValueError: the file is missing, unreadable, names no clip or has rows that cannot be meant; the message names
            the file and the rows.
        StaleCacheError: the cache is not usable.
    """
    path = Path(path)
    if path.is_dir():
        return list(Cache(path).clips)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; {_WANTED}")
    base = Path(base_path) if base_path else path.parent
    if not base.is_dir():
        raise ValueError(f"{base}, from which the paths in {path} start, is no folder")
    reader = _TABLE_READERS.get(path.suffix.lower())
    if reader is None:
        rows: list[Row] = [("", {"video": line}) for line in _directories(path, base)]
    else:
        rows = list(reader(path))
        _refuse_faults(path, rows)
    if not rows:
        raise ValueError(f"{path} names no clip")
    empty_text = functools.lru_cache(maxsize=None)(lambda folder: _find_empty_text(base, folder))
    return [_clip_of(row, base, reader is None, empty_text) for _, row in rows]


def _clip_of(
    row: Mapping[str, Any], base: Path, is_directory: bool, empty_text: Callable[[Path], Path | None]
) -> ClipSource:
    name = row.get("video")
    if not name:
        reference, audio = row["reference"], row["audio"]
        name = f"{reference} with {audio}"
        return PortraitClip.of(name, base / reference, base / audio, row.get("prompt") or "")
    video = base / name
    if is_directory or os.path.isdir(video):  # of a name that no file can have, it says no
        prompt = row.get("prompt") or None
        return PreparedClip(name=name, folder=video, prompt=prompt, empty_text=empty_text(video.parent))
    other = {part: base / row[part] if row.get(part) else None for part in ("audio", "reference", "mask")}
    return VideoClip(name=name, video=video, prompt=row.get("prompt") or "", **other)


def _find_empty_text(base: Path, folder: Path) -> Path | None:
    """`neg_text_emb.pt` in the root of prepared directories: the base folder, or the one they are in."""
    found = (root / "neg_text_emb.pt" for root in (base, folder) if os.path.isfile(root / "neg_text_emb.pt"))
    return next(found, None)


def _directories(path: Path, base: Path) -> list[str]:
    """The lines of a list of directories."""
    kind = (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
    if kind in ("video", "audio", "image"):
        raise ValueError(f"{path} is no list of clips, it seems to be a file of {kind}; {_WANTED}")
    lines = read_lines(path)
    for number, line in lines:
        if os.path.isfile(base / line):
            raise ValueError(
                f"{path}, line {number}: {line} is a file, and a list names prepared directories; videos belong in a "
                "table, .csv, .json or .jsonl, with the columns video and prompt"
            )
    return [line for _, line in lines]


def read_csv(path: Path) -> Iterator[Row]:
    """The rows of a table, by column, with their places; ValueError, naming the file and the line, for its faults."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    columns, faults, end = list[str](), list[str](), 0
    try:
        for values in reader:
            line, end = end + 1, reader.line_num
            if not values:
                continue
            if not columns:
                columns = values
                _refuse_other_separators(path, columns)
            elif len(values) == len(columns):
                yield f"line {line}", dict(zip(columns, values, strict=True))
            else:
                faults.append(f"line {line} has {len(values)} fields")
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if faults:
        raise ValueError(
            f"{path}: {_some(faults)}; the header has {len(columns)}. A text with a comma or a line break needs double "
            'quotes around it: "blue shirt, smiling"'
        )
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise ValueError(f"{path} has the column {', '.join(repeated)} twice")


def _refuse_other_separators(path: Path, columns: list[str]) -> None:
    found = next((mark for mark in ";\t" if len(columns) == 1 and mark in columns[0]), None)
    if found is not None:
        raise ValueError(f"{path} has {found!r} between its columns, wanted commas; its header is {columns[0]!r}")


def _read_json(path: Path) -> Iterator[Row]:
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, list):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, wanted a list of objects; every row needs a `video`"
        )
    yield from ((f"row {number}", row) for number, row in enumerate(content, start=1))


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        yield f"line {number}", parse_json(line, f"{path}, line {number},")


_TABLE_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
}
TABLE_SUFFIXES = tuple(_TABLE_READERS)


def _refuse_faults(path: Path, rows: list[Row]) -> None:
    """ValueError that names the rows of which it is not clear what they mean."""
    faults = [f"{place}: {fault}" for place, row in rows for fault in _faults(row)]
    if faults:
        raise ValueError(
            f"{path}: {_some(faults)}; every row needs a `video`; wanted the columns {', '.join(COLUMNS)}, all texts"
        )


def _some(faults: list[str]) -> str:
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more


def _faults(row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"a {type(row).__name__} in place of an object"
        return
    misspelt = _misspelt(row)
    for name, meant in misspelt.items():
        yield f"there is a column {name!r}, did you mean {meant!r}?"
    for column in COLUMNS:
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            yield f"{column} is {str(value)[:40]}, a {type(value).__name__}"
        elif value is not None and not _is_unicode(value):
            yield f"{column} has half of a surrogate pair"
    is_portrait = row.get("reference") and row.get("audio")
    if not row.get("video") and not is_portrait and "video" not in misspelt.values():
        near = [] if "video" in row else get_close_matches("video", row, n=1, cutoff=0.5)
        hint = f"; did you mean to call {near[0]!r} 'video'?" if near else ""
        yield f"no video; it has {', '.join(map(repr, row)) or 'nothing'}{hint}"


def _misspelt(row: Mapping[str, Any]) -> dict[str, str]:
    """Columns that would be passed over, but are nearly called as one that the row lacks."""
    found = {}
    lacking = [column for column in COLUMNS if column not in row]
    for name in row:
        near = get_close_matches(name.strip().casefold(), lacking, n=1, cutoff=0.85)
        if name not in COLUMNS and near:
            found[name] = near[0]
    return found


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
