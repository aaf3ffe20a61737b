"""What `prepare` makes: plain values, checked."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...media.images import Size
from ...media.timeline import FRAME_RATE
from ...model.config import IMAGE_SIZES_720, size_fault
from ..figure_rules import Mode, Rule
from .clip_rules import clip_rules

ALIGNED_SIZE = (512, 512)
"""Height and width of clips for V2V: LatentSync's."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What the clips are like.

    Raises:
        ValueError: a value does not fit; the message lists every fault.
    """

    mode: Mode
    """"i2v": crops of the trained shapes with the head inside; "v2v": crops aligned to the face."""
    sizes: tuple[Size, ...] = ()
    """Height and width of the clips; each clip for I2V has the one that is nearest in shape to its source. Empty for
    OmniAvatar's for I2V and 512x512 for V2V."""
    max_seconds: float = 20.0
    """Longest clip; longer speech is cut at pauses."""
    bounds: Mapping[str, float] = field(default_factory=dict)
    """Bounds of the rules, by their flags without dashes: {"min_face_size": 200}."""
    directories: bool = False
    """Make each clip a directory of `sub_clip.mp4`, `audio.wav` and `prompt.txt`, as `data.prepared` reads them."""
    crf: int = 15
    """Quality of the clips' H.264, 0 (lossless) to 51."""

    def __post_init__(self) -> None:
        numbers = {"max_seconds": self.max_seconds, "min_seconds": self.bounds.get("min_seconds", 0.0)}
        wrong = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
        wrong += [f"{name} is nan" for name, value in self.bounds.items() if math.isnan(value) and name not in numbers]
        if wrong:
            raise ValueError(f"PrepareSettings: {'; '.join(wrong)}; wanted a number.")
        default = (ALIGNED_SIZE,) if self.mode == "v2v" else IMAGE_SIZES_720
        object.__setattr__(self, "sizes", tuple((height, width) for height, width in self.sizes or default))
        faults = [fault for fault in (size_fault(*size) for size in self.sizes) if fault is not None]
        if self.mode == "v2v" and len(self.sizes) > 1:
            faults.append(f"{len(self.sizes)} sizes; V2V has one")
        if self.shortest < 1 or self.longest < 2 * self.shortest:
            faults.append(
                f"max_seconds is {self.max_seconds:g} and min_seconds {self.shortest / FRAME_RATE:g}; the longest clip "
                "has to be twice as long as the shortest, so that long speech can be cut"
            )
        if not 0 <= self.crf <= 51:
            faults.append(f"crf is {self.crf}, wanted 0 to 51")
        if faults:
            raise ValueError(f"PrepareSettings: {'; '.join(faults)}.")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What a clip has to keep."""
        return clip_rules(self.mode, self.bounds)

    @property
    def shortest(self) -> int:
        """Fewest frames of a clip."""
        least = next(rule.least for rule in self.rules if rule.figure == "seconds")
        return round((least or 0) * FRAME_RATE)

    @property
    def longest(self) -> int:
        """Most frames of a clip."""
        return round(self.max_seconds * FRAME_RATE)

    def to_json(self) -> str:
        """One line that is equal for equal settings."""
        return json.dumps({**dataclasses.asdict(self), "bounds": dict(self.bounds)}, sort_keys=True)
