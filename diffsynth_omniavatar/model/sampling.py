"""How a model makes videos: steps, timesteps, guidance and solver, and the presets of all these for few steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

TRAIN_TIMESTEPS = 1000
"""Timesteps t of pure noise; the noise level is sigma = t / 1000."""
MOST_STEPS = 1000

Solver = Literal["euler", "renoise"]
SOLVERS: tuple[str, ...] = get_args(Solver)

NEGATIVE_PROMPT = (
    "Vivid color tones, background/camera moving quickly, screen switching, subtitles and special effects, mutation, "
    "overexposed, static, blurred details, subtitles, style, work, painting, image, still, overall grayish, worst "
    "quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, poorly drawn "
    "face, deformed, disfigured, malformed limbs, fingers merging, motionless image, chaotic background, three legs, "
    "crowded background with many people, walking backward"
)
"""Upstream's default negative prompt."""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_Sampling = TypeVar("_Sampling", bound="Sampling")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A model's default settings for generating videos. Where it has none, they are upstream's.

    Raises:
        ValueError: a value is out of its range, or steps and timesteps differ in number.
    """

    steps: int = 50
    """Denoising steps per chunk."""
    timesteps: tuple[float, ...] = ()
    """Timesteps of the steps, from at most 1000 down, before `sigma_shift` acts; a text like "1000,750,500,250" does
    too. Empty for equal distances, 1000 (1 - k / steps)."""
    sigma_shift: float = 5.0
    """Shift f of the noise schedule: sigma becomes f sigma / (1 + (f - 1) sigma); 1 leaves it as it is."""
    solver: Solver = "euler"
    """"euler" follows the flow; "renoise" takes the clean video x0 that each step predicts, and adds fresh noise."""
    cfg_scale: float = 4.5
    """Text and audio guidance scale; 1 turns guidance off, with a single pass per step."""
    audio_cfg_scale: float | None = None
    """Separate audio guidance scale, with one more pass per step; None for `cfg_scale`."""
    apg_eta: float = 1.0
    """Adaptive projected guidance against burnt colours: how much counts of the part of guidance that is parallel to
    the predicted video, 0 to 1; 1 is plain guidance. See `guidance.projected`."""
    guidance_rescale: float = 0.0
    """Against burnt colours, 0 to 1: how far the deviation of the guided prediction goes back to that without
    guidance; see `guidance.rescaled`."""
    guidance_from: float = 0.0
    """Part of the steps before which there is no guidance, 0 to 1."""
    guidance_to: float = 1.0
    """Part of the steps from which on there is no guidance, 0 to 1."""
    match_colours: bool = False
    """Match the colours of each chunk to the portrait or the source video."""
    negative_prompt: str = NEGATIVE_PROMPT

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}, wanted a whole number of at least 1.")
        object.__setattr__(self, "timesteps", _timesteps(self.timesteps))
        if len(self.timesteps) not in (0, self.steps):
            raise ValueError(
                f"timesteps has {len(self.timesteps)} values for {self.steps} steps; give as many, or none for equal "
                "distances."
            )
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}, wanted {' or '.join(SOLVERS)}.")
        names = ["cfg_scale", "sigma_shift", "apg_eta", "guidance_rescale", "guidance_from", "guidance_to"]
        if self.audio_cfg_scale is not None:
            names.append("audio_cfg_scale")
        for name in names:
            if not is_number(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}, wanted a number.")
        if self.sigma_shift <= 0:
            raise ValueError(f"sigma_shift is {self.sigma_shift:g}, wanted more than 0.")
        for name in ("apg_eta", "guidance_rescale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}, wanted 0 to 1.")
        if not 0 <= self.guidance_from < self.guidance_to <= 1:
            raise ValueError(
                f"guidance_from is {self.guidance_from:g} and guidance_to {self.guidance_to:g}, wanted 0 to 1, the "
                "first smaller."
            )
        if not isinstance(self.match_colours, bool):
            raise ValueError(f"match_colours is {self.match_colours!r}, wanted true or false.")
        if not isinstance(self.negative_prompt, str):
            raise ValueError(f"negative_prompt is {self.negative_prompt!r}, wanted a text.")

    @property
    def sigmas(self) -> list[float]:
        """The noise level of each step, shifted."""
        levels = [t / TRAIN_TIMESTEPS for t in self.timesteps] or [1 - k / self.steps for k in range(self.steps)]
        return [self.sigma_shift * level / (1 + (self.sigma_shift - 1) * level) for level in levels]

    @property
    def guided_steps(self) -> range:
        """The numbers of the steps that have guidance, from 0: k with from <= k / steps < to."""
        inside = [k for k in range(self.steps) if self.guidance_from <= k / self.steps < self.guidance_to]
        return range(inside[0], inside[-1] + 1) if inside else range(0)

    @property
    def audio_scale(self) -> float:
        """The audio guidance scale, whether or not it is a separate one."""
        return self.cfg_scale if self.audio_cfg_scale is None else self.audio_cfg_scale

    @property
    def passes(self) -> int:
        """Passes of the denoiser in each guided step, 1 to 3."""
        return 1 + (self.audio_scale != self.cfg_scale) + (self.cfg_scale != 1)

    @property
    def shared_passes(self) -> int:
        """How many passes several processes may share out: 1 where not all steps have the same."""
        return self.passes if self.guided_steps == range(self.steps) else 1

    @property
    def has_hosts_guidance(self) -> bool:
        """Whether the passes of DiffSynth's own loop are enough: one, or two in every step."""
        if self.audio_scale != self.cfg_scale:
            return False
        unchanged = self.apg_eta == 1 and self.guidance_rescale == 0
        return self.cfg_scale == 1 or (unchanged and self.guided_steps == range(self.steps))

    def with_given(self: _Sampling, *, sampler: str | None = None, **given: Any) -> _Sampling:
        """These settings with those of the preset `sampler`, and over them those of `given` that are not None.

        Timesteps alone set the number of steps too.

        Raises:
            ValueError: there is no such preset, or a value is out of its range.
        """
        if sampler is not None and sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}, wanted one of {', '.join(SAMPLERS)}.")
        given = {name: value for name, value in given.items() if value is not None}
        if "timesteps" in given:
            given["timesteps"] = _timesteps(given["timesteps"])
            given.setdefault("steps", len(given["timesteps"]) or self.steps)
        return replace(self, **{**({} if sampler is None else SAMPLERS[sampler].settings), **given})


