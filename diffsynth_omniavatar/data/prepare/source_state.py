"""What is known of a source from earlier runs: a look and a record, each a file that is there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...system.atomic import write_text_atomically
from ...system.text_files import parse_json, read_text
from .look import FileFacts, Look, read_look, write_look
from .records import SourceRecord, from_json, to_json
from .sources import Source

STATE = "state"
"""Folder in the output folder."""


@dataclass(frozen=True, kw_only=True)
class SourceState:
    """The state files of one source."""

    source: Source
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / STATE

    @property
    def scratch(self) -> Path:
        """For unfinished clips."""
        return self.folder / f"{self.source.key}.part"

    @property
    def _look(self) -> Path:
        return self.folder / f"{self.source.key}.safetensors"

    @property
    def _record(self) -> Path:
        return self.folder / f"{self.source.key}.json"

    def read_look(self, file: FileFacts) -> Look | None:
        """The look at the file as it is now; None if there is none."""
        if not self._look.is_file():
            return None
        try:
            return read_look(self._look, file)
        except ValueError:
            return None  # a damaged one is made again

    def write_look(self, look: Look, file: FileFacts) -> None:
        """Keep a look at the file."""
        write_look(self._look, look, file)

    def read_record(self) -> tuple[SourceRecord, dict[str, Any]] | None:
        """The record of the last run, and what it was made with; None if there is none."""
        if not self._record.is_file():
            return None
        try:
            content = parse_json(read_text(self._record), str(self._record))
            return from_json(content["record"]), content["made_with"]
        except (ValueError, KeyError, TypeError):
            return None  # damaged, or another version's

    def forget_record(self) -> None:
        """The source is not finished."""
        self._record.unlink(missing_ok=True)

    def write_record(self, record: SourceRecord, made_with: Mapping[str, Any]) -> None:
        """Keep a record; the source is finished."""
        content = {"made_with": made_with, "record": to_json(record)}
        write_text_atomically(self._record, json.dumps(content, ensure_ascii=False, indent=1))


def file_facts(path: Path) -> FileFacts:
    """By what a changed file is known; OSError if it is not there."""
    facts = os.stat(path)
    return {"size": facts.st_size, "modified_ns": facts.st_mtime_ns}
