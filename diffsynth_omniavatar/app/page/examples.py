"""Drawn people to try the page with: what the small models know."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NANO_NOTE = "nano knows drawn people alone, at 128x128 pixels, and needs no GPU"
SECONDS = 2
FILM_SEED, PORTRAIT_SEED = 1, 2


def talk_example(folder: Path) -> tuple[Path, Path, str]:
    """A portrait, speech and a prompt; drawn into the folder when they are first wanted."""
    from ...media.timeline import FRAME_RATE
    from ...nano.speaker.clips import draw_clip
    from ..demo import NEWCOMER

    def draw(to: Path) -> None:
        from PIL import Image

        clip = draw_clip(PORTRAIT_SEED, SECONDS * FRAME_RATE, split="evaluation", identity=NEWCOMER, sways=False)
        Image.fromarray(clip.frames[0]).save(to / "portrait.png")
        _write_sound(to / "speech.wav", clip.waveform)

    place = _drawn(folder / "talk", draw)
    return place / "portrait.png", place / "speech.wav", NEWCOMER.describe(False)


def dub_example(folder: Path) -> tuple[Path, Path]:
    """A film of two scenes, and other speech for its speaker."""

    def draw(to: Path) -> None:
        from ...media.timeline import FRAME_RATE
        from ...nano.speaker.clips import draw_clip
        from ...nano.speaker.film import draw_film
        from ...nano.stage import write_video

        film = draw_film(FILM_SEED, SECONDS * FRAME_RATE)
        write_video(to / "film.mp4", film.frames, film.speaker.waveform)
        speech = draw_clip(100 + FILM_SEED, SECONDS * FRAME_RATE, split="evaluation", voice=film.speaker.voice)
        _write_sound(to / "speech.wav", speech.waveform)

    place = _drawn(folder / "dub", draw)
    return place / "film.mp4", place / "speech.wav"


def _write_sound(path: Path, waveform: np.ndarray) -> None:
    import soundfile

    from ...media.timeline import SAMPLE_RATE

    sound = io.BytesIO()
    soundfile.write(sound, waveform, SAMPLE_RATE, format="WAV")
    path.write_bytes(sound.getvalue())  # soundfile itself raises no OSError where a disk is full


def _drawn(folder: Path, draw: Callable[[Path], None]) -> Path:
    """The folder, filled where it was not there; two people may ask at once."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            draw(scratch)
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder
