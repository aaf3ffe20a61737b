"""What the tabs of the page share: the flags of the command, the page's own folder, the work and the models."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from .readable import Readable
from .shelf import Shelf
from .training_runs import TrainingRuns
from .uploads import Kind, kept_upload
from .work_queue import WorkQueue

UPLOADS = "uploads"
CLOSING = 30.0
"""Seconds that a running job has at the end to keep what is done."""


@dataclass(frozen=True, eq=False)
class PageApp:
    """One running page."""

    args: argparse.Namespace
    """The command's flags, those of the model among them."""
    folder: Path
    """The page's own folder, absolute. Nothing else is written, and no file outside it is served."""
    shelf: Shelf
    """The models."""
    jobs: WorkQueue
    """Work of the models: one video at a time."""
    looks: WorkQueue
    """Looking for faces, on the CPU, beside the jobs."""
    runs: TrainingRuns
    """The trainings, a folder each in `runs` of the page's folder."""
    readable: Readable
    """Where clips, checkpoints and evaluations may lie: the page's own data and runs, and --data."""

    @classmethod
    def open(cls, args: argparse.Namespace, folder: Path) -> PageApp:
        """A page with these flags and this folder."""
        runs = TrainingRuns(folder / "runs")
        readable = Readable([folder / "data", runs.root, *map(Path, args.data)])
        return cls(args, folder, Shelf(args), WorkQueue("jobs"), WorkQueue("looks"), runs, readable)

    def close(self) -> None:
        """Stop all work; videos keep the part that is done."""
        self.looks.close(CLOSING)
        self.jobs.close(CLOSING)

    @property
    def uploads(self) -> Path:
        """Where the server puts what people send, and copies of what it shows: the only files that it serves."""
        return self.folder / UPLOADS

    @property
    def videos(self) -> Path:
        """The jobs, a folder each."""
        return self.folder / "videos"

    @property
    def lora_files(self) -> Path:
        """LoRAs that can be chosen."""
        return self.folder / "loras"

    def keep(self, upload: str | None, field: str, kind: Kind, target: Path) -> Path:
        """See `uploads.kept_upload`."""
        return kept_upload(upload, field, kind, self.uploads, target, self.args.max_upload)
