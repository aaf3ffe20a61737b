"""Trainings that the page starts outlive it, are found again, and tell how they ended.

A short script stands for training.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import psutil
import pytest

from diffsynth_omniavatar.app.page.training_runs import RECORD, Record, TrainingRun, TrainingRuns

pytestmark = pytest.mark.one_host("starts and watches processes")

TRAINING = """
import os, signal, sys, time
from pathlib import Path

def stop(*_):
    print("diffsynth_omniavatar.train: interrupted; got SIGTERM; --resume auto goes on from the newest checkpoint")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
out, steps = Path(sys.argv[sys.argv.index("--output_path") + 1]), sys.argv[sys.argv.index("--max_steps") + 1]
print("started", *sys.argv[1:], flush=True)
if "--waits" in sys.argv:
    time.sleep(60)
if "--fails" in sys.argv and "--resume" not in sys.argv:
    print("diffsynth_omniavatar.train: error: the disk is full")
    sys.exit(1)
if "--dies" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
(out / f"step-{steps}").mkdir()
if "--fails-late" in sys.argv:
    print("diffsynth_omniavatar.train: error: the last validation")
"""
LAUNCHING = """
import subprocess, sys
sys.exit(subprocess.Popen([sys.executable, *sys.argv[1:]]).wait())
"""


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "training.py").write_text(TRAINING)
    runs = TrainingRuns(tmp_path / "runs", (sys.executable, str(tmp_path / "training.py")))
    yield runs
    for run in runs.all():
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.killpg(run.record().pid, signal.SIGKILL)


def start(runs, name, *flags, steps=3):
    folder = runs.new_folder(name)
    return runs.start(["accelerate", "--output_path", str(folder), "--max_steps", str(steps), *flags], steps, folder)


def wait(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def wait_for(run, *names):
    wait(lambda: run.state().name in names)
    return run.state()


def wait_for_word(run, word):
    wait(lambda: any(word in line for line in run.log_lines(run.record())))


def test_a_run_ends_by_itself_and_is_told_by_its_files(runs):
    ends = [
        wait_for(start(runs, *words), "finished", "failed") for words in (["a b"], ["c", "--fails"], ["d", "--dies"])
    ]
    assert [state.name for state in ends] == ["finished", "failed", "failed"]
    assert ends[1].message.endswith("error: the disk is full")
    assert [run.name for run in runs.all()] == ["d", "c", "a b"]
    late = start(runs, "e", "--fails-late")
    assert wait_for(late, "finished", "failed").name == "failed" and late.steps_saved() == 3


def test_a_run_outlives_a_page_that_is_killed_and_is_stopped_by_the_next_one(runs):
    page = f"""
    import time
    from pathlib import Path
    from diffsynth_omniavatar.app.page.training_runs import TrainingRuns
    runs = TrainingRuns(Path({str(runs.root)!r}), {runs.launcher!r})
    folder = runs.new_folder("long")
    runs.start(["accelerate", "--output_path", str(folder), "--max_steps", "3", "--waits"], 3, folder)
    print("started", flush=True)
    time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(page)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"started\n"
    process.kill()
    process.wait()
    process.stdout.close()
    run = runs.run("long")
    wait_for_word(run, "started")
    assert run.state().name == "running"
    run.stop()
    assert wait_for(run, "stopped", "failed").name == "stopped"
    assert "got SIGTERM" in run.log_lines(run.record())[-1]


def test_a_number_that_another_process_has_got_is_not_taken_for_the_run(runs):
    run = start(runs, "a")
    wait_for(run, "finished")
    mine, record = psutil.Process(), run.record()
    stolen = replace(record, pid=mine.pid, started=mine.create_time() - 100)
    stolen.write(run.folder)
    assert run.state().name == "finished"
    run.stop()  # would end the tests
    replace(stolen, started=mine.create_time()).write(run.folder)
    assert run.state().name == "running"
    record.write(run.folder)


