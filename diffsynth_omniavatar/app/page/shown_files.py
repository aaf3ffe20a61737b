"""Copies of files that the page shows: the server hands out nothing but what lies in its folder of uploads."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def shown_copy(path: Path, uploads: Path) -> Path:
    """A video that a browser can be given; the copy takes no room where both lie on one disk.

    Args:
        path: where it lies, already found to be readable.
        uploads: the folder.
    """
    found = path.stat()
    mark = f"{path.absolute()} {found.st_size} {found.st_mtime_ns}"
    name = re.sub(r"[^\w.-]", "_", path.name, flags=re.ASCII)
    copy = uploads / "shown" / hashlib.sha256(os.fsencode(mark)).hexdigest()[:32] / name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), copy)
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, copy)
    return copy


def shown_file(path: Path, uploads: Path) -> str | None:
    """Where the copy of a file lies; None where the file is gone."""
    return str(shown_copy(path, uploads)) if path.is_file() else None


def shown_values(values: Mapping[str, Any], uploads: Path) -> dict[str, Any]:
    """Values of a form's fields with copies in the place of files."""
    return {name: shown_file(value, uploads) if isinstance(value, Path) else value for name, value in values.items()}
