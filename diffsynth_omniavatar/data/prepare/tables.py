"""The lists that `prepare` writes: what trains, what validates, what was rejected and why."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...media.timeline import FRAME_RATE
from ...media.video import iter_frames
from ...system.atomic import write_atomically, write_text_atomically
from ..figure_rules import Mode, Rule
from .records import ClipRecord, SourceRecord

TRAIN, VALIDATION, SAMPLES, REJECTED = "metadata.csv", "validation.csv", "validation.txt", "rejected.csv"
FILES = (TRAIN, VALIDATION, SAMPLES, REJECTED)

PICTURES = "validation"
"""Folder in the output folder with the first pictures of clips that validate."""

MOST_SAMPLES = 8
"""Clips in the list of validation videos, which training makes again and again."""


def write_tables(out: Path, sources: Sequence[SourceRecord], rules: Sequence[Rule], mode: Mode) -> None:
    """Write all lists of the sources' clips to the output folder; one without a clip is removed."""
    clips = [clip for source in sources for clip in source.clips]
    for name, split in ((TRAIN, "train"), (VALIDATION, "validation")):
        rows = [_row(clip) for clip in clips if clip.split == split]
        if rows:
            _write(out / name, ["video", "prompt", "source", "start", "seconds"], rows)
        else:
            (out / name).unlink(missing_ok=True)
    write_samples(out, sources, mode)
    figures = list(dict.fromkeys([rule.figure for rule in rules] + [name for clip in clips for name in clip.figures]))
    _write(out / REJECTED, ["name", "source", "start", "end", "reasons", *figures], _rejected(sources))


def write_samples(out: Path, sources: Sequence[SourceRecord], mode: Mode) -> None:
    """Write what training makes validation videos of: a clip of each validating source, for I2V with its first picture.

    The lines are `prompt@@video@@audio`, or `prompt@@image@@audio`, with paths from where the program runs.
    """
    shutil.rmtree(out / PICTURES, ignore_errors=True)
    lines = []
    firsts = (next((clip for clip in source.clips if clip.split == "validation"), None) for source in sources)
    for clip in [clip for clip in firsts if clip is not None][:MOST_SAMPLES]:
        video = out / (clip.video or "")
        video = video / "sub_clip.mp4" if video.is_dir() else video
        shown = video
        if mode == "i2v":
            shown = out / PICTURES / f"{clip.name}.png"
            picture = Image.fromarray(next(iter_frames(video)).numpy())
            write_atomically(shown, lambda file, picture=picture: picture.save(file, format="PNG"))  # type: ignore[misc]
        lines.append(f"{clip.prompt.replace('@@', '@ @')}@@{shown}@@{video}\n")
    if lines:
        write_text_atomically(out / SAMPLES, "".join(lines))
    else:
        (out / SAMPLES).unlink(missing_ok=True)


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
