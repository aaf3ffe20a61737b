"""How commands speak: exit codes, lines on stderr, the package's log, and which of the host's messages are shown."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

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


@contextlib.contextmanager
def quiet_host(debug: bool) -> Iterator[None]:
    """Keep from stdout what the host prints while it loads, some 60 lines; `debug` and an error show it."""
    if debug:
        yield
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except (OSError, ValueError, KeyboardInterrupt):  # what was given is at fault, and the message says it
        raise
    except BaseException:
        sys.stderr.write(printed.getvalue())
        raise
