"""Several processes share the work; one that dies takes nothing with it but its item."""

import os
import signal

import pytest

from diffsynth_omniavatar.system.workers import Tell, work_through

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def halve(item: int, tell: Tell) -> float:
    tell(0.5)
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 99:
        raise OSError("the disk is full")
    return item / 2


def test_a_dead_process_costs_its_item_alone() -> None:
    parts = []
    done = {one.item: one for one in work_through(halve, range(7), 2, lambda item, part: parts.append((item, part)))}
    assert {item: one.result for item, one in done.items() if item != 3} == {n: n / 2 for n in (0, 1, 2, 4, 5, 6)}
    assert done[3].result is None and "ended by SIGKILL" in str(done[3].error)
    assert sorted(parts) == [(item, 0.5) for item in range(7)]


def test_what_the_work_raises_ends_it() -> None:
    with pytest.raises(OSError, match="the disk is full"):
        list(work_through(halve, [1, 99, 2], 2))
    assert [one.result for one in work_through(halve, [1, 2], 1)] == [0.5, 1.0]
