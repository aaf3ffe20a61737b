"""The tables that `prepare` writes: what trains, what validates, what was rejected and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...media.timeline import FRAME_RATE
from ...system.atomic import write_text_atomically
from ..figure_rules import Rule
from .records import ClipRecord, SourceRecord

TRAIN, VALIDATION, REJECTED = "metadata.csv", "validation.csv", "rejected.csv"


def write_tables(out: Path, sources: Sequence[SourceRecord], rules: Sequence[Rule]) -> None:
    """Write all tables of the sources' clips to the output folder; a table without a clip is removed."""
    clips = [clip for source in sources for clip in source.clips]
    for name, split in ((TRAIN, "train"), (VALIDATION, "validation")):
        rows = [_row(clip) for clip in clips if clip.split == split]
        if rows:
            _write(out / name, ["video", "prompt", "source", "start", "seconds"], rows)
        else:
            (out / name).unlink(missing_ok=True)
    figures = list(dict.fromkeys([rule.figure for rule in rules] + [name for clip in clips for name in clip.figures]))
    _write(out / REJECTED, ["name", "source", "start", "end", "reasons", *figures], _rejected(sources))


def _row(clip: ClipRecord) -> dict[str, Any]:
    start = f"{clip.start / FRAME_RATE:.2f}"
    return {
        "video": clip.video,
        "prompt": clip.prompt,
        "source": clip.source,
        "start": start,
        "seconds": f"{clip.seconds:.2f}",
    }


def _rejected(sources: Iterable[SourceRecord]) -> Iterable[dict[str, Any]]:
    for source in sources:
        if source.reasons:
            yield {"source": source.path, "reasons": "; ".join(source.reasons.values())}
        for clip in source.clips:
            if not clip.is_kept:
                yield {
                    "name": clip.name,
                    "source": clip.source,
                    "start": f"{clip.start / FRAME_RATE:.2f}",
                    "end": f"{(clip.start + clip.frames) / FRAME_RATE:.2f}",
                    "reasons": "; ".join(clip.reasons.values()),
                    **{name: f"{value:.5g}" for name, value in clip.figures.items()},
                }


def _write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    table.writeheader()
    table.writerows(rows)
    write_text_atomically(path, text.getvalue())
