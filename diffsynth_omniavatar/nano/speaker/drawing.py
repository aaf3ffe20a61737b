"""Pictures of the speaker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from .canvas import SIZE, Canvas, Light
from .identity import BACKGROUNDS, CLOTHES, HAIR, IRIS, Colour, Identity
from .motion import Motion
from .texture import cloth_light, draw_wall, face_light, hair_light

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

EYES = -6.0
"""Pixels from the middle of the face down to the eyes."""

CORNER = 2.5
"""Width of the lips at the corners of the mouth."""

UPWARD = 0.3
"""Part of the opening that is above the closed mouth."""

FACE_TURN = 0.5
"""Part of a turn that the outline of the face goes within that of the head."""

EDGE = 0.62
"""Brightness of the edge of a detailed face, of the skin's."""

SHADOW = 1.3
"""Width of the hair's shadow on it."""

NOSE_TURN = 0.35
"""How much farther than the other features a turn moves the nose, which is nearest."""


@dataclass(frozen=True, kw_only=True)
class _Style:
    """How faces are drawn."""

    iris: float
    """Radius for an eye of size 1."""
    pupil: float
    lid: float
    """Brightness of the lids, of the skin's."""
    nod: float
    """Part of a nod that the outline of the head goes."""


_PLAIN = _Style(iris=4.4, pupil=2.2, lid=0.92, nod=1.0)
_DETAILED = _Style(iris=3.75, pupil=2.0, lid=0.95, nod=0.35)
"""For people with textures: eyes whose white shows on the side from which they look away."""


def _shaded(colour: Sequence[float], brightness: float) -> Colour:
    red, green, blue = (min(255.0, channel * brightness) for channel in colour)
    return red, green, blue


def _darker(one: Colour, other: Colour) -> Colour:
    red, green, blue = (min(channels) for channels in zip(one, other, strict=True))
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
    if identity.texture is not None:
        background = draw_wall(identity.texture, background)
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
    style = _PLAIN if identity.texture is None else _DETAILED
    for index in range(len(openness)):
        pixels = background.copy()
        now = {track.name: float(getattr(motion, track.name)[index]) for track in fields(motion)}
        opening = OPENING * float(openness[index])
        head = Canvas(pixels, FACE[0] + now["x"], FACE[1] + now["y"] + style.nod * now["nod"], now["roll"])
        _draw_body(pixels, identity, now["x"], head)
        face = Canvas(pixels, head.origin[0] + FACE_TURN * now["turn"], head.origin[1], now["roll"])
        _draw_face(head, face, identity, identity.mouth_drop + 0.2 * opening)
        # Features lie in front of the axis about which the head turns.
        x, y = FACE[0] + 1.15 * now["x"] + now["turn"], FACE[1] + now["y"] + now["nod"]
        features = Canvas(pixels, x, y, now["roll"])
        _draw_eyes(features, identity, style, now)
        _draw_nose(Canvas(pixels, x + NOSE_TURN * now["turn"], y, now["roll"]), identity)
        _draw_mouth(features, identity, opening, NARROW + SPREAD * float(width[index]), now["smile"])
        _draw_hair(head, face, identity)
        yield pixels


def _light(identity: Identity, light: Callable[..., np.ndarray], *more: float) -> Light | None:
    """A light of the person's texture, if there is one."""
    texture = identity.texture
    return None if texture is None else lambda x, y: light(texture, x, y, *more)


def _draw_body(pixels: np.ndarray, identity: Identity, x: float, head: Canvas) -> None:
    """Hair behind the neck, neck and clothes; these follow the head half the way."""
    if identity.long_hair:
        hair = _shaded(HAIR[identity.hair], 0.92 * identity.shade[0])
        width = identity.face_width + 8
        head.ellipse(hair, 0, 8, width, 50, 52, light=_light(identity, hair_light, width))
    body = Canvas(pixels, FACE[0] + 0.5 * x, FACE[1], 0.0)
    clothes = _shaded(CLOTHES[identity.clothes], identity.shade[1])
    body.ellipse(clothes, 0, 82, 56, 34, light=_light(identity, cloth_light))
    body.ellipse(_shaded(clothes, 0.82), 0, 52, 19, 10)
    body.ellipse(_shaded(identity.skin, 0.82), 0, 38, 15, 30, 21)


def _draw_face(head: Canvas, face: Canvas, identity: Identity, jaw: float) -> None:
    """Ears and face; the chin is `jaw` pixels lower than usual with the mouth closed."""
    for side in (-1, 1):
        head.ellipse(_shaded(identity.skin, 0.9), side * identity.face_width, 2, 5.5, 8.5)
    light = _light(identity, face_light)
    if identity.texture is not None:
        edge = _shaded(identity.skin, EDGE)
        face.ellipse(edge, 0, 0, identity.face_width + 1.2, 46, 45.2)
        face.ellipse(edge, 0, 22, identity.jaw_width + 1.2, 25, 26.2 + jaw)
    face.ellipse(identity.skin, 0, 0, identity.face_width, 45, 44, light=light)
    face.ellipse(identity.skin, 0, 22, identity.jaw_width, 24, 25 + jaw, light=light)


