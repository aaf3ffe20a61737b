"""Parts of messages that several rooms share: numbers with their noun, files and flags that do not exist."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1, "chunk" -> "1 chunk"; 2, "chunk" -> "2 chunks"; 2, "process", "processes" -> "2 processes"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def no_file(path: str | Path) -> str:
    """What is said of a path at which there is no file: "clips is a folder, wanted a file"."""
    if not Path(path).exists():
        return f"{path} is not there"
    return f"{path} is {'a folder' if Path(path).is_dir() else 'a pipe or device'}, wanted a file"


def unknown_flags(arguments: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Names arguments that the parser does not know, and the flags that were probably meant.

    `["--stepz", "3"]` -> "unknown flags: --stepz 3; did you mean --steps?"
    """
    known = [flag for action in parser._actions for flag in action.option_strings if action.help != argparse.SUPPRESS]
    meant = []
    for argument in arguments:
        if argument.startswith("--"):
            meant += difflib.get_close_matches(argument.split("=")[0], known, n=1)
    hint = f"; did you mean {', '.join(dict.fromkeys(meant))}?" if meant else ""
    noun = "flags" if any(argument.startswith("-") for argument in arguments) else "arguments"
    return f"unknown {noun}: {' '.join(arguments)}{hint}"
