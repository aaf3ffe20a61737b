"""`omniavatar check`: all faults of all clips, before any training."""

from __future__ import annotations

import argparse

from ..system.messages import counted
from .flags import add_data_arguments, data_of
from .scan import check_dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar check`."""
    add_data_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """`omniavatar check`: list all faults; the exit code is 1 if there are any."""
    clips, settings, recipe = data_of(args)
    faults = check_dataset(clips, settings, recipe)
    for fault in faults:
        print(f"{fault.clip}: {fault.told}")
    bad = len({fault.index for fault in faults})
    print(f"{counted(len(clips), 'clip')}, {bad} of them with faults")
    return 1 if faults else 0
