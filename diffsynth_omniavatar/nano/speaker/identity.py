"""Who speaks, for the eye."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from .splits import Split, belongs, draw_unit
from .texture import Texture, draw_texture

Colour = tuple[float, float, float]

HAIR = {
    "black": (44, 38, 38),
    "brown": (104, 70, 46),
    "blond": (222, 188, 118),
    "ginger": (194, 108, 50),
    "grey": (160, 162, 164),
    "white": (232, 230, 226),
}
CLOTHES = {
    "blue": (62, 112, 184),
    "green": (72, 142, 92),
    "yellow": (228, 194, 76),
    "orange": (226, 134, 56),
    "teal": (48, 138, 140),
    "white": (238, 238, 234),
    "black": (48, 50, 54),
}
BACKGROUNDS = {
    "light blue": (172, 204, 228),
    "beige": (226, 212, 188),
    "grey": (134, 138, 142),
    "green": (158, 192, 160),
    "yellow": (240, 226, 158),
    "dark blue": (62, 86, 118),
}
SKIN = np.array([(252, 222, 196), (236, 190, 154), (190, 136, 98), (124, 84, 58)], float)
IRIS = {"brown": (92, 62, 40), "blue": (80, 130, 180), "green": (90, 132, 92), "grey": (110, 120, 128)}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who speaks, for the eye. Colours are RGB of 0 to 255, lengths pixels."""

    hair: str
    """Name in `HAIR`."""
    long_hair: bool
    clothes: str
    """Name in `CLOTHES`."""
    background: str
    """Name in `BACKGROUNDS`."""
    iris: str
    """Name in `IRIS`."""
    skin: Colour
    shade: tuple[float, float, float]
    """Brightness of hair, clothes and background, about 1."""
    face_width: float
    """Half the width of the face."""
    jaw_width: float
    """Half the width of the jaw."""
    eye_distance: float
    """Of an eye from the middle of the face."""
    eye_size: float
    brow_height: float
    """Of the brows above the eyes."""
    brow_tilt: float
    """How much lower the inner ends of the brows are."""
    nose_length: float
    lip_thickness: float
    parting: float
    """How far right of the middle the hair lets the forehead show."""
    fringe: float
    """How far down the hair comes on the forehead."""
    mouth_drop: float = 0.0
    """How far mouth and chin are below their usual places; `draw_identity` draws nobody with any."""
    texture: Texture | None = None
    """Of hair, clothes and wall; None where they are plain."""

    @property
    def look(self) -> tuple[str, bool, str, str]:
        """The combination that belongs to one of the splits."""
        return self.hair, self.long_hair, self.clothes, self.background

    def describe(self, sways: bool) -> str:
        """The prompt."""
        length = "long" if self.long_hair else "short"
        movement = "sways from side to side" if sways else "keeps the head still"
        return (
            f"A person with {length} {self.hair} hair in {self.clothes} clothes, in front of a {self.background} wall, "
            f"talks and {movement}."
        )


def draw_identity(rng: np.random.Generator, *, split: Split) -> Identity:
    """A face whose combination of hair, clothes and background, and whose skin tone, belong to the split."""
    looks = [
        look
        for look in itertools.product(HAIR, (False, True), CLOTHES, BACKGROUNDS)
        if belongs(look, split) and look[0] != look[3]
    ]
    hair, long_hair, clothes, background = looks[rng.integers(len(looks))]
    tone = draw_unit(rng, split) * (len(SKIN) - 1)
    skin = [float(np.interp(tone, range(len(SKIN)), channel)) for channel in SKIN.T]
    hair_shade, clothes_shade, background_shade = rng.uniform(0.9, 1.06, 3)
    return Identity(
        hair=hair,
        long_hair=long_hair,
        clothes=clothes,
        background=background,
        iris=list(IRIS)[rng.integers(len(IRIS))],
        skin=(skin[0], skin[1], skin[2]),
        shade=(float(hair_shade), float(clothes_shade), float(background_shade)),
        face_width=rng.uniform(35.0, 39.0),
        jaw_width=rng.uniform(27.0, 33.0),
        eye_distance=rng.uniform(14.5, 17.0),
        eye_size=rng.uniform(0.9, 1.15),
        brow_height=rng.uniform(9.0, 11.5),
        brow_tilt=rng.uniform(-1.5, 1.5),
        nose_length=rng.uniform(7.5, 11.0),
        lip_thickness=rng.uniform(3.4, 4.6),
        parting=rng.uniform(-3.0, 3.0),
        fringe=rng.uniform(-3.0, 2.0),
    )


def detailed(identity: Identity, rng: np.random.Generator) -> Identity:
    """The same person with textures, larger eyes below a higher forehead, and brows with room to move."""
    return replace(
        identity,
        texture=draw_texture(rng),
        eye_distance=rng.uniform(15.8, 17.4),
        eye_size=rng.uniform(1.3, 1.42),
        brow_height=rng.uniform(11.5, 12.3),
        brow_tilt=rng.uniform(-1.2, 0.0),
        parting=rng.uniform(-2.0, 2.0),
        fringe=rng.uniform(-8.0, -6.0),
    )
