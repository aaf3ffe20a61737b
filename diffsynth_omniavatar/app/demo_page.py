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
from ..nano.regions import mouth_box
from ..nano.speaker.clips import SpeakerClip
from ..nano.speaker.drawing import SIZE
from ..system import pages
from ..training.log_table import read_table

STYLE = """
.videos { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .75rem; }
figcaption { font-size: .9rem; text-align: center; }
video, canvas { display: block; width: 100%; aspect-ratio: 1; background: #ddd; }
canvas { margin-top: .5rem; }
.control { display: flex; flex-wrap: wrap; gap: .75rem; align-items: center; margin: .75rem 0; }
.control button { min-width: 5rem; padding: .35rem .75rem; font: inherit; }
.control input[type=range] { flex: 1; min-width: 8rem; }
"""

SCRIPT = """
const videos = [...document.querySelectorAll("video")], zooms = [...document.querySelectorAll("canvas")];
const [first, ...others] = videos, play = document.getElementById("play"), place = document.getElementById("place");
function move(seconds) { for (const video of videos) video.currentTime = seconds; }
function start() {
  for (const video of videos) video.play();
  play.textContent = "Pause";
}
function stop() {
  for (const video of videos) video.pause();
  play.textContent = "Play";
}
function draw() {
  const now = first.currentTime;
  if (!first.paused) {
    for (const other of others) {
      const late = now - other.currentTime;
      if (Math.abs(late) > 0.2) other.currentTime = now;
      other.playbackRate = 1 + 3 * Math.max(-0.2, Math.min(0.2, late));
    }
    place.value = now / first.duration;
  }
  zooms.forEach((zoom, index) => {
    const video = videos[index], { row, column, side } = zoom.dataset, [w, h] = [video.videoWidth, video.videoHeight];
    zoom.getContext("2d").drawImage(video, column * w, row * h, side * w, side * h, 0, 0, zoom.width, zoom.height);
  });
  requestAnimationFrame(draw);
}
play.onclick = () => first.paused ? start() : stop();
place.oninput = () => move(place.value * first.duration);
document.getElementById("sound").onchange = event => { first.muted = !event.target.checked; };
first.onended = () => { move(0); start(); };
for (const video of videos) video.onloadedmetadata = () => {
  video.currentTime = video.dataset.still;
  place.value = video.currentTime / video.duration;
};
draw();
"""
"""Plays all videos as one, and shows the mouths of their present frames enlarged."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A video of the report and what it shows."""

    path: Path
    title: str
    openness: np.ndarray
    """float [F]."""
    openness_r: float
    """Correlation with the true openness."""
    width_r: float
    """Correlation with the true width."""
    mouth_psnr: float
    """dB, to the truth, around the mouth."""
    static_psnr: float
    """dB, to the portrait, where nothing moves."""


def table(shown: Sequence[Shown], losses: Sequence[float]) -> list[tuple[str, ...]]:
    """Name, before, after and truth of each figure, under a line of headings."""
    figures = {
        "mouth openness, correlation with the true one": [f"{one.openness_r:.2f}" for one in shown],
        "mouth width, correlation with the true one": [f"{one.width_r:.2f}" for one in shown],
        "around the mouth, PSNR to the truth (dB)": [f"{one.mouth_psnr:.1f}" for one in shown],
        "static regions, PSNR to the portrait (dB)": [f"{one.static_psnr:.1f}" for one in shown],
        "validation loss on held-out clips": [*(f"{loss:.4f}" for loss in losses), ""],
    }
    return [("", "before", "after", "truth"), *((name, *values) for name, values in figures.items())]


def conclusion(before: Shown, after: Shown, steps: int) -> str:
    """One sentence with the figures."""
    return (
        f"{steps} steps of fine-tuning bring the correlation of the mouth's openness with the true one from "
        f"{before.openness_r:.2f} to {after.openness_r:.2f}, that of its width from {before.width_r:.2f} to "
        f"{after.width_r:.2f}, and the PSNR around the mouth from {before.mouth_psnr:.1f} to "
        f"{after.mouth_psnr:.1f} dB."
    )


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
    curves = {"true": clip.openness, "before": shown[0].openness, "after": shown[1].openness}
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
        shown: videos of the new person: before training, after it, and the truth.
        losses: validation losses before and after.
        training: the loss of each training step.
        clip: what the new person says.
        commands: what does the same, in the folder of the page.
        train_clips, held_out_clips: how many were trained on, and validated on.
        seconds: that all of it took.
    """
    head, *body = table(shown, losses)
    lines = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body]
    headings = "".join(f"<th>{cell}</th>" for cell in head)
    lines_of_commands = "\n\n".join(shlex.join(command) for command in commands)
    content = f"""<h1>A small OmniAvatar learns a new face</h1>
<p class="result">{conclusion(shown[0], shown[1], len(training))}</p>
{_videos(shown, clip)}
<p>The model animates a portrait to speech, at 128x128. People are drawn and their speech is synthesised, so that the
true mouth is known. The new person has a long chin: the mouth is {clip.identity.mouth_drop:g} pixels lower than that of
everybody in the training of the model. It was fine-tuned on {train_clips} clips of this person; the sentence and the
voice here are in none of them. All of it took {seconds / 60:.1f} minutes on this machine's {os.cpu_count()} processor
cores.</p>
<h2>Figures</h2><div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>{"".join(lines)}</tbody>
</table></div>
<p>The PSNR around the mouth has a bound: how the head drifts is not in the sound. The validation loss is the mean
squared error of the predicted flow on {held_out_clips} clips of the new person that are not trained on, with the same
noise before and after.</p>
<h2>Mouth against sound</h2>{_mouth_plots(shown, clip)}
<h2>Training</h2>{_loss_plot(training)}
<p>Each step's loss is at a noise level of its own, which makes most of its ups and downs.</p>
<h2>Commands</h2><p>These do the same again, in the folder of this page. The training here writes to
finetune/again, beside the checkpoint that the last command takes.</p>
<pre>{html.escape(lines_of_commands)}</pre>"""
    return pages.page("OmniAvatar: demo", content, style=STYLE, script=SCRIPT)


def _videos(shown: Sequence[Shown], clip: SpeakerClip) -> str:
    """The videos with their mouths enlarged below, and one control for all; at rest they show the widest open mouth."""
    row, column, side = (pixels / SIZE for pixels in mouth_box(clip.identity))
    still = (int(clip.openness.argmax()) + 0.5) / FRAME_RATE
    figures = "".join(
        f'<figure><figcaption>{html.escape(one.title)}</figcaption><video src="{html.escape(one.path.name)}" '
        f'data-still="{still:g}" playsinline preload="auto"{" muted" if index else ""}></video>'
        f'<canvas width="448" height="448" data-row="{row:g}" data-column="{column:g}" data-side="{side:g}"></canvas>'
        "</figure>"
        for index, one in enumerate(shown)
    )
    return (
        f'<div class="videos">{figures}</div><div class="control"><button id="play" type="button">Play</button>'
        '<input id="place" type="range" min="0" max="1" step="any" value="0" aria-label="place in the videos">'
        '<label><input id="sound" type="checkbox" checked> sound</label></div>'
    )
