"""`omniavatar evaluate --compare A B`: paired differences of two evaluations."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics.compare import Difference, paired_difference
from ..system.atomic import write_text_atomically
from ..system.messages import counted
from ..system.text_files import parse_json, read_text

FIGURES_FILE = "figures.json"


@dataclass(frozen=True)
class Run:
    """What an evaluation found."""

    clips: Mapping[str, Mapping[str, float]]
    """Figures of each clip, by its path below the folder that all clips of the run share."""
    together: Mapping[str, float]
    """FID, FVD."""
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """How run B differs from run A."""

    first: Run
    second: Run
    found: Mapping[str, Difference]
    """By figure, B - A."""
    together: Mapping[str, tuple[float, float]]
    """Figures of all clips together, of A and of B."""


def compare(a: Path, b: Path, out: Path) -> None:
    """Print the differences B - A, and write them to compare.json in `out`.

    Raises:
        ValueError: as `read_comparison`.
    """
    compared = read_comparison(a, b)
    _print(compared.found, compared.together)
    _print_lone(compared.first, compared.second)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "a": str(a),
        "b": str(b),
        "differences": {name: _plain(vars(row)) for name, row in compared.found.items()},
        "together": {name: {"a": one, "b": other} for name, (one, other) in compared.together.items()},
    }
    write_text_atomically(out / "compare.json", json.dumps(content, indent=1, ensure_ascii=False))


def read_comparison(a: Path, b: Path) -> Comparison:
    """The differences of two evaluations, clip by clip.

    Raises:
        ValueError: a folder is no result of `omniavatar evaluate`, the two were measured differently, or they have no
            clip in common.
    """
    first, second = read_run(a), read_run(b)
    _check_protocols(first, second, a, b)
    names = dict.fromkeys(name for values in first.clips.values() for name in values)
    found: dict[str, Difference] = {}
    for name in names:
        one, other = (
            {clip: values[name] for clip, values in run.clips.items() if values.get(name) is not None}
            for run in (first, second)
        )
        difference = paired_difference(one, other)
        if difference is not None:
            found[name] = difference
    if not found:
        raise ValueError(f"{a} and {b} have no clip of the same name with a figure in common")
    together = {
        name: (first.together[name], second.together[name]) for name in first.together if name in second.together
    }
    return Comparison(first, second, found, together)


def read_run(folder: Path) -> Run:
    """What `omniavatar evaluate --out` wrote into a folder, or its figures.json itself.

    Raises:
        ValueError: it is something else.
    """
    path = folder / FIGURES_FILE if folder.is_dir() else folder
    if not path.is_file():
        raise ValueError(f"{folder} has no {FIGURES_FILE}: give a folder that `omniavatar evaluate --out` wrote")
    content = parse_json(read_text(path), str(path))
    try:
        files = [Path(clip["files"]["generated"]).absolute() for clip in content["clips"]]
        values = [dict(clip["values"]) for clip in content["clips"]]
        together = {name: row["value"] for name, row in content["summary"].items() if "value" in row}
        protocol = dict(content["protocol"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} was not written by `omniavatar evaluate GENERATED`") from error
    shared = os.path.commonpath([file.parent for file in files]) if files else ""
    names = [file.relative_to(shared).as_posix() for file in files]
    return Run(dict(zip(names, values, strict=True)), together, protocol)


def _check_protocols(first: Run, second: Run, a: Path, b: Path) -> None:
    one, other = (run.protocol | run.protocol.get("weights", {}) | {"weights": None} for run in (first, second))
    differing = [name for name in one if name in other and one[name] != other[name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{a} and {b} were measured differently: {name} is {one[name]!r} in the first and {other[name]!r} in the "
            "second; measure both again"
        )


def _print(found: Mapping[str, Difference], together: Mapping[str, tuple[float, float]]) -> None:
    print(f"{'figure':<24}{'A':>11}{'B':>11}{'B - A':>11}   95 % interval of B - A")
    for name, row in found.items():
        interval = f"{row.low:.4g} to {row.high:.4g}" if math.isfinite(row.low) else "needs two clips"
        mark = " *" if row.is_clear else ""
        print(f"{name:<24}{row.mean_a:11.4g}{row.mean_b:11.4g}{row.difference:11.4g}   {interval}{mark}")
    for name, (one, other) in together.items():
        print(f"{name:<24}{one:11.4g}{other:11.4g}{other - one:11.4g}   no interval: one value for all clips")
    print(f"{counted(max(row.clips for row in found.values()), 'clip')} in both. *: the interval leaves out 0.")


def _print_lone(first: Run, second: Run) -> None:
    for run, other, name in ((first, second, "A"), (second, first, "B")):
        lone = sorted(set(run.clips) - set(other.clips))
        if lone:
            named = ", ".join(lone[:5]) + (", ..." if len(lone) > 5 else "")
            print(f"only in {name}: {counted(len(lone), 'clip')} ({named})")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for numbers that JSON does not know."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
