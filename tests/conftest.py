"""Where tests find reference numbers (`goldens`) and real clips (`shared_data`)."""

import os
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
