"""How commands speak: exit codes, lines on stderr, the package's log."""

from __future__ import annotations

import logging
import sys

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
"""Exit codes: something that was looked at or tried failed; what was given is wrong; Ctrl-C."""


def say(message: str) -> None:
    """One line on stderr."""
    print("omniavatar:", " ".join(message.split()), file=sys.stderr)


class _LogHandler(logging.Handler):
    """Shows what the package logs; to the stderr of the moment, which a progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def show_log() -> None:
    """Let what the package logs be seen."""
    logger = logging.getLogger("diffsynth_omniavatar")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _LogHandler) for handler in logger.handlers):
        logger.addHandler(_LogHandler())
