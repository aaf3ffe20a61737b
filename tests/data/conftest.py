"""What several tests of data/ read."""

from pathlib import Path

import pytest
from synthetic_clips import write_levels, write_table


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip of 40 frames and its table."""
    folder = tmp_path_factory.mktemp("levels")
    write_levels(folder / "a.mp4", 40)
    write_table(folder / "clips.csv", [{"video": "a.mp4", "prompt": "A face."}])
    return folder
