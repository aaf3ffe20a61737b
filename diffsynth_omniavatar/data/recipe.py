"""The random choices in training, and the limits on the length of a sample."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ..media.timeline import MAX_TOKENS, chunk_length


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The random choices in training, and the limits on the length of a sample.

    Source of the defaults: the authors' answers in the tracker of https://github.com/Omni-Avatar/OmniAvatar.

    Raises:
        ValueError: a value is out of its range.
    """

    prefix_frames: tuple[int, ...] = (1, 5, 9, 13)
    """Numbers of known frames at the start, drawn with equal chance among those shorter than the sample; empty for
    none."""
    text_drop_prob: float = 0.1
    """Part of the clips that get the empty prompt."""
    audio_drop_prob: float = 0.1
    """Part of the clips that get the features of silence."""
    prefix_drop_prob: float = 0.1
    """Part of the clips whose known latents are replaced by noise."""
    max_tokens: int = MAX_TOKENS
    """Most tokens of a sample: frames * height * width / 1024."""
    num_frames: int | None = None
    """Most video frames of a sample, 4n+1; None for no limit but max_tokens."""
    min_frames: int | None = None
    """Fewest video frames of a sample, 4n+1; None for one latent frame more than the longest prefix."""
    curriculum_frames: tuple[tuple[int, int], ...] = ()
    """Optimizer steps, from 0, and most video frames of a sample, 4n+1, from each on; empty for no further limit."""
    dynamic_length: bool = True
    """Draw the length of every sample; else each is as long as its clip and the limits allow."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_frames", tuple(self.prefix_frames))
        object.__setattr__(self, "curriculum_frames", tuple(tuple(part) for part in self.curriculum_frames))
        faults = [
            f"{name} is {getattr(self, name)}, wanted 0 to 1"
            for name in ("text_drop_prob", "audio_drop_prob", "prefix_drop_prob")
            if not 0 <= getattr(self, name) <= 1
        ]
        lengths = {
            "prefix_frames": self.prefix_frames,
            "num_frames": (self.num_frames,),
            "min_frames": (self.min_frames,),
            "curriculum_frames": tuple(frames for _, frames in self.curriculum_frames),
        }
        for name, values in lengths.items():
            wrong = [value for value in values if value is not None and (value < 1 or value % 4 != 1)]
            faults += [f"{name} has {value}, wanted 4n+1 such as 1, 5, 9, 13" for value in wrong]
        if self.shortest < 5:
            faults.append(f"min_frames is {self.min_frames}, wanted 5 or more")
        steps = [step for step, _ in self.curriculum_frames]
        if self.curriculum_frames and (steps[0] != 0 or steps != sorted({*steps})):
            faults.append(f"curriculum_frames has the steps {steps}, wanted 0 first and each above the one before")
        faults += [
            f"curriculum_frames has {frames} frames, below the shortest sample, {self.shortest}; lower min_frames"
            for _, frames in self.curriculum_frames
            if frames < self.shortest
        ]
        if self.num_frames is not None and self.num_frames < self.shortest:
            faults.append(
                f"num_frames {self.num_frames} is below the shortest sample, {self.shortest}; lower min_frames"
            )
        if faults:
            raise ValueError(f"Recipe: {'; '.join(faults)}.")

    @property
    def shortest(self) -> int:
        """Fewest video frames of a sample."""
        return self.min_frames or max(self.prefix_frames, default=1) + 4

    def longest(self, frames: int, height: int, width: int) -> int:
        """Most frames, 4n+1, of a sample from a clip of `frames` frames.

        Raises:
            ValueError: that is less than `shortest`.
        """
        allowed = min(self.num_frames or frames, chunk_length(height, width, self.max_tokens))
        longest = (min(frames, allowed) - 1) // 4 * 4 + 1
        if longest < self.shortest:
            raise ValueError(
                f"too short: {frames} frames at 25 per second, of which {allowed} may be used at {height}x{width}; "
                f"wanted {self.shortest}: lower min_frames, or the longest of prefix_frames"
            )
        return longest

    def longest_at(self, step: int, longest: int) -> int:
        """Most frames at an optimizer step, where `longest` are allowed without the curriculum."""
        begun = [frames for start, frames in self.curriculum_frames if start <= step]
        return min(longest, begun[-1]) if begun else longest

    def draw_length(self, longest: int) -> int:
        """A length between `shortest` and `longest`, each 4n+1 with equal chance."""
        lengths = range(self.shortest, longest + 1, 4)
        drawn = lengths[draw_below(len(lengths))]
        return drawn if self.dynamic_length else longest

    def draw_prefix(self, num_frames: int) -> int:
        """A prefix for a sample of `num_frames` frames; 0 if there is none to choose."""
        prefixes = [frames for frames in self.prefix_frames if frames < num_frames]
        return prefixes[draw_below(len(prefixes))] if prefixes else 0


def draw_below(count: int) -> int:
    """A whole number below `count` from exactly one draw of the global generator, so that other draws stay in place."""
    return int(random.random() * count)
