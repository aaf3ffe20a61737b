"""What a run looks like on the page: how it stands, and its curves, as HTML."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from ...metrics.plots import line_plot
from ...training.log_table import Row
from .markup import plain
from .training_runs import RunState, TrainingRun

POINTS = 300
"""Most places of a curve; longer ones show means of neighbours."""
LARGEST = 1e12
"""Losses beyond it are not drawn."""
FEW = 12
"""Values of which each is marked."""
MEAN_OF = 10
"""Steps of the smooth curve."""
RECENT = 20
"""Steps by which the time of the next ones is judged."""
WORDS = {
    "running": "Running",
    "stopping": "Stopping",
    "stopped": "Stopped",
    "finished": "Finished",
    "failed": "Failed",
}
EMPTY = '<p class="empty">No training yet.</p>'


def status(run: TrainingRun, state: RunState, losses: Sequence[Row]) -> str:
    """How a run stands."""
    total = run.record().max_steps
    done = int(losses[-1]["step"]) if losses else 0
    words = WORDS[state.name]
    if state.is_alive and not losses:
        told = "the model is being loaded; the first step comes in a minute or two"
    else:
        told = f"step {done} of {total}"
        seconds = seconds_per_step(losses)
        if state.is_alive and seconds is not None:
            told += f", {seconds:.3g} s a step, about {clock(seconds * (total - done))} left, without the validations"
    kind = {"failed": "failed", "finished": "done"}.get(state.name, "")
    shown = f'<p role="status" class="{kind}"><strong>{words}</strong>: {told}.</p>'
    shown += f'<progress max="{total}" value="{min(done, total)}" aria-label="Steps that are done"></progress>'
    if state.name == "stopping":
        shown += "<p>It ends after its step. Stop again to end it at once.</p>"
    if state.message:
        shown += f'<pre role="alert">{plain(state.message)}</pre>'
    return shown


def fault(text: str) -> str:
    """What keeps a run from being shown."""
    return f'<p role="alert" class="failed">{plain(text)}</p>'


def seconds_per_step(losses: Sequence[Row]) -> float | None:
    """Of the last steps; None if it is not known."""
    times = [row["seconds_per_step"] for row in losses[-RECENT:] if "seconds_per_step" in row]
    return statistics.median(times) if times else None


def clock(seconds: float) -> str:
    """A time in words that are short: 40 s, 5 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def loss_curve(losses: Sequence[Row]) -> str:
    """The loss of each step, and its running mean."""
    rows = [row for row in losses if "loss" in row]
    values = _drawable(row["loss"] for row in rows)
    smooth = [_mean(values[end - MEAN_OF : end]) if end >= MEAN_OF else math.nan for end in range(1, len(values) + 1)]
    curves = {"each step": values, f"last {MEAN_OF}": smooth}
    return _curves(curves, [row["step"] for row in rows], "training loss", "loss")


def validation_curve(rows: Sequence[Row]) -> str:
    """The loss on held-out clips."""
    rows = [row for row in rows if "validation_loss" in row]
    values = _drawable(row["validation_loss"] for row in rows)
    return _curves({"held-out clips": values}, [row["step"] for row in rows], "validation loss", "loss")


def _curves(curves: dict[str, list[float]], steps: list[float], title: str, y_label: str) -> str:
    curves = {name: values for name, values in curves.items() if any(map(math.isfinite, values))}
    if not curves:
        return ""
    width = -(-len(steps) // POINTS)
    if width > 1:
        curves = {name: _means(values, width) for name, values in curves.items()}
        steps = _means(steps, width)
    last = {name: next(value for value in reversed(values) if math.isfinite(value)) for name, values in curves.items()}
    told = ", ".join(f"{name} {value:.4g}" for name, value in last.items())
    plot = line_plot(curves, title=title, x_label="step", y_label=y_label, x=steps, dots=len(steps) <= FEW)
    return f'<div class="curve" role="img" aria-label="{title} up to step {steps[-1]:.0f}: {told}">{plot}</div>'


def _drawable(values: Iterable[float]) -> list[float]:
    """NaN in the place of what a damaged table may say, and no plot can show."""
    return [value if abs(value) < LARGEST else math.nan for value in values]


def _means(values: Sequence[float], width: int) -> list[float]:
    return [_mean(values[start : start + width]) for start in range(0, len(values), width)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
