"""Distils a few-step student: the frozen network is the teacher; student and critic are two LoRAs on it.

A cycle of optimizer steps is some of the critic, then one of the student (`DistillSettings.role`). Of a sample count
its portrait, text, sound and known frames; of its other frames only their number. `losses.dmd` has the losses;
they cover the frames behind the known ones, with the mouth's weight if there is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.sample import TrainingSample
from ..generation.pipeline import OmniAvatarPipeline
from ..losses import dmd
from ..model.checkpoint import EXTRA_MODULES, Checkpoint, save_safetensors
from ..model.config import CheckpointConfig, LoRAConfig
from ..model.lora import joined_lora, split_lora
from ..model.sampling import TRAIN_TIMESTEPS
from .adapters import Adapters
from .average import WeightAverage
from .distill_settings import DistillSettings, Role
from .loader import stream_seed
from .module import OmniAvatarTrainingModule
from .settings import StepSettings
from .sync_reward import SyncReward

STUDENT: Role = "student"
CRITIC: Role = "critic"
ADAPTERS = (STUDENT, CRITIC)
"""Names of the two LoRAs."""


class DistillationModule(OmniAvatarTrainingModule):
    """The module that DiffSynth's training loop calls with each sample: the loss of the critic, or of the student.

    Args:
        pipe: whose denoiser is the teacher, all of its LoRAs in its weights, with fresh adapters `ADAPTERS` on it.
        config: of the student's LoRA alone, and the teacher's conventions.
        settings: how a step computes.
        distillation: of the whole.
        fused: the checkpoint whose LoRA is in the teacher's weights; None if there is no such LoRA.
        seed: of the exit steps.
    """

    def __init__(
        self,
        pipe: OmniAvatarPipeline,
        config: CheckpointConfig,
        settings: StepSettings,
        distillation: DistillSettings,
        fused: Checkpoint | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(pipe, config, settings)
        self.distillation, self.fused, self.seed = distillation, fused, seed
        self.loss_parts = [CRITIC, STUDENT]
        self.progress: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Optimizer steps done, and samples of this process taken."""
        teacher = config.conventions.sampling
        text = distillation.teacher_negative_prompt
        self.negative_prompt = teacher.negative_prompt if text is None else text
        self.scale = teacher.cfg_scale if distillation.teacher_cfg is None else distillation.teacher_cfg
        self.negative_context: Tensor | None = None
        """Embedding [1, L, D] of the negative prompt; made when it is first needed, unless it is set."""
        self.teacher_sampling, self.sampling = teacher, distillation.sampling(teacher)
        self.reward: SyncReward | None = None
        """What weighs samples in the student's loss."""
        self.has_trajectories = False
        """Whether samples bring trajectories of the teacher, which the student learns by heart: all steps are its."""
        conventions = dataclasses.replace(config.conventions, sampling=self.sampling)
        self.config = dataclasses.replace(config, conventions=conventions)
        pipe.conventions = conventions  # for the videos of validations
        self.adapters = Adapters(pipe.dit)
        pipe.dit.requires_grad_(False)
        self.student, self.critic = (self.adapters.weights(name) for name in ADAPTERS)
        for weight in (*self.student.values(), *self.critic.values()):
            weight.requires_grad_(True)
        self.average = WeightAverage(self.student, distillation.ema_decay) if distillation.ema_decay else None

    @property
    def counted_lora(self) -> LoRAConfig | None:
        """A LoRA with as many weights as train."""
        lora = self.config.lora
        return None if lora is None else dataclasses.replace(lora, rank=2 * lora.rank)

    @property
    def extra_memory(self) -> dict[str, int]:
        return {} if self.average is None else {"student's average": 4 * sum(w.numel() for w in self.student.values())}

    def trainable_modules(self) -> Any:
        """The parameter groups of the host's optimizer, with rates and moments of their own."""
        betas = self.distillation.adam_betas
        return [
            {"params": [*self.student.values()], "betas": betas},
            {"params": [*self.critic.values()], "betas": betas, "lr": self.distillation.critic_learning_rate},
        ]

    def between_steps(self, function: Callable[[], Any]) -> Any:
        """What a function returns with the student's averaged weights."""
        with self.adapters.using(STUDENT), nullcontext() if self.average is None else self.average.applied():
            return function()

    def loss(self, data: TrainingSample, shared: Any, positive: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of the one whose turn it is.

        The LoRA whose loss it is goes on acting: blocks that are computed again in the backward pass need it.
        """
        steps, samples = self.progress()
        role = self.role(steps)
        sample = Conditions(self, shared, positive, self.exit_step(samples))
        if data.trajectory is not None:
            loss, parts = sample.regression_loss(data.trajectory)
        else:
            loss, parts = sample.student_loss() if role == STUDENT else sample.critic_loss()
        self.adapters.use(role)
        return loss, parts

    def role(self, step: int) -> Role:
        """Whose the optimizer step of this number is, from 0."""
        return STUDENT if self.has_trajectories else self.distillation.role(step)

    def start_from(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Let the student start with the LoRA of an earlier one.

        Raises:
            ValueError: its layers or shapes are others.
        """
        shapes = [{name: tuple(value.shape) for name, value in of.items()} for of in (weights, self.student)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"--student_start {source} has other layers or another rank than this student's LoRA")
        with torch.no_grad():
            for name, weight in self.student.items():
                weight.copy_(weights[name])
        if self.average is not None:
            self.average = WeightAverage(self.student, self.distillation.ema_decay)

    def exit_step(self, sample: int) -> int:
        """The student's step at which a sample's rollout ends, the same on all processes: they wait for each other."""
        generator = torch.Generator().manual_seed(stream_seed("exit", self.seed, sample))
        return int(torch.randint(self.sampling.steps, (1,), generator=generator))

    def negative(self, context: Tensor) -> Tensor:
        """The embedding of the teacher's negative prompt, as of the batch's texts [B, L, D]."""
        if self.negative_context is None:
            with torch.no_grad(), self.encoders_on_device():
                self.negative_context = self.pipe.encode_prompt(self.negative_prompt)
        return self.negative_context.to(context).expand(len(context), -1, -1)

    def after_step(self, steps: int) -> None:
        """Called after each optimizer step with how many are done."""
        if self.average is not None and self.role(steps - 1) == STUDENT:
            self.average.update(steps if self.has_trajectories else self.distillation.student_updates(steps))

    def extra_state(self) -> dict[str, Tensor]:
        """What a resumed run needs beside the trained weights."""
        return {**self._facts(), **({} if self.average is None else self.average.values)}

    def _facts(self) -> dict[str, Tensor]:
        """What makes a step count mean the same steps, so that a resumed run must share it."""
        levels = torch.tensor(self.sampling.sigmas, dtype=torch.float64)
        cycle = [self.distillation.critic_updates, int(self.has_trajectories), int(self.average is not None)]
        return {"levels": levels, "cycle": torch.tensor(cycle)}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back.

        Raises:
            ValueError: it is of a run with other steps of the student, or another cycle.
        """
        facts = self._facts()
        if any(name not in state or not torch.equal(state[name], value) for name, value in facts.items()):
            raise ValueError(
                "the checkpoint to resume is of a run with another --student_steps, --student_timesteps, "
                "--student_shift, --critic_updates or --trajectories, or an --ema_decay of 0 in one of both; give "
                "the same, or start a new run with --student_start"
            )
        if self.average is not None:
            self.average.load({name: value for name, value in state.items() if name not in facts})

    def trained_tensors(self) -> dict[str, Tensor]:
        """The student's LoRA, its average where there is one, and the teacher's patch embedding and audio modules."""
        low_rank = dict(self.student) if self.average is None else self.average.tensors()
        others = {key: value for key, value in self.pipe.dit.state_dict().items() if key.startswith(EXTRA_MODULES)}
        return {**low_rank, **others}

    def export(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint in OmniAvatar's form, for the weights that the teacher's went on top of.

        The LoRA that is in the teacher's weights and the student's become one. Beside it, in a folder of its own, goes
        the student's alone, for weights that have the teacher's LoRA already.
        """
        low_rank, others = split_lora(tensors)
        lora, config = self.config.lora, self.config
        assert lora is not None
        if self.fused is not None and self.fused.config.lora is not None:
            parts = [(split_lora(self.fused.tensors)[0], self.fused.config.lora), (low_rank, lora)]
            low_rank, lora = joined_lora(parts)
            alone = path.parent / "student" / "lora.safetensors"
            alone.parent.mkdir(exist_ok=True)
            save_safetensors(alone, parts[1][0], config)
        save_safetensors(path, {**low_rank, **others}, dataclasses.replace(config, lora=lora))


class Conditions:
    """What a batch is conditioned on, and the flows that student, critic and teacher predict under it."""

    def __init__(
        self, module: DistillationModule, shared: Mapping[str, Any], positive: Mapping[str, Any], exit_step: int
    ) -> None:
        self.module, self.exit_step = module, exit_step
        inputs = {**shared, **positive}
        latents, self.record = inputs.pop("input_latents"), inputs.pop("omni_record")
        self.target, self.dtype = latents.float(), latents.dtype
        self.start = inputs.pop("noise").float()
        self.inputs = inputs

    def flow(self, x: Tensor, level: Tensor, **other: Any) -> Tensor:
        """The flow, float32, that the network as it is switched predicts of x [B, 16, T, h, w] at levels [B].

        Timesteps are rounded to the model's number format, as where videos are made.
        """
        pipe = self.module.pipe
        timestep = (TRAIN_TIMESTEPS * level).to(self.dtype)
        inputs = {**self.inputs, "latents": x.to(self.dtype), "timestep": timestep, **other}
        return pipe.model_fn(dit=pipe.dit, **inputs).float()

    def generated(self, latents: Tensor) -> Tensor:
        """Those latent frames that the losses cover: behind the known ones."""
        return latents[:, :, self.record.known_frames :]

    def roll_out(self) -> Tensor:
        """The student's x_0; with a gradient if gradients are on."""
        with self.module.adapters.using(STUDENT):
            sampling = self.module.sampling
            return dmd.rollout(self.flow, self.start, sampling.sigmas, self.exit_step, sampling.solver)

    def noisy(self, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The student's x_0 at noise levels drawn for critic and teacher; the levels; the noise."""
        settings = self.module.distillation
        lowest, highest = (timestep / TRAIN_TIMESTEPS for timestep in settings.score_range)
        level = dmd.draw_levels(len(clean), settings.score_shift, lowest, highest).to(clean.device)
        noise = torch.randn_like(clean)
        return dmd.noisy(clean, level, noise), level, noise

    def teacher(self, x: Tensor, level: Tensor) -> Tensor:
        """The teacher's guided flow."""
        settings = self.module.distillation
        with self.module.adapters.using(None):
            positive = self.flow(x, level)
            lowest, highest = settings.teacher_cfg_range
            inside = (level * TRAIN_TIMESTEPS >= lowest) & (level * TRAIN_TIMESTEPS <= highest)
            if self.module.scale == 1 or not inside.any():
                return positive
            other = {"context": self.module.negative(self.inputs["context"])}
            if settings.teacher_cfg_mode == "joint":
                other["omni_audio"] = torch.zeros_like(self.inputs["omni_audio"])
            return dmd.guided(positive, self.flow(x, level, **other), self.module.scale, inside)

    def student_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's loss; and besides the mean difference between the x_0 of critic and teacher."""
        clean = self.roll_out()
        with torch.no_grad():
            x, level, _ = self.noisy(clean.detach())
            with self.module.adapters.using(CRITIC):
                fake = self.generated(dmd.clean_of(x, level, self.flow(x, level)))
            real = self.generated(dmd.clean_of(x, level, self.teacher(x, level)))
            made = self.generated(clean)
            gradient = dmd.dmd_gradient(made, fake, real)
            weight, more = self.record.weight, {}
            if self.module.reward is not None:
                reward = self.rewarded(clean)
                weight = dmd.along(reward, clean) if weight is None else weight * dmd.along(reward, clean)
                more["reward"] = reward.mean()
        loss = dmd.student_loss(self.generated(clean), gradient, weight)
        return loss, {STUDENT: loss.detach(), "gap": (fake - real).abs().mean(), **more}

    def rewarded(self, clean: Tensor) -> Tensor:
        """The weight [B] of each sample, by how its lips follow its sound."""
        assert self.module.reward is not None
        with self.module.encoders_on_device():
            vae, known = self.module.pipe.vae, self.record.known_frames
            return self.module.reward(vae, clean.detach(), known, self.inputs["omni_waveforms"])

    def regression_loss(self, trajectory: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's squared error on a trajectory [B, K, 16, T, h, w], at the noise level number `exit_step`."""
        x = trajectory[:, self.exit_step].to(self.start)
        level = torch.full((len(x),), self.module.sampling.sigmas[self.exit_step], device=x.device)
        with self.module.adapters.using(STUDENT):
            clean = dmd.clean_of(x, level, self.flow(x, level))
        error = (self.generated(clean) - self.generated(self.target)).square()
        loss = (error if self.record.weight is None else self.record.weight * error).mean()
        return loss, {STUDENT: loss.detach()}

    def critic_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss on what the student makes."""
        with torch.no_grad():
            clean = self.roll_out()
            x, level, noise = self.noisy(clean)
        with self.module.adapters.using(CRITIC):
            flow = self.flow(x, level)
        made = self.generated(clean), self.generated(noise)
        loss = dmd.critic_loss(self.generated(flow), *made, self.record.weight)
        return loss, {CRITIC: loss.detach()}
