"""Trainings that the page starts: ordinary processes of the launcher, which outlive the page and are found again.

A run is a folder, the --output_path of the launcher. Beside what training writes it holds `page.json`, which says what
was started and as which process, and `train.log` with all that the run prints. How a run has ended is told by these
files, not by an exit code, which only the page that started it would get.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from ...system.atomic import write_text_atomically
from ...system.output_folder import reserved
from ...system.text_files import parse_json, read_text
from ...training.log_table import Row, read_table

RECORD, LOG, BEST = "page.json", "train.log", "best"
LAUNCHER = (sys.executable, "-m", "accelerate.commands.accelerate_cli")
"""What runs the `accelerate` of a command, of this very Python."""
NAME = re.compile(r"\w(?:[\w .-]{0,58}\w)?")
"""Of a run: also the name of its folder."""
TAIL, TAIL_LINES = 16384, 12
"""Bytes at a log's end that are looked at, and lines of it that are shown of a run that failed."""
SAME_START = 2.0
"""Seconds by which the start of one process can differ when it is read again: the clock was set in between."""
_SAYS = "diffsynth_omniavatar.train: "
"""How the launcher's last line begins."""

StateName = Literal["running", "stopping", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class RunState:
    """How a run stands."""

    name: StateName
    message: str = ""
    """Of a failed run the last lines of its log."""

    @property
    def is_alive(self) -> bool:
        """Whether processes of it still run."""
        return self.name in ("running", "stopping")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What `page.json` says."""

    command: tuple[str, ...]
    """As one types it, but for --resume."""
    max_steps: int
    pid: int
    """Of the process that was started, which leads a session and group of its own."""
    started: float
    """When, in seconds since 1970: another process can get the number later."""
    log_start: int
    """Bytes of the log that earlier starts of the run have written."""
    stop_asked: bool = False

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Of a run.

        Raises:
            ValueError: the file is damaged; OSError: it is not there.
        """
        path = folder / RECORD
        content = parse_json(read_text(path), str(path))
        try:
            found = cls(**content | {"command": tuple(map(str, content["command"]))})
            whole = all(type(number) is int for number in (found.max_steps, found.pid, found.log_start))
            if not whole or found.pid < 1 or not isinstance(found.started, float):
                raise TypeError("a number is of another kind")
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); the run's checkpoints can still be used") from error
        return found

    def write(self, folder: Path) -> None:
        """Beside the checkpoints."""
        write_text_atomically(folder / RECORD, json.dumps(asdict(self), indent=1))


@dataclass(frozen=True)
class TrainingRun:
    """A run that is going, or that has ended."""

    folder: Path

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    def record(self) -> Record:
        """What was started; raises as `Record.read`."""
        return Record.read(self.folder)

    def state(self) -> RunState:
        """How it stands; raises as `record`."""
        record = self.record()
        if self._is_alive(record):
            return RunState("stopping" if record.stop_asked else "running")
        lines = self.log_lines(record)
        ends = [line.removeprefix(_SAYS) for line in lines if line.startswith(_SAYS)]
        failed = any(line.startswith("error: ") for line in ends) or any(
            line.startswith("Traceback (most recent call last)") for line in lines
        )
        if not failed and (self.steps_saved() >= record.max_steps or any(_stopped_early(line) for line in lines)):
            return RunState("finished")
        if record.stop_asked or any(line.startswith("interrupted") for line in ends):
            return RunState("stopped")
        said = "\n".join(lines[-TAIL_LINES:])
        return RunState("failed", said or "It ended without a word, as when the system kills it for want of memory.")

    def log_lines(self, record: Record) -> list[str]:
        """The last lines of the log since the run was last started."""
        try:
            with (self.folder / LOG).open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                start = max(record.log_start, size - TAIL)
                log.seek(start)
                text = log.read().decode(errors="replace")
        except OSError:
            return []
        lines = text.splitlines()
        return lines[1:] if start > record.log_start else lines

    def losses(self) -> list[Row]:
        """The rows of loss.csv so far; ValueError if it is another kind of file."""
        return _rows(self.folder / "loss.csv")

    def validations(self) -> list[Row]:
        """The rows of validation.csv so far; ValueError if it is another kind of file."""
        return _rows(self.folder / "validation.csv")

    def validation_videos(self) -> list[Path]:
        """Those of the newest step that has any."""
        steps = [path for path in (self.folder / "validation").glob("step-*") if _step(path) is not None]
        for folder in sorted(steps, key=lambda path: _step(path) or 0, reverse=True):
            videos = sorted(path for path in folder.iterdir() if re.fullmatch(r"\d+\.mp4", path.name))
            if videos:
                return videos
        return []

    def checkpoints(self) -> list[Path]:
        """The complete ones, the newest first; `best` is the last."""
        steps = [path for path in self.folder.glob("step-*") if _step(path) is not None]
        best = self.folder / BEST
        return [*sorted(steps, key=lambda path: _step(path) or 0, reverse=True), *([best] if best.is_dir() else [])]

    def steps_saved(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        return max((_step(path) or 0 for path in self.checkpoints()), default=0)

    def command_line(self) -> str:
        """To be typed into a shell; with `--resume auto` it starts the run and also goes on with it."""
        return shlex.join([*self.record().command, "--resume", "auto"])

    def stop(self) -> None:
        """Ask it to end, as Ctrl-C does; one that was asked before ends at once.

        Nothing happens if it has ended. Raises as `record`.
        """
        record = self.record()
        if not self._is_alive(record):
            return
        replace(record, stop_asked=True).write(self.folder)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, signal.SIGKILL if record.stop_asked else signal.SIGTERM)

    def _is_alive(self, record: Record) -> bool:
        """Whether the process that was started is there, or one that it has left: a launcher ends before its child."""
        try:
            leader = psutil.Process(record.pid)
            if abs(leader.create_time() - record.started) > SAME_START:
                return False  # a number is not given again while a process of its group is there
            if leader.status() != psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            pass
        try:
            os.killpg(record.pid, 0)
        except OSError:  # no such group, or of somebody else
            return False
        return any(self._is_of_group(process, record) for process in psutil.process_iter())

    def _is_of_group(self, process: psutil.Process, record: Record) -> bool:
        try:
            return (
                os.getpgid(process.pid) == record.pid
                and process.create_time() > record.started - SAME_START
                and str(self.folder) in process.cmdline()  # of a zombie it is empty
            )
        except (psutil.Error, OSError):
            return False


