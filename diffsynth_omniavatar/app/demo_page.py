"""The page that `omniavatar demo` writes: videos, curves and figures of before and after, and a dubbed film."""

from __future__ import annotations

import html
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..media.timeline import FRAME_RATE, SAMPLES_PER_FRAME
from ..metrics.plots import line_plot
from ..nano.regions import mouth_box
from ..nano.speaker.clips import SpeakerClip
from ..system import pages
from ..training.log_table import read_table
from .demo_dub import DUBBED, FILM, FOUND, DubbedFilm

STYLE = """
.videos { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .75rem; }
figcaption { font-size: .9rem; text-align: center; }
video, canvas { display: block; width: 100%; aspect-ratio: 1; background: #ddd; }
canvas { margin-top: .5rem; }
.film .videos { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.film video { aspect-ratio: 16 / 9; } .film canvas { width: 60%; margin: .5rem auto 0; }
.control { display: flex; flex-wrap: wrap; gap: .75rem; align-items: center; margin: .75rem 0; }
.control button { min-width: 5rem; padding: .35rem .75rem; font: inherit; }
.control input[type=range] { flex: 1; min-width: 8rem; }
"""

SCRIPT = """
let stopPlaying = () => {};
for (const player of document.querySelectorAll(".player")) {
  const videos = [...player.querySelectorAll("video")], zooms = [...player.querySelectorAll("canvas")];
  const first = videos.find(video => !video.muted), others = videos.filter(video => video !== first);
  const play = player.querySelector("button"), place = player.querySelector("[type=range]");
  const move = seconds => { for (const video of videos) video.currentTime = seconds; };
  function start() {
    if (stopPlaying !== stop) stopPlaying();
    stopPlaying = stop;
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
      const squares = zoom.squares ??= JSON.parse(zoom.dataset.squares);
      const frame = Math.min(squares.length - 1, Math.floor(videos[index].currentTime * FRAME_RATE));
      const [left, top, side] = squares[frame];
      zoom.getContext("2d").drawImage(videos[index], left, top, side, side, 0, 0, zoom.width, zoom.height);
    });
    requestAnimationFrame(draw);
  }
  play.onclick = () => first.paused ? start() : stop();
  place.oninput = () => move(place.value * first.duration);
  player.querySelector("[type=checkbox]").onchange = event => { first.muted = !event.target.checked; };
  first.onended = () => { move(0); start(); };
  for (const video of videos) video.onloadedmetadata = () => {
    video.currentTime = video.dataset.still;
    place.value = video.currentTime / video.duration;
  };
  draw();
}
""".replace("FRAME_RATE", str(FRAME_RATE))
"""Plays the videos of a group as one, and shows places of their present frames enlarged."""


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


def _mouth_plots(curves: Mapping[str, np.ndarray], waveform: np.ndarray) -> str:
    """Loudness of the sound, and openness of mouths [F] over it."""
    frames = len(waveform) // SAMPLES_PER_FRAME
    seconds = ((np.arange(frames) + 0.5) / FRAME_RATE).tolist()
    level = np.sqrt((waveform.reshape(frames, -1) ** 2).mean(axis=1))
    mouth = {name: curve.tolist() for name, curve in curves.items()}
    return line_plot(
        {"sound": (level / level.max()).tolist()}, title="loudness", x=seconds, x_label="seconds", y_label="of the most"
    ) + line_plot(mouth, title="mouth openness", x=seconds, x_label="seconds", y_label="0 closed, 1 open")