def test_a_run_goes_on_while_what_it_has_left_runs_though_the_launcher_has_ended(runs, tmp_path):
    (tmp_path / "launching.py").write_text(LAUNCHING)
    other = TrainingRuns(runs.root, (sys.executable, str(tmp_path / "launching.py"), runs.launcher[1]))
    run = start(other, "a", "--waits")
    wait_for_word(run, "started")
    os.kill(run.record().pid, signal.SIGKILL)
    wait(lambda: psutil.Process(run.record().pid).status() == psutil.STATUS_ZOMBIE)
    assert run.state().name == "running"
    run.stop()
    assert wait_for(run, "stopped", "failed").name == "stopped"


def test_a_second_stop_ends_what_does_not_listen(runs, tmp_path):
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    run = start(TrainingRuns(runs.root, (sys.executable, "-c", deaf)), "a")
    wait_for_word(run, "deaf")
    run.stop()
    assert run.state().name == "stopping"
    run.stop()
    assert wait_for(run, "stopped", "failed").name == "stopped"


def test_a_run_that_failed_goes_on_and_is_judged_by_what_it_says_then(runs):
    run = start(runs, "a", "--fails")
    wait_for(run, "failed")
    runs.resume(run)
    assert wait_for(run, "finished", "failed").name == "finished"
    assert run.log_lines(run.record())[0].endswith("--fails --resume auto")
    assert run.command_line().endswith("--fails --resume auto")
    with pytest.raises(ValueError, match="has done 3 steps"):
        runs.resume(run)
    runs.resume(run, 5)
    assert wait_for(run, "finished", "failed").name == "finished"
    assert run.steps_saved() == 5 and "--max_steps 5" in run.command_line()


def test_two_runs_do_not_write_into_one_folder(runs):
    run = start(runs, "a", "--waits")
    with pytest.raises(ValueError, match="already"):
        runs.new_folder("a")
    with pytest.raises(ValueError, match="a is running"):
        runs.resume(run)
    with pytest.raises(ValueError, match="a is running"):
        start(runs, "c")
    run.stop()
    wait_for(run, "stopped", "failed")
    holding = "from diffsynth_omniavatar.system.output_folder import reserved; from pathlib import Path; import sys\n"
    holding += "with reserved(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    folder = runs.new_folder("b")
    other = subprocess.Popen(
        [sys.executable, "-c", holding, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"b is in use by another run .process {other.pid} on "):
        runs.start(["accelerate", "--output_path", str(folder), "--max_steps", "3"], 3, folder)
    assert not (folder / RECORD).exists()
    other.communicate()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/etc", ".a", "a.", "a\n", "-a", "a" * 61, '"><b>', "a\0"]
)
def test_a_name_that_would_lead_elsewhere_is_refused(runs, name):
    with pytest.raises(ValueError, match="cannot be the name of a run"):
        runs.run(name)


def test_damaged_files_are_told_or_passed_over(runs, tmp_path):
    run = TrainingRun(runs.new_folder("a"))
    run.folder.mkdir(parents=True)
    for text in ("", "{", "[]", "{}", '{"command": 3}', b"\xff".decode("latin1")):
        (run.folder / RECORD).write_text(text, encoding="latin1")
        with pytest.raises(ValueError, match=RECORD):
            run.state()
    Record(command=("a",), max_steps=3, pid=2**22 + 1, started=1.0, log_start=10**9).write(run.folder)
    assert run.state().name == "failed" and "without a word" in run.state().message
    content = json.loads((run.folder / RECORD).read_text())
    for name, value in (("pid", -1), ("pid", "1"), ("started", None), ("max_steps", True)):
        (run.folder / RECORD).write_text(json.dumps(content | {name: value}))
        with pytest.raises(ValueError, match=RECORD):
            run.state()
    (run.folder / "loss.csv").write_bytes(b"step,loss\n1,0.5\n\xff\x00,,\n2,0.4\n3,0.")
    assert [row["loss"] for row in run.losses()] == [0.5, 0.4]
    (run.folder / "loss.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="columns a,b"):
        run.losses()
    for name in ("step-3", "step-20"):
        (run.folder / "validation" / name).mkdir(parents=True)
    (run.folder / "validation" / "step-3" / "000.mp4").touch()
    (run.folder / "validation" / "step-20" / "000.part.mp4").touch()
    assert [path.parent.name for path in run.validation_videos()] == ["step-3"]
