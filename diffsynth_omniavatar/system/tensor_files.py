"""Files of tensors, pickled by torch or of safetensors: read with their faults named, written whole or not at all.

Pickles are never executed.
"""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic import write_atomically


class DamagedFileError(ValueError):
    """A file is cut, or holds no tensors; the message begins with its path."""


def read_pickle(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU, its tensors mapped from the file.

    Raises:
        DamagedFileError: the file is cut, foreign, or would have to be executed.
        OSError: it cannot be opened.
    """
    with open(path, "rb"):  # torch would hide in its own errors that the file is not there
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # a cut file breaks torch's readers anywhere: RuntimeError, EOFError, KeyError, ...
        reason = _reason(error)
        raise DamagedFileError(
            f"{path} is no file of tensors, and nothing of it was executed (is it cut?): {reason}"
        ) from error


def _reason(error: Exception) -> str:
    """What torch found, without its advice to execute the file."""
    _, found, rest = str(error).partition("WeightsUnpickler error: ")
    text = rest if found else str(error)
    return text.strip().split("\n")[0] or type(error).__name__


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """safetensors' `safe_open` on the CPU.

    Raises:
        DamagedFileError: the file is cut or foreign.
        OSError: it cannot be opened.
    """
    try:
        with safe_open(path, framework="pt") as content:
            yield content
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is no safetensors file (is it cut?): {error}") from error


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; raises as `open_safetensors`."""
    with open_safetensors(path) as content:
        return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118


def write_pickle(path: str | Path, value: Any) -> None:
    """`torch.save`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """

    def write(temporary: Path) -> None:
        # Through a file of Python's own: of the one that torch opens, it hides why it cannot be written.
        with temporary.open("wb") as file:
            torch.save(value, file)

    with _faults_of_the_disk(path):
        write_atomically(Path(path), write)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """safetensors' `save_file`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    content = None if metadata is None else dict(metadata)
    with _faults_of_the_disk(path):
        write_atomically(Path(path), lambda temporary: save_file(dict(tensors), temporary, metadata=content))


@contextmanager
def _faults_of_the_disk(path: str | Path) -> Iterator[None]:
    """Errors in which torch and safetensors wrap an OSError become that one, with the name of the file."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        number = _error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def _error_number(error: BaseException | None) -> int | None:
    """Of the OSError behind an error: its cause, or what it says in the words of safetensors, "(os error 28)"."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        _, found, rest = str(error).partition("(os error ")
        if found:
            return int(rest.partition(")")[0])
        error = error.__cause__ or error.__context__
    return None
