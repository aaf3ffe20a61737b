"""The flags of `--task distill`: their help, and which of them go together."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ..model.sampling import SOLVERS
from .distill_settings import DISTILL_PRESETS, DistillSettings

TASK = "distill"
TRAJECTORIES = "distill:trajectories"
"""The task that writes what --trajectories reads."""


def distills(args: argparse.Namespace) -> bool:
    """Whether the task is one of distillation."""
    return args.task in (TASK, TRAJECTORIES)


def numbers(text: str) -> tuple[float, ...]:
    """ "20,980" -> (20.0, 980.0); "" -> ()."""
    return tuple(float(number) for number in text.split(",") if number)


def add_distill_flags(group: Any) -> None:
    """All of them; see docs/distillation.md."""
    add, default = group.add_argument, DistillSettings
    add(
        "--distill_preset",
        choices=list(DISTILL_PRESETS),
        default="omniavatar",
        help="Recipe: values for these flags and for --learning_rate, --weight_decay, --max_grad_norm, --lora_rank and "
        "--lora_alpha, which other flags override.",
    )
    add("--student_steps", type=int, default=default.student_steps, help="Denoising steps of the student.")
    add(
        "--student_timesteps",
        type=numbers,
        default=default.student_timesteps,
        help="Timesteps of these steps before the shift, from 1000 down, comma-separated; they set --student_steps "
        "too. (default: equal distances)",
    )
    add(
        "--student_shift",
        type=float,
        default=default.student_shift,
        help="Shift of the student's timesteps; 1 leaves them as they are.",
    )
    add(
        "--student_solver",
        choices=SOLVERS,
        default=default.student_solver,
        help="Between the student's steps, in training and generating: renoise adds fresh noise to the clean video "
        "that a step predicts, euler follows the flow.",
    )
    add(
        "--critic_updates",
        type=int,
        default=default.critic_updates,
        help="Optimizer steps of the critic before each of the student; --max_steps counts both.",
    )
    add(
        "--critic_learning_rate",
        type=float,
        default=default.critic_learning_rate,
        help="Learning rate of the critic; the student's is --learning_rate.",
    )
    add(
        "--adam_betas",
        type=numbers,
        default=default.adam_betas,
        help="Decay of AdamW's two moments, of student and critic. (default: 0,0.999)",
    )
    add(
        "--teacher_cfg",
        type=float,
        default=default.teacher_cfg,
        help="Guidance scale c of the teacher, n + c (p - n); 1 for none, with one pass less in the student's step. "
        "(default: that of its checkpoint, 4.5 of the released ones)",
    )
    add(
        "--teacher_cfg_mode",
        choices=["joint", "text"],
        default=default.teacher_cfg_mode,
        help="What the teacher's negative pass n has: joint, the negative prompt and no sound; text, the negative "
        "prompt and the sound.",
    )
    add(
        "--teacher_cfg_range",
        type=numbers,
        default=default.teacher_cfg_range,
        metavar="LOW,HIGH",
        help="Timesteps, 0 to 1000, in which the teacher is guided. (default: 0,1000)",
    )
    add(
        "--teacher_negative_prompt",
        help="Negative prompt of the teacher. (default: that of its checkpoint; caches hold OmniAvatar's and the empty "
        "one)",
    )
    add(
        "--score_shift",
        type=float,
        default=default.score_shift,
        help="Shift of the timesteps at which critic and teacher judge the student.",
    )
    add(
        "--score_range",
        type=numbers,
        default=default.score_range,
        metavar="LOW,HIGH",
        help="Timesteps, 0 to 1000, that these are clamped to. (default: 20,980)",
    )
    add(
        "--sync_reward",
        type=float,
        metavar="BETA",
        help="Multiply the student's loss of each sample by exp(BETA c), c from 0 to 1 how well the lips that it made "
        "follow the sound, by StableSyncNet (--syncnet_path); needs the VAE. (default: no)",
    )
    add(
        "--trajectories",
        metavar="FOLDER",
        help="Warm-up: instead of distilling, let the student learn these trajectories of the teacher, which "
        "`omniavatar precompute --trajectories` wrote. (default: distil)",
    )
    add(
        "--trajectory_steps",
        type=int,
        help="Denoising steps of the teacher in `precompute --trajectories`. (default: those of its checkpoint)",
    )
    add(
        "--student_start",
        metavar="FOLDER",
        help="Checkpoint step-N of an earlier distillation, or warm-up, whose student this one starts as. (default: "
        "the teacher without guidance)",
    )


NAMES = tuple(field.name for field in dataclasses.fields(DistillSettings))
"""The flags that are fields of `DistillSettings`."""
SHARED = ("ema_decay",)
"""Those of them that other tasks have too."""


def distill_settings(args: argparse.Namespace) -> DistillSettings:
    """What the flags say; ValueError if a value is out of its range."""
    return DistillSettings(**{name: getattr(args, name) for name in NAMES})


OTHERS = ("distill_preset", "sync_reward", "trajectories", "trajectory_steps", "student_start")

INSTEAD = {
    "lora_kind": "student and critic are plain LoRAs",
    "lora_rank_pattern": "student and critic have one rank",
    "log_noise_levels": "its losses are of several noise levels",
    "log_samples": "its losses are of several noise levels",
    "optimizer": "its recipes are of AdamW",
    "lr_audio": "the audio modules are the teacher's",
    "trainable_models": "student and critic are LoRAs",
    "use_sync_loss": "the student learns from its teacher alone",
    "use_lpips_loss": "the student learns from its teacher alone",
    "use_trepa_loss": "the student learns from its teacher alone",
    "text_drop_prob": "nothing is dropped",
    "audio_drop_prob": "nothing is dropped",
    "prefix_drop_prob": "nothing is dropped",
    "prefix_errors": "its rollouts begin with clean frames",
    "validation_loss_data": "the student has no flow-matching loss; use --validation_data",
    "validation_num_inference_steps": "validation videos have --student_steps",
    "min_timestep_boundary": "use --score_range",
    "max_timestep_boundary": "use --score_range",
    "timestep_sampling": "use --score_shift",
    "loss_weighting": "its losses have no weight by noise level",
    "enable_model_cpu_offload": "use --stream_weights",
}
"""Flags that have no meaning in distillation -> why, or what to do instead."""


def distill_faults(args: argparse.Namespace, defaults: Mapping[str, Any]) -> Iterator[str]:
    """Of flags that do not go together; `defaults` are those of the parser."""
    given = [name for name, value in vars(args).items() if value != defaults.get(name, value)]
    if not distills(args):
        flags = [f"--{name}" for name in given if name in (*NAMES, *OTHERS) and name not in SHARED]
        if flags:
            yield f"{', '.join(flags)} needs --task {TASK}"
        return
    yield from (f"--{name} does not go with --task {TASK}: {INSTEAD[name]}" for name in given if name in INSTEAD)
    if args.omniavatar_checkpoint is None:
        yield f"--task {TASK} needs a teacher: --omniavatar_checkpoint"
    if args.sync_reward is not None:
        if args.sync_reward <= 0:
            yield f"--sync_reward is {args.sync_reward:g}, wanted more than 0"
        if args.syncnet_path is None:
            yield "--sync_reward needs --syncnet_path"
        if args.trajectories is not None or args.task == TRAJECTORIES:
            yield "--sync_reward does not go with trajectories: their frames are the teacher's"
    if args.trajectory_steps is not None and (args.task != TRAJECTORIES or args.trajectory_steps < 1):
        yield "--trajectory_steps is a number from 1 for `precompute --trajectories`"
    if args.task == TRAJECTORIES:
        wrong = [name for name in given if name in ("trajectories", "student_start")]
        yield from (f"--{name} does not go with --task {TRAJECTORIES}, which asks the teacher" for name in wrong)
    try:
        distill_settings(args)
    except ValueError as error:
        yield str(error).rstrip(".")