def page(
    shown: Sequence[Shown],
    losses: Sequence[float],
    training: Sequence[float],
    clip: SpeakerClip,
    dubbed: DubbedFilm,
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
        dubbed: the film in which somebody says something else.
        commands: what does the same, in the folder of the page.
        train_clips, held_out_clips: how many were trained on, and validated on.
        seconds: that all of it took.
    """
    head, *body = table(shown, losses)
    lines = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body]
    headings = "".join(f"<th>{cell}</th>" for cell in head)
    lines_of_commands = "\n\n".join(shlex.join(command) for command in commands)
    mouths = {"true": clip.openness, "before": shown[0].openness, "after": shown[1].openness}
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
<h2>Mouth against sound</h2>{_mouth_plots(mouths, clip.waveform)}
<h2>Training</h2>{_loss_plot(training)}
<p>Each step's loss is at a noise level of its own, which makes most of its ups and downs.</p>
{_dubbing(dubbed)}
<h2>Commands</h2><p>These do the same again, in the folder of this page. The training here writes to
finetune/again, beside the checkpoint that the video after it takes.</p>
<pre>{html.escape(lines_of_commands)}</pre>"""
    return pages.page("OmniAvatar: demo", content, style=STYLE, script=SCRIPT)


def _videos(shown: Sequence[Shown], clip: SpeakerClip) -> str:
    """The videos with their mouths enlarged below; at rest they show the widest open mouth."""
    row, column, side = mouth_box(clip.identity)
    files = [(one.path.name, one.title) for one in shown]
    return _player(files, heard=0, still=int(clip.openness.argmax()), squares=[[column, row, side]])


def dubbing_conclusion(dubbed: DubbedFilm) -> str:
    """One sentence with the figures of the dubbed film."""
    return (
        f"In the dubbed film the mouth's openness follows the new words with a correlation of {dubbed.after_r:.2f} "
        f"(before: {dubbed.before_r:.2f}), its width with {dubbed.width_r:.2f}."
    )


def _dubbing(dubbed: DubbedFilm) -> str:
    """The film before and after, with the speaker enlarged below."""
    height, width = dubbed.film.frames.shape[1:3]
    largest, smallest = dubbed.film.squares[:, 2].max(), dubbed.film.squares[:, 2].min()
    files = [(FILM, "before"), (DUBBED, "dubbed")]
    player = _player(files, heard=1, still=int(dubbed.speech.openness.argmax()), squares=dubbed.squares, kind="film")
    mouths = {"true": dubbed.speech.openness, "before": dubbed.before, "dubbed": dubbed.after}
    return f"""<h2>A film is dubbed</h2>
<p class="result">{dubbing_conclusion(dubbed)}</p>
{player}
<p>The film has {width}x{height} pixels; the speaker's head with the shoulders is {smallest:.0f} to {largest:.0f} of
them high, walks, and after a cut sits beside somebody else, who keeps silent. <code>omniavatar dub</code> finds cut and
faces by itself (<a href="{FOUND}">what it found</a>), cuts the larger face out as the small V2V model knows faces, and
puts the new mouth back. All pixels around it are the film's. The true mouth is that of the new words.</p>
{_mouth_plots(mouths, dubbed.speech.waveform)}"""


def _player(
    files: Sequence[tuple[str, str]], *, heard: int, still: int, squares: Sequence[Sequence[float]], kind: str = ""
) -> str:
    """Videos side by side with one control for all.

    Args:
        files: name and title of each.
        heard: whose sound is heard.
        still: frame that is shown at rest.
        squares: what is shown enlarged below, for each frame or for all: left, top and side in pixels.
        kind: class of its own.
    """
    seconds = (still + 0.5) / FRAME_RATE
    figures = "".join(
        f'<figure><figcaption>{html.escape(title)}</figcaption><video src="{html.escape(name)}" '
        f'data-still="{seconds:g}" playsinline preload="auto"{"" if index == heard else " muted"}></video>'
        f'<canvas width="448" height="448" data-squares="{json.dumps(squares)}"></canvas></figure>'
        for index, (name, title) in enumerate(files)
    )
    return (
        f'<div class="player {kind}"><div class="videos">{figures}</div><div class="control">'
        '<button type="button">Play</button>'
        '<input type="range" min="0" max="1" step="any" value="0" aria-label="place in the videos">'
        '<label><input type="checkbox" checked> sound</label></div></div>'
    )
