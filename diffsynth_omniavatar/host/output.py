"""What DiffSynth-Studio prints while it loads a model."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_host(show: bool = False) -> Iterator[None]:
    """Keep from stdout what the host prints while it loads, some 60 lines; `show` or a defect shows it."""
    if show:
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
