"""Where tests find reference numbers (`goldens`) and real clips (`shared_data`)."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of reference numbers: the environment variable OMNIAVATAR_GOLDENS, else tests/goldens."""
    folder = Path(os.environ.get("OMNIAVATAR_GOLDENS", TESTS / "goldens"))
    if not (folder / "meta.json").is_file():
        raise ValueError(f"OMNIAVATAR_GOLDENS: {folder} has no meta.json; give a folder of golden files")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real clips: the environment variable OMNIAVATAR_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("OMNIAVATAR_DATA", TESTS.parent.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}; set OMNIAVATAR_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a command sets of the package's logging does not reach the next test."""
    logger = logging.getLogger("diffsynth_omniavatar")
    level, handlers = logger.level, [*logger.handlers]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
