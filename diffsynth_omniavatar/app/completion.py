"""`omniavatar completion`: the script with which a shell completes the command.

The script has all flags and choices in it, so the shell starts no Python when somebody presses Tab.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

SHELLS = ("bash", "zsh", "fish")


def completion_script(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], shell: str
) -> str:
    """The script of one of `SHELLS`.

    Args:
        parser: of the whole command.
        commands: command -> its parser, with all its flags; they are told which of them may take files.
    """
    import shtab

    for command in commands.values():
        for action in command._actions:
            if action.nargs != 0 and action.choices is None and action.type in (None, str, Path):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
