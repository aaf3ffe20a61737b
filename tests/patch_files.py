"""patches/apply.py as a module, and what the tests of it and of the patches share."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PATCHES = Path(__file__).resolve().parents[1] / "patches"


@functools.cache
def apply_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("patches_apply", PATCHES / "apply.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed_version() -> str | None:
    try:
        return importlib.metadata.version("diffsynth")
    except importlib.metadata.PackageNotFoundError:
        return None


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.suffix != ".pyc"
    }
