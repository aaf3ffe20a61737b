"""A run through everything on any machine: a tiny model of random weights, a drawn face, made-up speech, a video."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from .config import Conventions
from .generate import GeneratedVideo, generate
from .loading import load_pipeline
from .nano.family import write_random_family
from .timeline import SAMPLE_RATE

SECONDS = 3.0
STEPS = 4
CONVENTIONS = Conventions(image_sizes=((96, 96),), max_tokens=441)
"""Small pictures in two chunks: nearly all of the time goes into the VAE."""
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""Formants in hertz of the vowels in "father", "see", "boot", "bed", "law": men in Peterson and Barney (1952)."""


def draw_portrait(size: int = 256) -> Image.Image:
    """A simple face."""
    image = Image.new("RGB", (size, size), (120, 150, 175))
    draw = ImageDraw.Draw(image)

    def ellipse(left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
        draw.ellipse([size * edge for edge in (left, top, right, bottom)], fill=colour)

    ellipse(0.10, 0.80, 0.90, 1.60, (60, 70, 110))
    ellipse(0.40, 0.65, 0.60, 0.95, (205, 160, 130))
    ellipse(0.22, 0.06, 0.78, 0.70, (70, 45, 35))
    ellipse(0.26, 0.14, 0.74, 0.80, (225, 180, 150))
    for x in (0.39, 0.61):
        ellipse(x - 0.06, 0.38, x + 0.06, 0.45, (250, 250, 250))
        ellipse(x - 0.025, 0.385, x + 0.025, 0.445, (50, 60, 80))
    ellipse(0.47, 0.47, 0.53, 0.57, (205, 155, 125))
    ellipse(0.40, 0.62, 0.60, 0.69, (165, 70, 75))
    return image


def speak(seconds: float = SECONDS, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Sound like speech, float32 [n]: vowels of a falling voice in syllables of 0.2 s, with a pause after each four.

    A train of pulses through three resonances, as in Klatt's cascade synthesizer.
    """
    length = round(rate * 0.2)
    syllables = []
    for index in range(math.ceil(seconds / 0.2)):
        if index % 5 == 4:
            syllables.append(np.zeros(length))
            continue
        pitch = np.linspace(125, 105, length) - 4 * (index % 5)
        source = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0.0)
        for formant in VOWELS[index % len(VOWELS)]:
            source = _resonate(source, formant, rate)
        syllables.append(np.hanning(length) * source / np.abs(source).max())
    return (0.5 * np.concatenate(syllables))[: round(rate * seconds)].astype(np.float32)


def _resonate(source: np.ndarray, frequency: float, rate: int, bandwidth: float = 90.0) -> np.ndarray:
    """y[n] = a x[n] + b y[n-1] + c y[n-2], a resonance of that frequency and bandwidth."""
    c = -math.exp(-2 * math.pi * bandwidth / rate)
    b = 2 * math.exp(-math.pi * bandwidth / rate) * math.cos(2 * math.pi * frequency / rate)
    a = 1 - b - c
    result = np.zeros(len(source) + 2)
    for index, value in enumerate(source):
        result[index + 2] = a * value + b * result[index + 1] + c * result[index]
    return result[2:]


def run_demo(out: str | Path = "demo") -> GeneratedVideo:
    """Make the model, the inputs and the video in a folder; existing files of an earlier run are replaced."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    print(f"Making a tiny model with random weights in {out / 'model'}.")
    write_random_family(out / "model", conventions=CONVENTIONS)
    draw_portrait().save(out / "portrait.png")
    soundfile.write(out / "speech.wav", speak(), SAMPLE_RATE)
    pipe = load_pipeline(folder=out / "model", device="cpu")
    print(f"Making a video of {out / 'portrait.png'} saying {out / 'speech.wav'}.")
    made = generate(
        pipe,
        prompt="A person speaks to the camera.",
        image=out / "portrait.png",
        audio=out / "speech.wav",
        out=out / "video.mp4",
        steps=STEPS,
    )
    print(
        f"\n{made.path}: {made.frames} frames of {made.height}x{made.width} with sound, in {made.chunks} chunks, "
        f"{made.seconds:.0f} s.\n"
        "The weights are random, so the picture turns into noise; all else is as with the published models.\n"
        "The same by hand:\n"
        f"  omniavatar generate --models_folder {out / 'model'} --prompt 'A person speaks.' --steps {STEPS} \\\n"
        f"    --image {out / 'portrait.png'} --audio {out / 'speech.wav'} --out {out / 'again.mp4'}\n"
        "With a published model (see `omniavatar doctor --model 14B`):\n"
        "  omniavatar generate --model 14B --prompt 'A woman talks.' --image face.png --audio speech.wav --out talk.mp4"
    )
    return made
