"""The video that shows what `dub` found: faces, their points, where the new mouth goes, and why it does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..media.faces.face import Face
from ..media.writer import VideoWriter
from .dub_inputs import DubInputs, FaceInputs

SHOWN, FADING, UNTOUCHED, OTHER = "#30e060", "#ffc020", "#ff4040", "#60b0ff"
"""Colours: a new mouth, one that comes or goes, none, and a face that is not dubbed."""


class DebugVideo:
    """Writes the finished pictures with what was found drawn on them.

    Args:
        writer: of the debug video.
        inputs: of the dubbed one.
    """

    def __init__(self, writer: VideoWriter, inputs: DubInputs) -> None:
        self._writer, self._inputs = writer, inputs
        height, width = inputs.footage.size
        self._line = max(1, round(min(height, width) / 360))
        letters = max(10, min(height, width) // 36)
        self._font, self._row = ImageFont.load_default(letters), 1.3 * letters
        self._outline = _outline(inputs.mouth)
        self._chosen = {id(span.face.track) for face in inputs.faces for span in face.plan.spans}

    def write(self, pictures: Tensor, places: range, times: Sequence[tuple[int, int]]) -> None:
        """Append pictures uint8 [n, H, W, 3] of these places."""
        height, width = self._inputs.frame_size
        drawn = [self._drawn(picture, place) for picture, place in zip(pictures, places, strict=True)]
        self._writer.write(torch.stack(drawn)[:, :height, :width], times)

    def _drawn(self, pixels: Tensor, place: int) -> Tensor:
        image = Image.fromarray(pixels.numpy())
        draw = ImageDraw.Draw(image)
        number = self._inputs.playback.pictures[place]
        for index, track in enumerate(self._inputs.footage.tracks, start=1):
            face = track.at(number)
            if face is not None and id(track) not in self._chosen:
                self._face(draw, face, f"face {index}", OTHER)
        start, _ = self._inputs.playback.seconds(place)
        lines = [f"frame {place} (picture {number}), {start:.2f} s"]
        lines += [self._mouth(draw, face, place, number) for face in self._inputs.faces]
        for row, line in enumerate(lines):
            self._text(draw, (4 * self._line, (4 * self._line) + row * self._row), line, "white")
        return torch.from_numpy(np.array(image))

    def _mouth(self, draw: ImageDraw.ImageDraw, dubbed: FaceInputs, place: int, picture: int) -> str:
        """Draw a face that is dubbed; gives what becomes of it."""
        strength, reason = float(dubbed.plan.strengths[place]), dubbed.plan.reasons[place]
        colour = UNTOUCHED if reason is not None else SHOWN if strength == 1 else FADING
        told = "unchanged: " + reason if reason is not None else f"new mouth {strength:.0%}"
        for index, track in enumerate(self._inputs.footage.tracks, start=1):
            face = track.at(picture)
            if face is not None and any(span.face.track is track for span in dubbed.plan.spans):
                self._face(draw, face, f"face {index}", colour)
                told = f"face {index}: {told}"
        span = next((span for span in dubbed.plan.spans if place in span.places), None)
        if span is not None:
            for x, y in (span.face.transform(picture) @ self._outline).T.tolist():
                draw.rectangle((x, y, x + self._line, y + self._line), fill=colour)
        return told

    def _face(self, draw: ImageDraw.ImageDraw, face: Face, name: str, colour: str) -> None:
        draw.rectangle(face.box, outline=colour, width=self._line)
        reach = 2 * self._line
        for x, y in face.anchors:
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
        self._text(draw, (face.box[0], face.box[1] - self._row), f"{name}, {face.score:.2f}", colour)

    def _text(self, draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str) -> None:
        draw.text(at, text, fill=colour, font=self._font, stroke_width=self._line, stroke_fill="black")


def _outline(mouth: Tensor) -> Tensor:
    """The edge of a mask [H, W] in the unit square: float32 [3, n] of u, v and 1."""
    inside = F.pad(mouth[None], (1, 1, 1, 1))
    core = -F.max_pool2d(-inside, 3, stride=1)[0]
    rows, columns = ((mouth == 1) & (core == 0)).nonzero(as_tuple=True)
    height, width = mouth.shape
    return torch.stack([(columns + 0.5) / width, (rows + 0.5) / height, torch.ones(len(rows))])