def _timesteps(value: Any) -> tuple[float, ...]:
    """Timesteps out of a list, or a text with commas."""
    wanted = f"wanted numbers from {TRAIN_TIMESTEPS} down, like 1000,750,500,250"
    parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    try:
        numbers = tuple(float(part) if isinstance(part, str) else part for part in parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"timesteps is {value!r}, {wanted}.") from error
    falling = all(first > second for first, second in zip((TRAIN_TIMESTEPS + 1, *numbers), (*numbers, 0), strict=True))
    if len(numbers) > MOST_STEPS or not all(is_number(number) and number <= TRAIN_TIMESTEPS for number in numbers):
        raise ValueError(f"timesteps is {value!r}, {wanted}.")
    if not falling:
        raise ValueError(f"timesteps is {value!r}, {wanted}, each smaller than the one before and above 0.")
    return tuple(float(number) for number in numbers)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A preset of everything in `Sampling` but colour matching and the negative prompt."""

    settings: Mapping[str, Any]
    source: str
    """For which weights, and where the numbers come from."""


def _preset(source: str, **settings: Any) -> Sampler:
    unchanged = ("match_colours", "negative_prompt")
    names = [name for name in Sampling.__dataclass_fields__ if name not in unchanged]
    made = Sampling(**{"cfg_scale": 1.0, **settings})
    return Sampler(settings={name: getattr(made, name) for name in names}, source=source)


SAMPLERS: dict[str, Sampler] = {
    "default": _preset("OmniAvatar's own values, for weights without a LoRA for few steps", cfg_scale=4.5),
    "lightx2v4": _preset(
        "LightX2V's step-distilled Wan 2.1 LoRAs: its list 1000,750,500,250 in a table of shift 5 is the grid of "
        "4 steps, 1000, 937.5, 833.3, 625",
        steps=4,
    ),
    "lightx2v8": _preset("the same LoRAs on the grid of 8 steps of shift 5; users report better lips", steps=8),
    "causvid": _preset(
        "CausVid's 14B LoRA: the nine timesteps, unshifted, and Euler steps of ComfyUI-WanVideoWrapper",
        steps=9,
        timesteps=(999, 934, 862, 756, 603, 410, 250, 140, 74),
        sigma_shift=1.0,
    ),
    "fusionx": _preset("what FusionX is used with: 8 to 10 steps of shift 2", steps=8, sigma_shift=2.0),
    "fastwan": _preset(
        "FastVideo's FastWan: three timesteps, unshifted, and fresh noise between them, as it was distilled",
        steps=3,
        timesteps=(1000, 757, 522),
        sigma_shift=1.0,
        solver="renoise",
    ),
}
"""Presets by their name."""