class TrainingRuns:
    """The runs below a folder.

    Args:
        root: the folder.
        launcher: stands in the place of the `accelerate` of a command.
    """

    def __init__(self, root: Path, launcher: Sequence[str] = LAUNCHER) -> None:
        self.root = root.absolute()
        self.launcher = tuple(launcher)
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []

    def all(self) -> list[TrainingRun]:
        """Every run, the one that was started last first."""
        self._children = [child for child in self._children if child.poll() is None]
        records = sorted(self.root.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [TrainingRun(path.parent) for path in records if not path.parent.is_symlink()]

    def run(self, name: str) -> TrainingRun:
        """By its name.

        Raises:
            ValueError: there is none.
        """
        folder = self.folder(name)
        if not (folder / RECORD).is_file():
            raise ValueError(f"there is no run {name}")
        return TrainingRun(folder)

    def folder(self, name: str) -> Path:
        """Where a run of this name lies, or would lie.

        Raises:
            ValueError: it cannot be a name.
        """
        if NAME.fullmatch(name) is None:
            raise ValueError(
                f"{name[:80]!r} cannot be the name of a run: wanted up to 60 letters, digits, spaces and _ . -, with a "
                "letter, digit or _ at both ends"
            )
        return self.root / name

    def new_folder(self, name: str) -> Path:
        """Where a new run will lie.

        Raises:
            ValueError: it cannot be a name, or something is there.
        """
        folder = self.folder(name)
        if os.path.lexists(folder):
            raise ValueError(f"there is a run {name} already: choose another name, or go on with that one")
        return folder

    def running(self) -> TrainingRun | None:
        """One that is going, if there is one."""
        for run in self.all():
            with contextlib.suppress(ValueError, OSError):  # of a damaged record nobody knows
                if run.state().is_alive:
                    return run
        return None

    def start(self, command: Sequence[str], max_steps: int, folder: Path) -> TrainingRun:
        """Start a run.

        Args:
            command: `accelerate launch ...`, without --resume.
            max_steps: of the command.
            folder: its --output_path, from `new_folder`; files that the command reads may be in it.

        Raises:
            ValueError: another run is going, or writes there, with the words of training itself; OSError: nothing can
                be written.
        """
        return self._launch(folder, tuple(command), (), max_steps)

    def resume(self, run: TrainingRun, max_steps: int | None = None) -> TrainingRun:
        """Go on with a run from its newest checkpoint, or from the start if there is none.

        Args:
            run: one that has ended.
            max_steps: another number of steps in all; None for the same.

        Raises:
            ValueError: it or another one is going, or others write into its folder.
        """
        record = run.record()
        steps = record.max_steps if max_steps is None else max_steps
        if steps <= run.steps_saved():
            raise ValueError(f"{run.name} has done {run.steps_saved()} steps: to go on, give more of them")
        command = _with_steps(record.command, steps)
        return self._launch(run.folder, command, ("--resume", "auto"), steps)

    def _launch(self, folder: Path, command: tuple[str, ...], more: tuple[str, ...], max_steps: int) -> TrainingRun:
        run = TrainingRun(folder)
        with self._lock:
            if (other := self.running()) is not None:
                raise ValueError(f"{other.name} is running: wait for its end, or stop it")
            with reserved(folder):
                pass  # training does the same when it has imported what it needs; here it is told at once
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOG).open("ab") as log:
                log_start = log.seek(0, os.SEEK_END)
                process = subprocess.Popen(
                    [*self.launcher, *command[1:], *more],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._children.append(process)
            started = psutil.Process(process.pid).create_time()
            record = Record(command=command, max_steps=max_steps, pid=process.pid, started=started, log_start=log_start)
            try:
                record.write(folder)
            except OSError:  # nobody would find it again
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return run


def _with_steps(command: tuple[str, ...], steps: int) -> tuple[str, ...]:
    place = command.index("--max_steps") + 1
    return (*command[:place], str(steps), *command[place + 1 :])


def _stopped_early(line: str) -> bool:
    """Whether a line says that no validation was better for too long."""
    return re.match(r"stops at step \d+ of ", line) is not None


def _step(folder: Path) -> int | None:
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match is not None and folder.is_dir() else None


def _rows(path: Path) -> list[Row]:
    return read_table(path) if path.is_file() else []
