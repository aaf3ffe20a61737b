"""`omniavatar evaluate --checkpoints`: all checkpoints of a run on one validation set, and curves over its steps."""

from __future__ import annotations

import argparse
import html
import json
import math
from collections.abc import Mapping
from pathlib import Path

from ..metrics.networks import Networks, missing_for
from ..metrics.plots import line_plot
from ..system.atomic import write_text_atomically
from ..system.messages import counted
from ..system.output_folder import reserved
from ..system.pages import page
from ..training.best import PREFIX, Goal
from ..training.measure_checkpoints import checkpoints_of, measure_checkpoints, validation_arguments
from .console import say
from .evaluate_compare import FIGURES_FILE

Measured = Mapping[int, Mapping[str, float]]
"""Figures of each step."""


def run(args: argparse.Namespace, networks: Networks) -> int:
    """Measure, print a table and write figures.json and report.html.

    Raises:
        ValueError: the run, its checkpoints or the validation data cannot be used.
    """
    folder, out = Path(args.checkpoints), Path(args.out)
    checkpoints = checkpoints_of(folder)
    for name in filter(None, args.figures.split(",")):
        if (why := missing_for(name.strip(), networks)) is not None:
            raise ValueError(f"--figures {name}: {why}")
    changed = {
        "validation_data": args.validation_data,
        "validation_loss_data": args.validation_loss_data,
        "validation_metrics": args.figures or None,
        "validation_syncnet_path": networks.syncnet_path,
        "syncnet_path": networks.stable_syncnet_path,
        "vgg_path": networks.vgg_path,
        "validation_inception_path": networks.inception_path,
        "validation_fvd_path": networks.fvd_path,
        "videomae_path": networks.videomae_path,
        "output_path": str(out),
    }
    flags = validation_arguments(folder, changed)
    measured: dict[int, Mapping[str, float]] = {}
    with reserved(out):
        for step, figures in measure_checkpoints(flags, checkpoints, cpu=args.device == "cpu"):
            measured[step] = figures
            say(f"step {step}, {len(measured)} of {counted(len(checkpoints), 'checkpoint')}")
            write_results(measured, folder, out)  # after Ctrl-C what was measured is there
    print_table(measured)
    return 0


def write_results(measured: Measured, folder: Path, out: Path) -> None:
    """Write figures.json and report.html."""
    steps = [{"step": step, "figures": dict(figures)} for step, figures in measured.items()]
    best = {name: step for name in _names(measured) if (step := best_step(measured, name)) is not None}
    content = {"run": str(folder), "checkpoints": steps, "best": best}
    write_text_atomically(out / FIGURES_FILE, json.dumps(content, indent=1))
    write_text_atomically(out / "report.html", report(measured, folder))


def report(measured: Measured, folder: Path) -> str:
    """The page with a curve for each figure."""
    curves = []
    for name in _names(measured):
        best = best_step(measured, name)
        title = _short(name) if best is None else f"{_short(name)}, best at step {best}"
        curves.append(
            line_plot({_short(name): _curve(measured, name)}, title=title, x_label="step", y_label="", x=list(measured))
        )
    figures = "".join(f"<figure>{svg}</figure>" for svg in curves)
    body = f"<h1>Checkpoints of {html.escape(str(folder))}</h1>{figures}"
    return page(f"Checkpoints of {folder}", body, style="", script="")


def print_table(measured: Measured) -> None:
    """Each figure at the first and the last step, and at the best one, if it is known which end is better."""
    print(f"{'figure':<28}{'first':>11}{'last':>11}{'best':>11}  at step")
    for name in _names(measured):
        curve, best = _curve(measured, name), best_step(measured, name)
        told = "" if best is None else f"{measured[best][name]:11.4g}  {best}"
        print(f"{_short(name):<28}{curve[0]:11.4g}{curve[-1]:11.4g}{told}")


def best_step(measured: Measured, name: str) -> int | None:
    """The step at which a figure is best, the first of several; None if nothing is known to be better."""
    try:
        goal = Goal.parse(name)
    except ValueError:
        return None
    best: int | None = None
    for step, figures in measured.items():
        if name in figures and goal.is_better(figures[name], None if best is None else measured[best][name]):
            best = step
    return best


def _names(measured: Measured) -> list[str]:
    """All figures, but for the time that videos took."""
    names = dict.fromkeys(name for figures in measured.values() for name in figures)
    return [name for name in names if name != f"{PREFIX}seconds"]


def _curve(measured: Measured, name: str) -> list[float]:
    return [figures.get(name, math.nan) for figures in measured.values()]


def _short(name: str) -> str:
    return name if name == f"{PREFIX}loss" else name.removeprefix(PREFIX)
