"""Which paths that somebody types may be read: those in the page's own folder and in the folders of --data.

Imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...data.cache_index import CACHE_INDEX
from ...data.prepare.sources import SUFFIXES

TABLE = "metadata.csv"
"""As `omniavatar prepare` calls it."""
MOST_OFFERED = 100
"""Data sets, or evaluations, that are offered to choose from."""


class Readable:
    """The folders that the page may read.

    Args:
        folders: absolute paths, the page's own first.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [folder.resolve() for folder in folders]

    def path(self, text: str) -> Path:
        """A path that somebody typed.

        Raises:
            ValueError: it is not there, or not in one of the folders.
        """
        text = text.strip()
        if not text:
            raise ValueError("give the path of a table, a cache, a folder of `omniavatar prepare` or a folder of clips")
        if "\0" in text:
            raise ValueError("a path has no zero bytes")
        path = Path(text).absolute()
        try:
            is_inside, is_there = self.holds(path), path.exists()
        except OSError as error:  # too long a name, or a loop of links
            raise ValueError(f"{text[:80]} cannot be a path: {error.strerror}") from error
        if not is_inside:  # nobody learns whether something is there
            raise ValueError(
                f"{text[:200]} is not in the folders that the page may read ({', '.join(map(str, self.folders))}); "
                "`omniavatar page --data FOLDER` adds one"
            )
        if not is_there:
            raise ValueError(f"{text[:200]} is not there")
        return path

    def holds(self, path: Path) -> bool:
        """Whether a path lies in one of the folders, links followed."""
        real = path.resolve()
        return any(real.is_relative_to(folder) for folder in self.folders)

    def data_sets(self) -> list[str]:
        """Paths of what training can read, in the folders and two levels below."""
        return self.search(_is_data_set, within_found=False)

    def search(self, is_wanted: Callable[[Path, Sequence[Path]], bool], *, within_found: bool) -> list[str]:
        """The first folders of a kind, in the folders and two levels below.

        Args:
            is_wanted: called with a folder and what is in it.
            within_found: whether to look for more in one that is wanted.
        """
        found = itertools.chain.from_iterable(_search(folder, is_wanted, within_found, 2) for folder in self.folders)
        return [str(path) for path in itertools.islice(found, MOST_OFFERED)]


def _search(
    folder: Path, is_wanted: Callable[[Path, Sequence[Path]], bool], within_found: bool, deeper: int
) -> Iterator[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    found = is_wanted(folder, inside)
    if found:
        yield folder
    if not deeper or (found and not within_found):
        return
    for path in inside:
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _search(path, is_wanted, within_found, deeper - 1)


def _is_data_set(_: Path, inside: Sequence[Path]) -> bool:
    names = {path.name for path in inside}
    return CACHE_INDEX in names or TABLE in names or any(path.suffix.lower() in SUFFIXES for path in inside)
