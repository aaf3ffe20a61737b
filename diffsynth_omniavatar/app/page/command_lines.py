"""The command line that does the same as the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def flag_words(values: Mapping[str, Any]) -> Iterator[str]:
    """Values of flags as words of a command line; None is left out."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif name == "dit":
            yield from (f"--{name}", *([value] if isinstance(value, str) else map(str, value)))
        elif isinstance(value, (list, tuple)):
            yield from (word for one in value for word in flag_words({name: one}))
        elif str(value).startswith("-"):
            yield f"--{name}={value}"
        else:
            yield from (f"--{name}", shown_path(value) if isinstance(value, Path) else str(value))


def shown_path(path: Path) -> str:
    """A path as it is typed where the page was started."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def command_line(command: Sequence[str], values: Mapping[str, Any]) -> str:
    """`omniavatar` with a command and flags, for a shell."""
    return shlex.join(["omniavatar", *command, *flag_words(values)])
