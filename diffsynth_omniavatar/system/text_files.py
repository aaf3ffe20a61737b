"""Text files that users write: UTF-8 by lines, and JSON; their faults are named by file and line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def read_text(path: str | Path) -> str:
    r"""The content of a UTF-8 file, without a byte order mark; \r\n and \r become \n.

    Raises:
        ValueError: it is not UTF-8; the message begins with the path and tells the line.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    r"""The lines of a file that are not blank, without space around them, with their numbers; raises as `read_text`.

    Only \n ends a line: U+2028, U+0085 and vertical tabs, which `str.splitlines` takes for ends too, stand in texts
    that were pasted from web pages and word processors.
    """
    lines = ((number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), start=1))
    return [(number, line) for number, line in lines if line]


def parse_json(text: str, name: str) -> Any:
    """What a JSON text says; `name` begins the message of a fault.

    Raises:
        ValueError: it is not valid, nested too deep, or has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_pairs)
    except RecursionError as error:
        raise ValueError(f"{name} is not valid JSON: nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error


def refuse_repeated(keys: Iterable[Any]) -> None:
    """ValueError if a key comes twice: one of its values would be lost."""
    repeated = [str(key) for key, times in Counter(keys).items() if times > 1]
    if repeated:
        raise ValueError(f"{', '.join(repeated)} stands there twice")


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    refuse_repeated(key for key, _ in pairs)
    return dict(pairs)
