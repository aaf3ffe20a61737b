"""How a run ends before its last step: one line, and an exit code."""

import errno
import os
import signal

import pytest
import torch

from diffsynth_omniavatar.system.signals import Terminated, interrupts
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.accelerator import DivergedError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_run_with_their_exit_code(monkeypatch, capsys, number):
    monkeypatch.setattr(run, "parse_arguments", lambda _: None)
    monkeypatch.setattr(run, "train", lambda _: os.kill(os.getpid(), number))
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)  # a shell's background job, or nohup, ignores some
    try:
        assert run.main([]) == 128 + number
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)
    said = "interrupted; " + ("" if number == signal.SIGINT else f"got {number.name}; ")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"diffsynth_omniavatar.train: {said}--resume auto goes on from the newest checkpoint"


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such clip"), 2),
        (FileNotFoundError("nowhere"), 2),
        (NotADirectoryError("x"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "run/step-4"), 1),
        (DivergedError("the loss is nan in step 3"), 1),
        (torch.OutOfMemoryError("CUDA out of memory"), 1),
        (RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly"), 1),
    ],
)
def test_expected_errors_take_a_line(monkeypatch, capsys, error, code):
    def fail(_):
        raise error

    monkeypatch.setattr(run, "train", fail)
    monkeypatch.setattr(run, "parse_arguments", lambda _: None)
    assert run.main([]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"diffsynth_omniavatar.train: error: {error}"
    with pytest.raises(type(error)):
        run.main(["--debug"])


def test_a_defect_of_the_program_shows_where_it_is(monkeypatch):
    monkeypatch.setattr(run, "parse_arguments", lambda _: {}["x"])
    with pytest.raises(KeyError):
        run.main([])
