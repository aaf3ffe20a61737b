"""Results of `omniavatar evaluate` as tables of the page, and the videos that lie beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...metrics.compare import Difference
from ...metrics.evaluate import HIGHER_IS_BETTER, LOWER_IS_BETTER
from ...metrics.meanings import MEANINGS
from ...metrics.plots import line_plot
from ...system.text_files import parse_json, read_text
from ..evaluate_compare import FIGURES_FILE, Comparison
from ..evaluate_page import MAIN_FIGURES, VIDEOS
from .readable import Readable

SUMMARY_HEAD = ["figure", "mean", "median", "worst", "better is", "what it is"]
COMPARISON_HEAD = ["figure", "A", "B", "B - A", "95 % interval", "what it says"]
PLAYABLE = (".mp4", ".m4v", ".webm", ".mov", ".mkv")
"""Endings of videos that are handed to a browser."""

Table = list[list[str]]


@dataclass(frozen=True)
class EvaluationTables:
    """What an evaluation found."""

    summary: Table
    """As `SUMMARY_HEAD`."""
    figures: list[str]
    """Columns of `clips` behind the name, the main ones first."""
    clips: Table
    notes: list[str]
    """What is missing or failed, and warnings."""
    curves: list[str]
    """Of an evaluation of checkpoints: SVG of each figure over the steps."""


def evaluations(readable: Readable) -> list[str]:
    """Folders with results, in the folders that the page may read and two levels below."""
    return readable.search(lambda folder, _: (folder / FIGURES_FILE).is_file(), within_found=True)


def evaluation_folder(path: Path) -> Path:
    """The folder of an evaluation, of which a file may be given; ValueError if it is none."""
    folder = path if path.is_dir() else path.parent
    if not (folder / FIGURES_FILE).is_file():
        raise ValueError(f"{path} has no {FIGURES_FILE}: give a folder that `omniavatar evaluate --out` wrote")
    return folder


def read_tables(folder: Path) -> EvaluationTables:
    """What lies in a folder.

    Raises:
        ValueError: its file is damaged, or of another program.
    """
    path = folder / FIGURES_FILE
    content = parse_json(read_text(path), str(path))
    try:
        return _of_checkpoints(content) if "checkpoints" in content else _of_clips(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} was not written by `omniavatar evaluate`, or is damaged") from error


def _of_clips(content: Mapping[str, Any]) -> EvaluationTables:
    values = [clip["values"] for clip in content["clips"]]
    names = dict.fromkeys(name for one in values for name in one if one[name] is not None)
    figures = [name for name in MAIN_FIGURES if name in names]
    figures += [name for name in names if name not in figures]
    clips = [
        [Path(clip["files"]["generated"]).name, *(_number(clip["values"].get(name)) for name in figures)]
        for clip in content["clips"]
    ]
    summary = []
    for name, row in content["summary"].items():
        mean = row.get("mean", row.get("value"))
        shown = [_number(mean), _number(row.get("median")), _number(row.get("worst"))]
        summary.append([name, *shown, _better(name), MEANINGS.get(name, "")])
    notes = [f"{name} is missing: {why}" for name, why in content["missing"].items()]
    notes += [f"{name} failed: {why}" for name, why in content["failed"].items()]
    return EvaluationTables(summary, figures, clips, [*notes, *map(str, content["warnings"])], [])


def _of_checkpoints(content: Mapping[str, Any]) -> EvaluationTables:
    steps = [int(one["step"]) for one in content["checkpoints"]]
    names = dict.fromkeys(name for one in content["checkpoints"] for name in one["figures"])
    curves = []
    for name in names:
        values = [one["figures"].get(name) for one in content["checkpoints"]]
        drawn = [math.nan if value is None else float(value) for value in values]
        if any(map(math.isfinite, drawn)):
            curves.append(line_plot({name: drawn}, title=name, x_label="step", y_label="", x=steps, dots=True))
    summary = [[name, "", "", "", f"best at step {step}", ""] for name, step in content["best"].items()]
    return EvaluationTables(summary, [], [], [], curves)


def _better(name: str) -> str:
    return "lower" if name in LOWER_IS_BETTER else "higher" if name in HIGHER_IS_BETTER else ""


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.4g}"


def comparison_rows(compared: Comparison) -> Table:
    """As `COMPARISON_HEAD`."""
    rows = []
    for name, row in compared.found.items():
        interval = f"{row.low:.4g} to {row.high:.4g}" if math.isfinite(row.low) else "needs two clips"
        numbers = [_number(value) for value in (row.mean_a, row.mean_b, row.difference)]
        rows.append([name, *numbers, interval, _said(name, row)])
    for name, (one, other) in compared.together.items():
        rows.append([name, _number(one), _number(other), _number(other - one), "one value for all clips", ""])
    return rows


def _said(name: str, row: Difference) -> str:
    if not row.is_clear:
        return "no clear difference"
    direction = _better(name)
    if not direction:
        return "differs"
    return "B is better" if (row.difference > 0) == (direction == "higher") else "A is better"


def videos_of(folder: Path, index: int) -> list[tuple[str, Path]]:
    """The videos of a clip that the report has beside it: title and file."""
    found = []
    for title in ("generated", "reference"):
        beside = (folder / VIDEOS).glob(f"{index:04d}_{title}.*")
        video = next((path for path in beside if path.suffix.lower() in PLAYABLE), None)
        if video is not None:
            found.append((title, video))
    return found


def common_clips(compared: Comparison) -> Sequence[str]:
    """The names of the clips that both evaluations have."""
    return [name for name in compared.first.clips if name in compared.second.clips]
