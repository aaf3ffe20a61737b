"""Damaged files of every kind are refused by name, soon and in little memory."""

import pytest
from fuzz_media import fuzz

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_damaged_files_are_refused_by_name() -> None:
    broken, seen = fuzz(150, seed=1)
    assert [(one.case, one.name, one.reason) for one in broken] == []
    assert len(seen) == 16
