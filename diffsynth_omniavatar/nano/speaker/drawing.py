"""Pictures of the speaker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .identity import BACKGROUNDS, CLOTHES, HAIR, IRIS, Colour, Identity
from .motion import Motion

SIZE = 128
"""Height and width of the pictures."""

LIP: Colour = (206, 58, 98)
INSIDE: Colour = (62, 8, 38)
"""Colours of the lips and of the open mouth: the only ones with clearly less green than red and blue."""

FACE = (64.0, 60.0)
"""Where the middle of the face is, x and y."""

NARROW, SPREAD = 13.0, 9.0
"""The mouth, lips and all, is 2 (NARROW + SPREAD width) pixels wide."""

OPENING = 26.0
"""Pixels between the lips at openness 1."""

MOUTH = 22.0
"""Pixels from the middle of the face down to the closed mouth, where no identity says otherwise."""

CORNER = 2.5
"""Width of the lips at the corners of the mouth."""

UPWARD = 0.3
"""Part of the opening that is above the closed mouth."""

_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32) + np.float32(0.5)


class _Canvas:
    """A picture, float32 [3 or 4, SIZE, SIZE], on which shapes are laid in coordinates that move and turn with a part.

    A fourth channel gets the share of each pixel that is covered.
    """

    def __init__(self, pixels: np.ndarray, x: float, y: float, roll: float) -> None:
        self.pixels = pixels
        self.origin = x, y
        sine, cosine = math.sin(roll), math.cos(roll)
        self.x = cosine * (_COLUMNS - x) + sine * (_ROWS - y)
        self.y = cosine * (_ROWS - y) - sine * (_COLUMNS - x)

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice]:
        """The pixels in which a shape lies, also when turned by 0.1."""
        margin = 2 + 0.1 * max(abs(left), abs(right), abs(top), abs(bottom))
        x, y = self.origin
        rows = slice(max(0, int(y + top - margin)), max(0, int(y + bottom + margin) + 1))
        return rows, slice(max(0, int(x + left - margin)), max(0, int(x + right + margin) + 1))

    def cover(
        self, box: tuple[slice, slice], x: float, y: float, rx: float, up: float, down: float | None = None
    ) -> np.ndarray:
        """Share of each pixel of the box inside an ellipse with its own half heights above and below the middle.

        From the distance to the edge, (k0 - 1) k0 / k1 with k0 = |p / r| and k1 = |p / r^2|, true near the edge.
        """
        dx, dy = self.x[box] - np.float32(x), self.y[box] - np.float32(y)
        ry = np.float32(up) if down is None else np.where(dy < 0, np.float32(up), np.float32(down))
        px, py = dx / np.float32(rx), dy / ry
        k0 = np.sqrt(px * px + py * py)
        k1 = np.hypot(px / np.float32(rx), py / ry) + np.float32(1e-6)
        return np.clip(np.float32(0.5) - (k0 - 1) * k0 / k1, 0, 1)

    def lay(self, box: tuple[slice, slice], cover: np.ndarray, colour: Sequence[float]) -> None:
        part = self.pixels[(slice(None), *box)]
        part += cover * (np.array([*colour, 1.0][: len(part)], np.float32)[:, None, None] - part)

    def ellipse(
        self,
        colour: Sequence[float],
        x: float,
        y: float,
        rx: float,
        up: float,
        down: float | None = None,
    ) -> None:
        box = self.box(x - rx, y - up, x + rx, y + (up if down is None else down))
        self.lay(box, self.cover(box, x, y, rx, up, down), colour)


def _shaded(colour: Sequence[float], brightness: float) -> Colour:
    red, green, blue = (min(255.0, channel * brightness) for channel in colour)
    return red, green, blue


def render(identity: Identity, openness: np.ndarray, width: np.ndarray, motion: Motion) -> np.ndarray:
    """Draw the speaker.

    Args:
        identity: who.
        openness: float [F], 0 closed to 1.
        width: float [F], 0 rounded to 1 spread.
        motion: of F frames.

    Returns:
        uint8 [F, 128, 128, 3], RGB. The mouth is 26 + 18 width pixels wide and 26 openness pixels open.

    Raises:
        ValueError: openness, width and motion have different lengths.
    """
    wall = _shaded(BACKGROUNDS[identity.background], identity.shade[2])
    light = np.linspace(1.04, 0.94, SIZE, dtype=np.float32)[:, None] * np.ones((1, SIZE), np.float32)
    background = np.array(wall, np.float32)[:, None, None] * light
    frames = np.empty((len(openness), SIZE, SIZE, 3), np.uint8)
    for frame, pixels in zip(frames, _draw(background, identity, openness, width, motion), strict=True):
        frame[:] = (np.clip(pixels, 0, 255) + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return frames


def cut_out(identity: Identity, openness: np.ndarray, width: np.ndarray, motion: Motion) -> np.ndarray:
    """The speaker alone, with nothing behind; arguments and errors as for `render`.

    Returns:
        float32 [F, 128, 128, 4]: share of each pixel that the speaker covers, from 0 to 1, behind RGB of 0 to 255 that
        is multiplied by it.
    """
    nothing = np.zeros((4, SIZE, SIZE), np.float32)
    drawn = [pixels.transpose(1, 2, 0) for pixels in _draw(nothing, identity, openness, width, motion)]
    return np.stack(drawn)


def _draw(
    background: np.ndarray, identity: Identity, openness: np.ndarray, width: np.ndarray, motion: Motion
) -> Iterator[np.ndarray]:
    """The speaker in front of a picture, float32 [3 or 4, SIZE, SIZE], once for each frame."""
    if not len(openness) == len(width) == len(motion.x):
        raise ValueError(
            f"render got {len(openness)} values of openness, {len(width)} of width and {len(motion.x)} frames of "
            "motion; wanted one of each per frame"
        )
    for index in range(len(openness)):
        pixels = background.copy()
        x, y, roll, lids, gaze = (
            float(track[index]) for track in (motion.x, motion.y, motion.roll, motion.lids, motion.gaze)
        )
        opening = OPENING * float(openness[index])
        head = _Canvas(pixels, FACE[0] + x, FACE[1] + y, roll)
        _draw_body(pixels, identity, x, head)
        _draw_face(head, identity, identity.mouth_drop + 0.2 * opening)
        # Features lie in front of the axis about which the head turns.
        features = _Canvas(pixels, FACE[0] + 1.15 * x, FACE[1] + y, roll)
        _draw_eyes(features, identity, lids, gaze)
        _draw_nose(features, identity)
        _draw_mouth(features, identity, opening, NARROW + SPREAD * float(width[index]))
        _draw_hair(head, identity)
        yield pixels


def _draw_body(pixels: np.ndarray, identity: Identity, x: float, head: _Canvas) -> None:
    """Hair behind the neck, neck and clothes; these follow the head half the way."""
    if identity.long_hair:
        hair = _shaded(HAIR[identity.hair], 0.92 * identity.shade[0])
        head.ellipse(hair, 0, 8, identity.face_width + 8, 50, 52)
    body = _Canvas(pixels, FACE[0] + 0.5 * x, FACE[1], 0.0)
    clothes = _shaded(CLOTHES[identity.clothes], identity.shade[1])
    body.ellipse(clothes, 0, 82, 56, 34)
    body.ellipse(_shaded(clothes, 0.82), 0, 52, 19, 10)
    body.ellipse(_shaded(identity.skin, 0.82), 0, 38, 15, 30, 21)


def _draw_face(head: _Canvas, identity: Identity, jaw: float) -> None:
    """Ears and face; the chin is `jaw` pixels lower than usual with the mouth closed."""
    for side in (-1, 1):
        head.ellipse(_shaded(identity.skin, 0.9), side * identity.face_width, 2, 5.5, 8.5)
    head.ellipse(identity.skin, 0, 0, identity.face_width, 45, 44)
    head.ellipse(identity.skin, 0, 22, identity.jaw_width, 24, 25 + jaw)


def _draw_eyes(face: _Canvas, identity: Identity, lids: float, gaze: float) -> None:
    lid = _shaded(identity.skin, 0.92)
    dark = _shaded(identity.skin, 0.5)
    hair = _shaded(HAIR[identity.hair], 0.75)
    size = identity.eye_size
    for side in (-1, 1):
        x, y = side * identity.eye_distance, -6.0
        rx, ry = 7.2 * size, 5.0 * size
        brow = y - identity.brow_height
        face.ellipse(hair, x - side * 3, brow + identity.brow_tilt, 4.5, 1.6)
        face.ellipse(hair, x + side * 2, brow, 5.5, 1.6)
        edge = y - ry * (1 - 2.1 * lids)
        face.ellipse(dark, x, y - 0.7, rx + 0.7, ry + 0.5)
        box = face.box(x - rx - 1, y - ry - 1, x + rx + 1, y + ry + 1)
        white = face.cover(box, x, y, rx, ry)
        face.lay(box, white, (248, 248, 246))
        face.lay(box, white * face.cover(box, x + gaze, y, 4.4 * size, 4.4 * size), IRIS[identity.iris])
        face.lay(box, white * face.cover(box, x + gaze, y, 2.2 * size, 2.2 * size), (26, 24, 26))
        if lids > 0:
            eye = face.cover(box, x, y - 0.7, rx + 0.7, ry + 0.5)
            face.lay(box, eye * np.clip(np.float32(edge) - face.y[box], 0, 1), lid)
            lashes = np.abs(face.y[box] - np.float32(min(edge, y + 0.5 * ry)))
            face.lay(box, eye * np.clip(1.5 - lashes, 0, 1), dark)


def _draw_nose(face: _Canvas, identity: Identity) -> None:
    tip = identity.nose_length - 2
    face.ellipse(_shaded(identity.skin, 0.84), 0, tip, 5.0, 3.2)
    face.ellipse(_shaded(identity.skin, 1.03), 0, tip - 2.2, 4.6, 3.4)


def _draw_mouth(face: _Canvas, identity: Identity, opening: float, half_width: float) -> None:
    up, down = UPWARD * opening, (1 - UPWARD) * opening
    thickness, y = identity.lip_thickness, MOUTH + identity.mouth_drop
    face.ellipse(LIP, 0, y, half_width, up + 0.85 * thickness, down + thickness)
    face.ellipse(INSIDE, 0, y, half_width - CORNER, up + 0.05, down + 0.05)


def _draw_hair(head: _Canvas, identity: Identity) -> None:
    """Hair in front: a cap around a window in which the face shows; long hair goes on beside the cheeks."""
    colour = _shaded(HAIR[identity.hair], identity.shade[0])
    width = identity.face_width
    low = 34.0 if identity.long_hair else -2.0
    box = head.box(-width - 8, -54, width + 8, low)
    cap = head.cover(box, 0, -4, width + 6, 47, 40)
    window = head.cover(box, identity.parting, 4, width - 3, 28 - identity.fringe, 60)
    ends = np.clip(np.float32(low) - head.y[box], 0, 1)
    head.lay(box, cap * ends * (1 - window), colour)
