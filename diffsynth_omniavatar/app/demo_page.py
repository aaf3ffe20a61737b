"""The page that `omniavatar demo` writes: videos, curves and figures of before and after."""

from __future__ import annotations

import html
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..media.timeline import FRAME_RATE
from ..metrics.plots import line_plot
from ..nano.speaker.clips import SpeakerClip
from ..training.log_table import read_table

STYLE = """
body { max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.videos { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; }
video { width: 100%; aspect-ratio: 1; background: #ddd; image-rendering: auto; }
svg { width: 100%; height: auto; display: block; margin: .75rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f4f4f4; padding: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .82rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A video of the report and what it shows."""

    path: Path
    title: str
    openness: np.ndarray
    """float [F]."""
    figures: dict[str, float]


def table(before: Shown, after: Shown, losses: Sequence[float]) -> list[tuple[str, str, str]]:
    """Name, before and after of each figure, under a line of headings."""
    rows = [("", "before", "after")]
    rows.append(("validation loss on held-out clips", f"{losses[0]:.4f}", f"{losses[1]:.4f}"))
    return rows + [(name, f"{value:.2f}", f"{after.figures[name]:.2f}") for name, value in before.figures.items()]


def training_losses(path: Path) -> list[float]:
    """The loss of every step, from the loss.csv of a run."""
    return [row["loss"] for row in read_table(path)]


def running_mean(values: Sequence[float], length: int = 10) -> list[float]:
    """Mean of the last `length` values, NaN before there are so many."""
    return [
        float(np.mean(values[end - length : end])) if end >= length else math.nan for end in range(1, len(values) + 1)
    ]


def _loss_plot(values: Sequence[float]) -> str:
    series = {"each step": values, "last 10": running_mean(values)}
    return line_plot(series, title="training loss", x_label="step", y_label="loss", x=range(1, len(values) + 1))


def _mouth_plots(shown: Sequence[Shown], clip: SpeakerClip) -> str:
    """Loudness of the sound, and the mouths of before, after and the truth over it."""
    frames = len(clip.openness)
    seconds = ((np.arange(frames) + 0.5) / FRAME_RATE).tolist()
    level = np.sqrt((clip.waveform.reshape(frames, -1) ** 2).mean(axis=1))
    curves = {"true": clip.openness, "before": shown[1].openness, "after": shown[2].openness}
    mouth = {name: curve.tolist() for name, curve in curves.items()}
    return line_plot(
        {"sound": (level / level.max()).tolist()}, title="loudness", x=seconds, x_label="seconds", y_label="of the most"
    ) + line_plot(mouth, title="mouth openness", x=seconds, x_label="seconds", y_label="0 closed, 1 open")


def page(
    shown: Sequence[Shown],
    losses: Sequence[float],
    training: Sequence[float],
    clip: SpeakerClip,
    commands: Sequence[Sequence[str]],
    *,
    train_clips: int,
    held_out_clips: int,
    seconds: float,
) -> str:
    """The report, HTML.

    Args:
        shown: videos: of a known person, of the new one before and after training, and the truth.
        losses: validation losses before and after.
        training: the loss of each training step.
        clip: what the new person says.
        commands: what was run, and how the video is made by hand.
        train_clips, held_out_clips: how many were trained on, and validated on.
        seconds: that all of it took.
    """
    before, after = shown[1], shown[2]
    videos = "".join(
        f'<figure><video src="{html.escape(one.path.name)}" controls loop playsinline preload="auto"></video>'
        f"<figcaption>{html.escape(one.title)}</figcaption></figure>"
        for one in shown
    )
    head, *body = table(before, after, losses)
    lines = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body]
    headings = "".join(f"<th>{cell}</th>" for cell in head)
    lines_of_commands = "\n\n".join(shlex.join(command) for command in commands)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>OmniAvatar: demo</title><style>{STYLE}</style></head><body>
<h1>A small OmniAvatar learns a new face</h1>
<p>The model animates a portrait to speech, at 128x128. People are drawn and their speech is synthesised, so that the
true mouth is known. The new person's face, eyes, brows and fringe have sizes that nobody in the training has. It was
fine-tuned for {len(training)} steps on {train_clips} clips; the sentence and the voice below are in none of them.
All of it took {seconds / 60:.1f} minutes on this machine's {os.cpu_count()} processor cores.</p>
<h2>Videos, with sound</h2><div class="videos">{videos}</div>
<h2>Before and after</h2><div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>{"".join(lines)}</tbody>
</table></div>
<p>The validation loss is the mean squared error of the predicted flow on {held_out_clips} clips of the new person that
are not trained on, with the same noise before and after.</p>
<h2>Training</h2>{_loss_plot(training)}
<p>Each step's loss is at a noise level of its own, which makes most of its ups and downs.</p>
<h2>Mouth against sound</h2>{_mouth_plots(shown, clip)}
<h2>Commands</h2><pre>{html.escape(lines_of_commands)}</pre>
</body></html>
"""
