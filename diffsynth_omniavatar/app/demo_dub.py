"""The demo's dubbed film: a drawn person, small in the picture, gets other words from the small V2V model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..generation.dub import dub
from ..media.timeline import SAMPLE_RATE
from ..media.video import read_frames
from ..metrics.sync import correlation
from ..nano.measure import measure_mouth
from ..nano.speaker.clips import SpeakerClip, draw_clip
from ..nano.speaker.film import Film, draw_film
from ..nano.stage import load_family, write_video

FRAMES = 50
"""Of the film: a chunk in each of its two scenes."""
SEED = 1

FILM, SPEECH, DUBBED, FOUND = "film.mp4", "film.wav", "film_dubbed.mp4", "film_found.mp4"
"""Files: the film, what is to be said, the dubbed film, and what was found in it."""


@dataclass(frozen=True, kw_only=True)
class DubbedFilm:
    """A film before and after, and what their mouths do; curves are float [F]."""

    film: Film
    speech: SpeakerClip
    """What the speaker says after."""
    before: np.ndarray
    """Openness of the mouth."""
    after: np.ndarray
    before_r: float
    """Correlation with the true openness of what is said after."""
    after_r: float
    width_r: float
    """That of the mouth's width after."""

    @property
    def squares(self) -> list[list[float]]:
        """Left and upper edge and side of the speaker's square in each frame, in pixels."""
        return np.round(self.film.squares, 1).tolist()


def dub_command(out: Path, family: Path | None, prompt: str, steps: int | None) -> list[str]:
    """What dubs the film by hand.

    Args:
        out: folder of the film.
        family: folder of the model; None for the one of this package.
        prompt: what the film shows.
        steps: denoising steps a chunk; None for the checkpoint's.
    """
    return [
        *("omniavatar", "dub", str(out / FILM), "--model", "nano-v2v"),
        *(() if family is None else ("--models_folder", str(family))),
        *("--audio", str(out / SPEECH), "--prompt", prompt),
        *(() if steps is None else ("--steps", str(steps))),
        *("--debug_video", str(out / FOUND), "--out", str(out / DUBBED)),
    ]


def dub_film(out: Path, family: Path, steps: int | None) -> DubbedFilm:
    """Draw the film, dub it, and measure the speaker's mouth in both; the files go to the folder `out`.

    Args:
        out: folder that is there.
        family: folder of the model.
        steps: denoising steps a chunk; None for the checkpoint's.
    """
    film = draw_film(SEED, FRAMES)
    speech = draw_clip(100 + SEED, FRAMES, split="evaluation", voice=film.speaker.voice)
    write_video(out / FILM, film.frames, film.speaker.waveform)
    soundfile.write(out / SPEECH, speech.waveform, SAMPLE_RATE, subtype="FLOAT")
    dub(
        load_family(family, "v2v", "cpu"),
        video=out / FILM,
        audio=out / SPEECH,
        steps=steps,
        debug_video=out / FOUND,
        prompt=film.prompt,
        out=out / DUBBED,
    )
    (before, _), (after, width) = (
        measure_mouth(film.speaker_in(read_frames(out / name).numpy())) for name in (FILM, DUBBED)
    )
    return DubbedFilm(
        film=film,
        speech=speech,
        before=before,
        after=after,
        before_r=correlation(before, speech.openness),
        after_r=correlation(after, speech.openness),
        width_r=correlation(width, speech.width),
    )