def _draw_eyes(face: Canvas, identity: Identity, style: _Style, now: Mapping[str, float]) -> None:
    lid = _shaded(identity.skin, style.lid)
    dark = _shaded(identity.skin, 0.5)
    size, lids = identity.eye_size, now["lids"]
    iris, pupil = style.iris * size, style.pupil * size
    for side, raised in ((-1, now["left_brow"]), (1, now["right_brow"])):
        x, y = side * identity.eye_distance, EYES
        rx, ry = 7.2 * size, 5.0 * size
        _draw_brow(face, identity, side, y - identity.brow_height - raised, max(0.0, -raised))
        edge = y - ry * (1 - 2.1 * lids)
        face.ellipse(dark, x, y - 0.7, rx + 0.7, ry + 0.5)
        box = face.box(x - rx - 1, y - ry - 1, x + rx + 1, y + ry + 1)
        white = face.cover(box, x, y, rx, ry)
        face.lay(box, white, (248, 248, 246))
        seen = x + now["gaze"], y + now["gaze_down"]
        face.lay(box, white * face.cover(box, *seen, iris, iris), IRIS[identity.iris])
        face.lay(box, white * face.cover(box, *seen, pupil, pupil), (26, 24, 26))
        if lids > 0:
            eye = face.cover(box, x, y - 0.7, rx + 0.7, ry + 0.5)
            face.lay(box, eye * np.clip(np.float32(edge) - face.y[box], 0, 1), lid)
            lashes = np.abs(face.y[box] - np.float32(min(edge, y + 0.5 * ry)))
            face.lay(box, eye * np.clip(1.5 - lashes, 0, 1), dark)


def _draw_brow(face: Canvas, identity: Identity, side: int, y: float, frown: float) -> None:
    """The brow of a side (-1 or 1) whose middle is at y; its inner end is lower by the frown."""
    x = side * identity.eye_distance
    hair, thickness = _shaded(HAIR[identity.hair], 0.75), 1.6
    if identity.texture is not None:
        # White brows on pale skin, or brown ones on brown skin, would not be seen to move.
        hair, thickness = _darker(_shaded(hair, 0.9), _shaded(identity.skin, 0.5)), 1.9
    face.ellipse(hair, x - side * 3, y + identity.brow_tilt + 0.4 * frown, 4.5, thickness)
    face.ellipse(hair, x + side * 2, y, 5.5, thickness)


def _draw_nose(face: Canvas, identity: Identity) -> None:
    tip = identity.nose_length - 2
    face.ellipse(_shaded(identity.skin, 0.84), 0, tip, 5.0, 3.2)
    face.ellipse(_shaded(identity.skin, 1.03), 0, tip - 2.2, 4.6, 3.4)
    if identity.texture is not None:
        for side in (-1, 1):
            face.ellipse(_shaded(identity.skin, 0.6), side * 2.2, tip + 1.4, 1.3, 0.9)


def _draw_mouth(face: Canvas, identity: Identity, opening: float, half_width: float, smile: float) -> None:
    up, down = UPWARD * opening, (1 - UPWARD) * opening
    thickness, y = identity.lip_thickness, MOUTH + identity.mouth_drop
    bend = smile / half_width**2
    lips = half_width, up + 0.85 * thickness, down + thickness
    for colour, shape in ((LIP, lips), (INSIDE, (half_width - CORNER, up + 0.05, down + 0.05))):
        box = face.box(-shape[0], y - shape[1] - abs(smile), shape[0], y + shape[2] + abs(smile))
        cover = face.cover(box, 0, y, *shape, bend)
        if identity.texture is not None:
            cover = np.minimum(cover, face.cover(box, 0, y, *lips, bend))  # nearly closed, it sticks out of the lips
        face.lay(box, cover, colour)


def _draw_hair(head: Canvas, face: Canvas, identity: Identity) -> None:
    """Hair in front: a cap around a window in which the face shows; long hair goes on beside the cheeks."""
    colour = _shaded(HAIR[identity.hair], identity.shade[0])
    width = identity.face_width
    low = 34.0 if identity.long_hair else -2.0
    box = head.box(-width - 8, -54, width + 8, low)
    cap = head.cover(box, 0, -4, width + 6, 47, 40)
    shape = width - 3, 28 - identity.fringe, 60
    window = face.cover(box, identity.parting, 4, *shape)
    cap = cap * np.clip(np.float32(low) - head.y[box], 0, 1)
    if identity.texture is not None:
        within = face.cover(box, identity.parting, 4, *(side - SHADOW for side in shape))
        head.lay(box, cap * (window - within), _shaded(identity.skin, EDGE))
    light = _light(identity, hair_light, width + 6)
    head.lay(box, cap * (1 - window), head.lit(box, colour, light))
