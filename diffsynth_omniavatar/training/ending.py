"""Which errors end a run with a line, and their exit codes."""

from __future__ import annotations

import torch

from ..host.versions import UnsupportedHostError
from .accelerator import DivergedError

FAILED, WRONG_INPUT = 1, 2
"""Exit codes: the run failed; what was given is wrong."""
WRONG_INPUTS = (
    ValueError,
    UnsupportedHostError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
FAILURES = (OSError, DivergedError, torch.OutOfMemoryError, ModuleNotFoundError)


def error_code(error: Exception) -> int | None:
    """Of an error that is told in a line; None for one that is a defect of the program."""
    if isinstance(error, WRONG_INPUTS):
        return WRONG_INPUT
    killed_worker = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
    return FAILED if killed_worker or isinstance(error, FAILURES) else None
