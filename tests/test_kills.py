"""Runs that are killed at random moments lose nothing and leave nothing behind; `kill_runs.py` does so at length."""

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from kill_runs import check_what_is_there, commands, digest
from training_runs import write_inputs

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.training import run as training

pytestmark = pytest.mark.one_host("the hosts differ in nothing that is written")


def start(words: Sequence[str]) -> int:
    """Run a command line in this process."""
    return training.main(words[1:]) if words[0].endswith("train") else cli.main(words[1:])


def forked(words: Sequence[str]) -> int:
    """Run a command line in a copy of this process, which has imported everything; gives its process id."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # those of the other process are not there
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = start(words)
        finally:
            os._exit(code)
    return process


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("kind", ["precompute", "generate"])
def test_a_run_that_is_killed_at_any_moment_goes_on(inputs: Path, tmp_path: Path, kind: str) -> None:
    command, chance = commands(inputs)[kind], random.Random(kind)
    began = time.monotonic()
    assert start(command(tmp_path / "whole")) == 0
    lasts, wanted, out = time.monotonic() - began, digest(tmp_path / "whole"), tmp_path / "out"
    for _ in range(2):
        process = forked(command(out))
        time.sleep(chance.uniform(0.2, 1) * lasts)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        check_what_is_there(kind, out)
    assert start(command(out)) == 0
    assert digest(out) == wanted
