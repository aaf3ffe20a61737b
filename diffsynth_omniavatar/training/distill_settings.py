"""How a few-step student is distilled: plain values, no torch; and the recipes of others as presets of flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..model.sampling import TRAIN_TIMESTEPS, Sampling, Solver, is_number

Role = Literal["critic", "student"]


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How a few-step student is distilled.

    Raises:
        ValueError: a value is out of its range; the message lists every fault, by its flag.
    """

    student_steps: int = 4
    """Denoising steps of the student."""
    student_timesteps: tuple[float, ...] = ()
    """Their timesteps before the shift; see `Sampling.timesteps`. Empty for equal distances."""
    student_shift: float = 5.0
    """Shift of the student's timesteps."""
    student_solver: Solver = "renoise"
    """Between the student's steps, when it trains and when it generates."""
    critic_updates: int = 5
    """Optimizer steps of the critic before each of the student."""
    critic_learning_rate: float = 1e-5
    adam_betas: tuple[float, float] = (0.0, 0.999)
    """Of AdamW's moments, of both."""
    teacher_cfg: float | None = None
    """Guidance scale of the teacher, 1 for none, with a single pass; None for that of its checkpoint."""
    teacher_cfg_mode: Literal["joint", "text"] = "joint"
    """What the teacher's negative pass lacks: text and sound, or the text alone."""
    teacher_cfg_range: tuple[float, float] = (0.0, 1000.0)
    """Timesteps, lowest and highest, in which the teacher is guided."""
    teacher_negative_prompt: str | None = None
    """None for that of the teacher's checkpoint."""
    score_shift: float = 5.0
    """Shift of the timesteps at which critic and teacher judge, which are drawn uniformly before."""
    score_range: tuple[float, float] = (20.0, 980.0)
    """Timesteps, lowest and highest, that these are clamped to."""
    ema_decay: float = 0.99
    """Of the average of the student's weights, which is what is exported; 0 for the weights themselves."""

    def __post_init__(self) -> None:
        faults = [fault for fault in map(self._range_fault, ("teacher_cfg_range", "score_range")) if fault]
        if self.critic_updates < 1:
            faults.append(f"--critic_updates is {self.critic_updates}, wanted at least 1")
        for name in ("critic_learning_rate", "teacher_cfg", "score_shift"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                faults.append(f"--{name} is {value}, wanted more than 0")
        if not 0 <= self.ema_decay < 1:
            faults.append(f"--ema_decay is {self.ema_decay}, wanted 0 up to, but not, 1")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            faults.append(f"--adam_betas is {_text(self.adam_betas)}, wanted two numbers from 0 up to, but not, 1")
        try:
            self.sampling(Sampling())
        except ValueError as error:
            faults.append(f"--student_steps, --student_timesteps, --student_shift: {str(error).rstrip('.')}")
        if faults:
            raise ValueError(f"{'; '.join(faults)}.")

    def _range_fault(self, name: str) -> str | None:
        value = getattr(self, name)
        if len(value) == 2 and 0 <= value[0] < value[1] <= TRAIN_TIMESTEPS:
            return None
        return f"--{name} is {_text(value)}, wanted two timesteps from 0 to {TRAIN_TIMESTEPS}, the lower one first"

    def role(self, step: int) -> Role:
        """Whose the optimizer step number `step`, from 0, is: of each cycle the last is the student's."""
        return "student" if step % (self.critic_updates + 1) == self.critic_updates else "critic"

    def student_updates(self, steps: int) -> int:
        """How many of the first `steps` optimizer steps are the student's."""
        return steps // (self.critic_updates + 1)

    def sampling(self, teacher: Sampling) -> Sampling:
        """How the student generates, with what it shares with the teacher; without any guidance."""
        plain = Sampling(cfg_scale=1.0, match_colours=teacher.match_colours, negative_prompt=teacher.negative_prompt)
        return replace(
            plain,
            steps=len(self.student_timesteps) or self.student_steps,
            timesteps=self.student_timesteps,
            sigma_shift=self.student_shift,
            solver=self.student_solver,
        )


def _text(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


_SHARED = {"lora_rank": 64, "weight_decay": 0.01, "max_grad_norm": 10.0, "ema_decay": 0.99}

DISTILL_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "omniavatar": {**_SHARED, "learning_rate": 2e-5},
    "lightx2v": {
        **_SHARED,
        "learning_rate": 1e-4,
        "critic_learning_rate": 2e-5,
        "adam_betas": (0.9, 0.999),
        "weight_decay": 0.001,
        "teacher_cfg": 3.0,
        "teacher_cfg_mode": "text",
    },
    "self_forcing_plus": {
        **_SHARED,
        "learning_rate": 2e-6,
        "critic_learning_rate": 4e-7,
        "teacher_cfg": 8.0,
        "teacher_cfg_mode": "text",
    },
    "videox_fun": {
        **_SHARED,
        "lora_alpha": 32.0,
        "learning_rate": 1e-5,
        "critic_learning_rate": 1e-6,
        "max_grad_norm": 0.05,
        "teacher_cfg": 6.0,
        "teacher_cfg_mode": "text",
    },
    "lip_forcing": {
        **_SHARED,
        "lora_rank": 128,
        "lora_alpha": 64.0,
        "learning_rate": 2e-6,
        "critic_learning_rate": 2e-6,
        "teacher_cfg_range": (556.0, 882.0),
    },
    "livetalk": {
        **_SHARED,
        "learning_rate": 4e-6,
        "critic_learning_rate": 8e-7,
        "teacher_cfg": 7.0,
        "student_timesteps": (1000.0, 936.0, 832.0, 624.0),
        "student_shift": 1.0,
    },
}
"""Recipes as values of flags, by name. Rates of recipes that train all weights are theirs, on an adapter here. Where a
recipe's guidance means p + g (p - n), the scale here is g + 1."""
