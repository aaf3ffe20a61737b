"""The page's queue: one piece of work at a time, in order, whoever watches; cancelled at a step."""

import logging
import threading

import pytest

from diffsynth_omniavatar.app.page import work_queue
from diffsynth_omniavatar.app.page.work_queue import QueueFull, Stopped, Work, WorkQueue

pytestmark = pytest.mark.one_host("imports nothing of the host")

SOON = 20


class Task(Work):
    """Takes steps when it is let; tells when it began and when it ended."""

    def __init__(self, owner="", error=None):
        super().__init__(owner)
        self.began, self.let, self.ended = threading.Event(), threading.Semaphore(0), threading.Event()
        self.steps, self.error = 0, error

    def run(self):
        self.began.set()
        try:
            if self.error is not None:
                raise self.error
            for _ in range(3):
                assert self.let.acquire(timeout=SOON)
                self.go_on()
                self.steps += 1
        finally:
            self.ended.set()


@pytest.fixture
def queue():
    queue = WorkQueue("test")
    yield queue
    for work in queue._works:
        for _ in range(3):
            work.let.release()
    queue.close(SOON)
    assert not queue._thread.is_alive()


def wait_until_over(queue, work):
    """Other work behind it begins only when its state is written."""
    behind = Task(error=ValueError("end"))
    queue.add(behind)
    assert behind.ended.wait(SOON)
    assert work.is_over


def test_one_at_a_time_in_the_order_of_coming(queue):
    first, second, third = Task(), Task(), Task()
    for work in (first, second, third):
        queue.add(work)
    assert first.began.wait(SOON) and not second.began.is_set()
    assert [queue.position(work) for work in (first, second, third)] == [0, 1, 2]
    assert queue.is_busy()
    for _ in range(3):
        first.let.release()
    assert second.began.wait(SOON) and first.state == "done" and not third.began.is_set()
    assert [queue.position(work) for work in (first, second, third)] == [0, 0, 1]


def test_cancelled_work_ends_at_its_next_step_and_waiting_work_at_once(queue):
    running, waiting = Task(), Task()
    queue.add(running)
    queue.add(waiting)
    assert running.began.wait(SOON)
    running.let.release()
    queue.stop(waiting)
    assert waiting.state == "stopped" and not waiting.began.is_set()
    queue.stop(running)
    assert running.is_stopping and running.state == "running"
    running.let.release()
    wait_until_over(queue, running)
    assert running.state == "stopped" and running.steps <= 1 and not waiting.began.is_set()


def test_a_fault_is_kept_and_ends_nothing_but_its_work(queue, caplog):
    wrong, broken, good = Task(error=ValueError("the speech is silent")), Task(error=KeyError("<b>x</b>")), Task()
    with caplog.at_level(logging.ERROR):
        for work in (wrong, broken, good):
            queue.add(work)
        assert good.began.wait(SOON)
    assert (wrong.state, wrong.fault) == ("failed", "the speech is silent")
    assert broken.state == "failed" and "KeyError" in broken.fault and "terminal" in broken.fault
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]  # what was foreseen needs no trace


def test_everybody_sees_only_what_is_theirs(queue):
    mine, other = Task("me"), Task("you")
    queue.add(mine)
    queue.add(other)
    assert queue.of("me") == [mine] and queue.find("me", mine.id) is mine
    assert queue.find("me", other.id) is None and queue.find("", mine.id) is None and queue.find("me", "") is None
    assert mine.id != other.id and len(mine.id) == 16


def test_a_full_queue_takes_no_more_and_forgets_what_is_over(queue, monkeypatch):
    monkeypatch.setattr(work_queue, "MOST_WAITING", 2)
    monkeypatch.setattr(work_queue, "MOST_KEPT", 3)
    running, waiting = Task(), Task()
    queue.add(running)
    queue.add(waiting)
    with pytest.raises(QueueFull, match="2 jobs wait already"):
        queue.add(Task())
    assert running.began.wait(SOON)
    queue.stop(waiting)
    over = [waiting]
    for _ in range(4):
        queue.add(Task())
        over.append(queue.of("")[-1])
        queue.stop(over[-1])
    assert queue.of("") == [running, *over[-2:]]


def test_closing_stops_all_and_waits_for_the_running_one():
    queue, running, waiting = WorkQueue("test"), Task(), Task()
    queue.add(running)
    queue.add(waiting)
    assert running.began.wait(SOON)
    stop = running.stop
    running.stop = lambda: (stop(), running.let.release(3))  # it ends when it is told to
    queue.close(SOON)
    assert running.ended.is_set() and not waiting.began.is_set()


def test_work_that_was_cancelled_does_not_begin():
    work = Task()
    work.stop()
    with pytest.raises(Stopped):
        work.go_on()
    assert work_queue.outcome(work) == "stopped" and not work.began.is_set()
