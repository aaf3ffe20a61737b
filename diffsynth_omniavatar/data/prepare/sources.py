"""Raw files: from folders, globs, lists and single names to files in a fixed order."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...system.messages import counted
from ...system.text_files import read_lines
from ..tables import TABLE_SUFFIXES

SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
"""Of the files in a folder those with these endings are taken; one that is named is taken whatever its ending."""

LIST_SUFFIXES = (".txt", ".lst", ".list")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A raw file."""

    path: Path

    @property
    def place(self) -> Path:
        """Where it lies, whatever it is called. `Path.resolve` raises for a link to itself, up to Python 3.12."""
        return Path(os.path.realpath(self.path))

    @property
    def key(self) -> str:
        """Begins the names of all files that are made of it: letters of its own name, and a hash of its place."""
        letters = re.sub(r"[^A-Za-z0-9]+", "-", self.path.stem).strip("-")[:32] or "video"
        return f"{letters}-{hashlib.sha256(os.fsencode(self.place)).hexdigest()[:8]}"


def find_sources(raw: Sequence[str | Path], out: Path) -> list[Source]:
    """The raw files that are meant, each once, in the order of `raw` and by name within it.

    Args:
        raw: folders, which are searched through for files of `SUFFIXES`; globs; .txt, .lst and .list files with a path
            a line, from their own folder on; video files.
        out: the output folder, whose files are no sources.

    Raises:
        ValueError: one of `raw` names nothing, or is a table.
    """
    out = out.resolve()
    found = dict[Path, Source]()
    for given in raw:
        sources = [Source(path=path) for path in _paths(str(given))]
        if not sources:
            raise ValueError(f"{given}: there is no video; give folders, globs, lists of files or video files")
        outside = [source for source in sources if not source.place.is_relative_to(out)]
        if not outside:
            raise ValueError(f"{given}: {counted(len(sources), 'video')}, all in the output folder {out}")
        for source in outside:
            found.setdefault(source.place, source)
    return list(found.values())


def _paths(given: str) -> Iterator[Path]:
    path = Path(given)
    if path.is_dir():
        yield from _videos_in(path)
    elif path.suffix.lower() in LIST_SUFFIXES and path.is_file() and not _is_binary(path):
        for number, line in read_lines(path):
            if not os.path.lexists(path.parent / line):
                raise ValueError(f"{path}, line {number}: {line} is not there")
            if (path.parent / line).suffix.lower() in LIST_SUFFIXES:
                raise ValueError(f"{path}, line {number}: {line} is a list, too; name it beside this one")
            yield path.parent / line
    elif path.suffix.lower() in TABLE_SUFFIXES and path.is_file() and not _is_binary(path):
        raise ValueError(
            f"{path} is no video; give folders, globs, lists of files (.txt, a path a line) or video files. A table of "
            "finished clips goes to `omniavatar check` and `precompute`, one with texts for raw files to --captions"
        )
    elif os.path.lexists(path):
        yield path
    else:
        yield from (Path(name) for name in sorted(glob.glob(given, recursive=True)) if os.path.isfile(name))


def _is_binary(path: Path) -> bool:
    """Whether a file that is called like a list may be a video."""
    with path.open("rb") as file:
        return b"\0" in file.read(4096)


def _videos_in(folder: Path) -> Iterator[Path]:
    """Files with the ending of a video, also in the folders within, and at last folders that cannot be searched: no
    clip is made of them, but they are told. Hidden ones are left out.
    """
    closed: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=closed.append):
        # A folder that is called like a video is told to be none.
        videos = [name for name in (*folders, *names) if Path(name).suffix.lower() in SUFFIXES]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in videos)
        yield from (Path(parent) / name for name in sorted(videos) if not name.startswith("."))
    yield from (Path(error.filename) for error in closed)


@dataclass(frozen=True)
class Shard:
    """One machine's part of the sources."""

    number: int = 1
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "2/8" -> the second of eight parts; ValueError for what is none."""
        numbers = re.fullmatch(r"(\d+)/(\d+)", text)
        if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise ValueError(f"--shard {text}: wanted i/n, the i-th of n parts, such as 1/4")
        return cls(int(numbers[1]), int(numbers[2]))

    def of(self, sources: Sequence[Source]) -> list[Source]:
        """Its part; all parts together are the sources, each once."""
        return list(sources[self.number - 1 :: self.total])
