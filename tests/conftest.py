"""Which tests run, where they find reference numbers (`goldens`) and real clips (`shared_data`), how they start."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffsynth_omniavatar.host.versions import host_generation, host_version

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
def logging_of_a_new_process() -> Iterator[None]:
    """What a command sets of the package's logging, be it for a module's fixture, does not reach a test."""
    _restore_logging()
    yield
    _restore_logging()


def _restore_logging() -> None:
    logger = logging.getLogger("diffsynth_omniavatar")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What need not run on both hosts runs on DiffSynth 2.x alone; what forks comes first, so that one of pytest's
    processes has it all: its server imports the package (`processes`).
    """
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)
    if host_generation(host_version()) == "wan_video":
        return
    left_out = [item for item in items if item.get_closest_marker("one_host")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("one_host")]
