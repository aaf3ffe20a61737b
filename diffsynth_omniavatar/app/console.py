"""How commands speak: exit codes, lines on stderr, the package's log."""

from __future__ import annotations

import logging
import sys
import warnings

FAILED, WRONG_INPUT = 1, 2
"""Exit codes: something that was looked at or tried failed; what was given is wrong. `signals` has those of an end."""


def say(message: str) -> None:
    """One line on stderr."""
    print("omniavatar:", " ".join(message.split()), file=sys.stderr)


class _LogHandler(logging.Handler):
    """Shows what the package logs; to the stderr of the moment, which a progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def show_log(debug: bool = False) -> None:
    """Let what the package logs be seen; other packages' warnings about their future only with `debug`."""
    logger = logging.getLogger("diffsynth_omniavatar")
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    if not any(isinstance(handler, _LogHandler) for handler in logger.handlers):
        logger.addHandler(_LogHandler())
    if not debug:
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category)
