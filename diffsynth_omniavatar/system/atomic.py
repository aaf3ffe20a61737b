"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file in a temporary folder beside `path`, then rename it to `path`.

    The file is on the disk before it gets its name, so that a power cut leaves the old file or the new one. Whatever
    else `write` leaves in the folder goes with it.

    Raises:
        OSError: the file cannot be written; `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary = scratch / path.name
        write(temporary)
        temporary.chmod(_new_file_mode(scratch))  # safetensors lets nobody else read what it writes
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_SCRATCH = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
_UNFINISHED = re.compile(r"\.tmp\w{6}|\..+\.\w+\.(safetensors|json)")
"""What safetensors writes first, and what `write_atomically` once did."""


def clear_leftovers(folder: Path) -> None:
    """Remove what runs that were killed have left of `write_atomically` in a folder, in which nobody may be writing."""
    for left in folder.glob(".*"):
        scratch = _SCRATCH.fullmatch(left.name)
        if scratch and left.is_dir() and not left.is_symlink():
            if all(part.name == scratch[1] or part.name.startswith((".tmp", ".mode")) for part in left.iterdir()):
                shutil.rmtree(left)
        elif _UNFINISHED.fullmatch(left.name) and left.is_file():
            left.unlink()


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8, as `write_atomically` does."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def _new_file_mode(folder: Path) -> int:
    """The permissions that a new file gets; to ask for the umask itself, one must change it for the whole process."""
    probe = folder / ".mode"
    probe.touch()
    return probe.stat().st_mode & 0o777


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
