"""Folders and files that a run writes: can they be written, and does another run write to them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


def check_output_folder(folder: str | Path) -> None:
    """Look whether a folder is there and can be written, or can be made; nothing is made.

    Raises:
        ValueError: it cannot.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir():
        raise ValueError(f"{folder}: {existing} is no folder; give another one to write to")
    if not can_write(existing):
        raise ValueError(f"{folder}: {existing} cannot be written; give another folder")


def can_write(folder: Path) -> bool:
    """Whether a file can be made in a folder; it is tried, because permissions do not tell of every file system."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def nearest_existing(path: str | Path) -> Path:
    """The path itself, or the first of the folders around it that is there."""
    path = Path(path).absolute()
    return next(there for there in (path, *path.parents) if os.path.lexists(there))


@contextlib.contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Within it no other run, on any machine that sees the folder, can reserve the folder.

    It is made if it is not there, and removed at the end if nothing is in it. The operating system gives a lock back
    when its process ends, however that happens.

    Raises:
        ValueError: another run has reserved it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    try:
        handle = locked(path, fcntl.lockf)  # unlike flock's, worker processes do not inherit it
    except BlockingIOError as error:
        holder = ""
        with contextlib.suppress(FileNotFoundError):
            holder = path.read_text(errors="replace").strip()
        raise ValueError(f"{folder} is in use by another run ({holder}); end it, or choose another folder") from error
    try:
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def locked(path: Path, lock: Callable[[int, int], None] = fcntl.flock) -> int:
    """A handle to a file, made if it is not there, which no other process gets as long as it is open.

    Args:
        path: the file; its content stays.
        lock: `fcntl.flock`, or `fcntl.lockf`, whose lock also ends when the process closes the file elsewhere.

    Raises:
        BlockingIOError: another process has it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(handle)
                raise BlockingIOError(errno.EAGAIN, "another process has it", str(path)) from error
            logger.warning("%s cannot be locked (%s): see to it that no other run writes there", path, error)
            return handle
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # the process that had it has just ended, and removed or renamed it
