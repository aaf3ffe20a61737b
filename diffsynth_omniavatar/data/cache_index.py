"""The index.json of caches: which entries it has, and whether it is complete."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..system.text_files import parse_json, read_text

CACHE_FORMAT = 2
CACHE_INDEX = "index.json"

_TOP = {"complete": bool, "settings": dict, "texts": dict, "clips": list}
_SETTINGS = {"in_dim": int, "audio_dim": int}
_ENTRY = {"name": str, "key": str, "text": str, "prompt": str, "sources": list}
_COUNTS = ("frames", "num_frames", "references", "height", "width")
_SOURCE = {"path": str, "size": int, "mtime_ns": int, "sha256": str}


class StaleCacheError(ValueError):
    """A cache does not belong to the clips or the settings of this run; the message says what differs."""


def text_key(prompt: str) -> str:
    """The name of a prompt's embedding in a cache."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def read_index(folder: Path) -> dict[str, Any] | None:
    """The content of a cache's index.json; None if there is none.

    Raises:
        StaleCacheError: it is damaged, lacks something, or is of another format; the message begins with its path.
    """
    path = folder / CACHE_INDEX
    if not path.is_file():
        return None
    try:
        index = parse_json(read_text(path), str(path))
    except ValueError as error:
        raise StaleCacheError(f"{error}; remove the folder and make it again") from error
    found = index.get("format") if isinstance(index, dict) else None
    if found != CACHE_FORMAT:
        raise StaleCacheError(f"{path} has format {found}, this version reads {CACHE_FORMAT}; make the cache again")
    fault = next(_faults(index), None)
    if fault is not None:
        raise StaleCacheError(f"{path} is damaged: {fault}; remove the folder and make it again")
    return index


def _faults(index: Mapping[str, Any]) -> Iterator[str]:
    yield from _missing(index, _TOP, "it")
    yield from _missing(index["settings"], _SETTINGS if index["complete"] else {}, "settings")
    for key, shape in index["texts"].items():
        if not isinstance(shape, list) or len(shape) != 2 or not all(_is_count(size) for size in shape):
            yield f"the shape of text {key} is {shape}"
    for number, entry in enumerate(index["clips"], start=1):
        yield from _entry_faults(entry, index["texts"], f"clip {number}")


def _entry_faults(entry: Any, texts: Mapping[str, Any], where: str) -> Iterator[str]:
    yield from _missing(entry, _ENTRY, where)
    for name in _COUNTS:
        if not _is_count(entry.get(name)):
            yield f"{where} has {name} {entry.get(name)!r}, wanted a whole number"
    if not isinstance(entry.get("file", ""), str):
        yield f"{where} has file {entry['file']!r}, wanted a text"
    for text in (entry["text"], text_key("")):
        if text not in texts:
            yield f"{where} needs text {text}, which it does not have"
    for source in entry["sources"]:
        yield from _missing(source, _SOURCE, f"a source of {where}")


def _missing(thing: Any, wanted: Mapping[str, type], where: str) -> Iterator[str]:
    if not isinstance(thing, dict):
        yield f"{where} is a {type(thing).__name__}, wanted an object"
        return
    for name, kind in wanted.items():
        if type(thing.get(name)) is not kind:
            yield f"{where} has {name} {str(thing.get(name))[:40]!r}, wanted a {kind.__name__}"


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
