"""What the tabs of the page share: the flags of the command, the page's own folder, the jobs and the models."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, eq=False)
class PageApp:
    """One running page."""

    args: argparse.Namespace
    """The command's flags, those of the model among them."""
    folder: Path
    """The page's own folder, absolute. Nothing else is written, and no file outside it is served."""

    @property
    def readable_folders(self) -> list[Path]:
        """Where clips, checkpoints and evaluations may lie, absolute: the page's own data and runs, and --data."""
        return [self.folder / "data", self.runs, *(Path(folder).resolve() for folder in self.args.data)]

    @property
    def runs(self) -> Path:
        """The trainings, a folder each."""
        return self.folder / "runs"
