"""Which field of the page a fault belongs to."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ...generation.request import RequestError
from ...host.versions import UnsupportedHostError

_FLAG = re.compile(r"(?<![\w-])--(\w+)")


class FieldFaults(ValueError):
    """What is wrong with what was filled in.

    Args:
        faults: by the name of the field, that of its flag; "" for what belongs to none.
    """

    def __init__(self, faults: Mapping[str, str]) -> None:
        self.faults = dict(faults)
        super().__init__("; ".join(self.faults.values()))

    def placed(self, fields: Collection[str]) -> dict[str, str]:
        """The faults by these fields; what belongs to none of them is put together under ""."""
        placed = {name: fault for name, fault in self.faults.items() if name in fields}
        rest = [fault for name, fault in self.faults.items() if name not in fields]
        return {**placed, "": "; ".join(rest)} if rest else placed


@contextmanager
def field_faults(files: Mapping[Path, str] | None = None) -> Iterator[None]:
    """Faults of requests, flags and files inside the block become `FieldFaults`.

    Args:
        files: how files of the page's own are called, whose paths say nothing to people.
    """
    try:
        yield
    except FieldFaults:
        raise
    except RequestError as error:
        raise FieldFaults({name: named(text, files) for name, text in error.by_argument().items()}) from error
    except (ValueError, OSError, UnsupportedHostError) as error:
        text = str(error)
        flag = _FLAG.search(text)
        raise FieldFaults({flag[1] if flag else "": named(text, files)}) from error


def sentence(error: object) -> str:
    """A message that begins with a capital and ends with one stop."""
    text = str(error)
    return text[:1].upper() + text[1:].removesuffix(".") + "."


def named(text: str, files: Mapping[Path, str] | None) -> str:
    """A message in which the page's own files have names that people know; it begins with a capital."""
    for path, name in (files or {}).items():
        text = re.sub(re.escape(f"{path}: ") + "(?=[a-z])", f"{name} ", text).replace(str(path), name)
    text = re.sub(r"^\w+: (?=the )", "", text)  # the field itself says which argument it is
    return text[:1].upper() + text[1:]
