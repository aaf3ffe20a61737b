"""OmniAvatar's training module: which weights train, and the loss of a sample."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import host
from ..data.sample import TrainingSample
from ..generation.pipeline import OmniAvatarPipeline
from ..generation.record import StepRecord
from ..generation.units import PromptUnit, units
from ..losses.flow import flow_loss
from ..losses.noise_levels import LevelWeight, NoiseLevels
from ..media.images import to_video
from ..media.timeline import SAMPLES_PER_FRAME
from ..model.blocks.attention_fp8 import check_attention_fp8
from ..model.blocks.pieces import COMPARED_GRADIENTS, TORCH
from ..model.blocks.runner import BlockRunner
from ..model.blocks.step_memory import adapted
from ..model.blocks.weights import block_weights
from ..model.checkpoint import EXTRA_MODULES, LORA_KEY, save_safetensors
from ..model.config import CheckpointConfig, LoRAConfig
from ..model.lora import adapted_layers, inject_adapters, trained_tensors
from ..model.quantize import layer_names, quantize_blocks
from .auxiliary import AuxiliaryLosses
from .loader import stream_seed
from .memory_report import BACKWARD, ENCODING, FORWARD, MemoryReport
from .prefix_errors import PrefixErrors
from .settings import StepSettings

AUDIO_MODULES = ("audio_proj", "audio_cond_projs")
"""What of the denoiser hears."""
ENCODERS = ("text_encoder", "vae", "speech_encoder")
"""Frozen networks that a cache makes superfluous."""


def add_lora(dit: Any, lora: LoRAConfig, seed: int = 0, adapters: Sequence[str] = ("default",)) -> None:
    """Inject fresh peft adapters of these names into the blocks; B starts at zero, so nothing changes yet.

    `seed` fixes A, which peft draws from the global generators; they are as before afterwards.
    """
    names = list(adapted_layers(dit, lora.target_modules))
    unknown = [target for target in lora.target_modules if not list(adapted_layers(dit, (target,)))]
    if unknown:
        raise ValueError(
            f"--lora_target_modules: no layer of the transformer's blocks is called {', '.join(map(repr, unknown))}."
        )
    weight = next(dit.parameters())
    dtype = weight.dtype
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
        torch.manual_seed(stream_seed("lora", seed))
        for name in adapters:
            with warnings.catch_warnings():  # of a second adapter
                warnings.simplefilter("ignore", UserWarning)
                inject_adapters(dit, lora, names, name)
    for name, parameter in dit.named_parameters():
        if LORA_KEY.match(name):
            parameter.data = parameter.data.to(dtype)


def select_trainable(dit: Any, *, full: bool) -> None:
    """Let LoRA, patch embedding and audio modules train (or, with `full`, everything), and nothing else."""
    for name, parameter in dit.named_parameters():
        parameter.requires_grad_(full or bool(LORA_KEY.match(name)) or name.startswith(EXTRA_MODULES))


AUXILIARY_RESERVE = 12 * 2**30
"""Bytes that "auto" leaves for the losses on decoded frames: 6.2 GiB at 81 frames of 512x512, and room for more."""


def choose_blocks(dit: Any, settings: StepSettings, *, device: torch.device, lora: bool, auxiliary: bool) -> None:
    """Let the denoiser compute its blocks as the settings say.

    Raises:
        ValueError: the settings need LoRA, or cannot work with the model's layers.
    """
    if settings.way.blocks == "host":
        dit.runner = None
        return
    eight_bits = settings.quantize or settings.quantize_attention
    if (settings.activation_memory is not None or settings.stream_weights or eight_bits) and not lora:
        raise ValueError(
            "--activation_memory, --stream_weights, --quantize and --quantize_attention need LoRA: leave "
            "--trainable_models away, or them."
        )
    if settings.quantize_attention:
        check_attention_fp8(device, dit.config.dim // dit.config.num_heads)
    if settings.compile and not lora and device.type == "cuda" and TORCH < COMPARED_GRADIENTS:
        wanted = ".".join(map(str, COMPARED_GRADIENTS))
        raise ValueError(
            f"--compile with all weights training needs torch {wanted}, this is {torch.__version__}: before, compiled "
            "gradients may be wrong. Leave --compile away, or train a LoRA."
        )
    if settings.quantize is not None:
        quantize_blocks(dit, settings.quantize, layer_names(settings.keep_bf16), worker=device)
    for block in dit.blocks:
        block_weights(block)
    dit.runner = BlockRunner(
        compile=settings.compile,
        activation_memory=settings.activation_memory,
        reserve=AUXILIARY_RESERVE if auxiliary else 0,
        moment_bytes=4 if settings.fp32_master_weights else None,
        attention_fp8=settings.quantize_attention,
    )
    if settings.stream_weights:
        dit.runner.stream_weights(dit.blocks, device)


class OmniAvatarTrainingModule(host.DiffusionTrainingModule):
    """The module that DiffSynth's training loop calls with each sample.

    Args:
        pipe: with peft adapters (or none, to train all weights of the denoiser).
        config: of the checkpoints that are written: LoRA settings and conventions.
        settings: how a step computes.
        auxiliary: losses on decoded frames; the pipeline's VAE then stays on the device.
    """

    def __init__(
        self,
        pipe: OmniAvatarPipeline,
        config: CheckpointConfig,
        settings: StepSettings,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.on_parts: Callable[[Mapping[str, Tensor]], None] | None = None
        """Called with the losses that the loss is made of, where there are auxiliary ones."""
        self.on_sample: Callable[[TrainingSample, StepRecord, Tensor], None] | None = None
        """Called with each sample, what its step recorded, and its flow loss."""
        self.pipe = pipe
        self.config = config
        self.settings = settings
        self.noise_levels = NoiseLevels.parse(settings.timestep_sampling)
        self.weighting = LevelWeight.parse(settings.loss_weighting)
        self.prefix_errors = PrefixErrors.parse(settings.prefix_errors)
        self.switch_pipe_to_training_mode(pipe)
        lora = config.lora is not None
        select_trainable(pipe.dit, full=not lora)
        device = torch.device(pipe.device)
        choose_blocks(pipe.dit, settings, device=device, lora=lora, auxiliary=auxiliary is not None)
        self.loss_parts: list[str] = [] if auxiliary is None else ["flow", *auxiliary.names]
        """Names of what `on_parts` is called with."""
        self.units = [PromptUnit(), *units()]
        self.memory = MemoryReport(pipe, self.counted_lora, settings) if settings.vram_report else None

    def switch_pipe_to_training_mode(self, pipe: OmniAvatarPipeline, *_: Any, **__: Any) -> None:
        """The part of the host's method that applies: its scheduler in training mode, everything frozen."""
        pipe.scheduler.set_timesteps(1000, training=True)
        pipe.requires_grad_(False)
        pipe.eval()

    def forward(self, data: TrainingSample | Callable[[], Any], inputs: Any = None) -> Any:
        """The loss of a sample, a scalar; or what a function returns that needs the weights whole, for validation."""
        if callable(data):
            return self.between_steps(data)
        if self.memory is not None:
            self.memory.end_of(BACKWARD)
        shared, positive, _ = self.prepare(data)
        if self.memory is not None:
            self.memory.end_of(ENCODING, shared["input_latents"])
        self.spoil_prefix(data, shared)
        loss, parts = self.loss(data, shared, positive)
        if self.prefix_errors is not None and self.prefix_errors.bank is not None:
            self.prefix_errors.bank.collect(shared["omni_record"])
        if self.on_sample is not None:
            self.on_sample(data, shared["omni_record"], parts.get("flow", loss))
        if parts and self.on_parts is not None:
            self.on_parts(parts)
        if self.memory is not None:
            self.memory.end_of(FORWARD)
        return loss

    def spoil_prefix(self, sample: TrainingSample, shared: dict[str, Any]) -> None:
        """Put errors into the known latents of the model's input, where the settings ask for some."""
        known = shared.get("omni_prefix_latents")
        if self.prefix_errors is not None and known is not None:
            shared["omni_prefix_latents"] = self.prefix_errors.added(known, sample.drop_prefix)

    def between_steps(self, function: Callable[[], Any]) -> Any:
        """What a function returns with the weights that validate."""
        return function()

    def loss(self, data: TrainingSample, shared: Any, positive: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a sample, a scalar, and its parts where it has some, from the inputs of the model function."""
        model_inputs = {**shared, **positive}
        loss = flow_loss(self.pipe, model_inputs, self.noise_levels, self.weighting)
        return (loss, {}) if self.auxiliary is None else self.auxiliary(self.pipe.vae, model_inputs, loss)

    @torch.no_grad()
    def prepare(self, sample: TrainingSample) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The inputs of the model function: shared, positive and negative."""
        inputs: tuple[Any, Any, Any] = self.raw_inputs(sample)
        cached = all(part is not None for part in (sample.input_latents, sample.audio_features, sample.context))
        with nullcontext() if cached else self.encoders_on_device():
            for unit in self.units:
                inputs = self.pipe.unit_runner(unit, self.pipe, *inputs)
        return inputs

    def raw_inputs(self, sample: TrainingSample) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What the units start from."""
        settings = self.settings
        target = _pixels(sample.target_video)
        shared = {
            "omni_target_video": target,
            "omni_source_video": target,
            "input_image": _pixels(None if sample.reference_image is None else sample.reference_image.unsqueeze(1)),
            "omni_reference_video": _pixels(sample.reference_video),
            "omni_mouth_mask": sample.mouth_mask,
            "omni_waveforms": sample.waveforms,
            "omni_drop_audio": sample.drop_audio,
            "omni_audio_features": self.cached_audio(sample),
            "omni_prefix_frames": sample.prefix_frames,
            "omni_drop_prefix": sample.drop_prefix,
            "omni_mouth_weight": settings.mouth_weight,
            "input_latents": sample.input_latents,
            "omni_reference_latents": sample.reference_latents,
            "omni_masked_latents": sample.masked_latents,
            "omni_mouth_mask_latents": sample.mouth_mask_latents,
            "omni_reference_sequence_latents": sample.reference_sequence_latents,
            "num_frames": sample.num_frames,
            "height": sample.height,
            "width": sample.width,
            "cfg_scale": 1.0,
            "tiled": settings.tiled,
            "tile_size": (30, 52),
            "tile_stride": (15, 26),
            "max_timestep_boundary": settings.max_timestep_boundary,
            "min_timestep_boundary": settings.min_timestep_boundary,
            "use_gradient_checkpointing": settings.use_gradient_checkpointing,
            "use_gradient_checkpointing_offload": settings.use_gradient_checkpointing_offload,
        }
        texts = None
        if sample.prompts is not None:
            texts = ["" if drop else text for text, drop in zip(sample.prompts, sample.drop_text.tolist(), strict=True)]
        return shared, {"prompt": texts, "positive": True, "context": self.cached_context(sample)}, {}

    def cached_audio(self, sample: TrainingSample) -> Tensor | None:
        """Cached features [B, F, C], those of silence where the recipe drops the sound."""

        def silence() -> Tensor:
            if sample.silent_features is not None:
                return sample.silent_features
            return self.pipe.encode_speech(torch.zeros(sample.num_frames * SAMPLES_PER_FRAME), sample.num_frames)

        return _with_dropped(sample.audio_features, sample.drop_audio, silence)

    def cached_context(self, sample: TrainingSample) -> Tensor | None:
        """Cached text embeddings [B, L, D], that of the empty prompt where the recipe drops the text."""

        def no_text() -> Tensor:
            return self.pipe.encode_prompt("") if sample.empty_context is None else sample.empty_context

        return _with_dropped(sample.context, sample.drop_text, no_text)

    @contextmanager
    def encoders_on_device(self) -> Iterator[None]:
        """Within it the frozen networks are on the device; after it, with `offload_frozen`, in CPU memory."""
        if not self.settings.offload_frozen:
            yield
            return
        names = [name for name in ENCODERS if name != "vae" or self.auxiliary is None]
        encoders = [getattr(self.pipe, name) for name in names if getattr(self.pipe, name, None) is not None]
        for encoder in encoders:
            encoder.to(self.pipe.device)
        try:
            yield
        finally:
            for encoder in encoders:
                encoder.to("cpu")

    @property
    def counted_lora(self) -> LoRAConfig | None:
        """A plain LoRA with as many weights as train; None where all weights do."""
        lora = self.config.lora
        if lora is None or lora.is_plain:
            return lora
        trained = sum(value.numel() for name, value in self.pipe.dit.named_parameters() if LORA_KEY.match(name))
        of_rank_1 = len(self.pipe.dit.blocks) * sum(map(sum, adapted(self.pipe.dit.config, lora).values()))
        return dataclasses.replace(lora, rank=max(1, round(trained / of_rank_1)))

    def trainable_modules(self) -> Any:
        """The parameters for the host's optimizer, in their order; in groups if the audio modules have a rate."""
        trained = super().trainable_modules()
        if self.settings.lr_audio is None:
            return trained
        audio = {id(value) for name in AUDIO_MODULES for value in getattr(self.pipe.dit, name).parameters()}
        runs = itertools.groupby(trained, key=lambda parameter: id(parameter) in audio)
        return [{"params": [*of_run]} | ({"lr": self.settings.lr_audio} if own else {}) for own, of_run in runs]

    @property
    def extra_memory(self) -> dict[str, int]:
        """Bytes beside the denoiser, its gradients and AdamW, by what has them."""
        return {}

    def trained_tensors(self) -> dict[str, Tensor]:
        """The tensors of the checkpoint: adapters, patch embedding and audio modules, or all weights."""
        if self.config.lora is None:
            return dict(self.pipe.dit.state_dict())
        return trained_tensors(self.pipe.dit)

    def export(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write `trained_tensors` as a single safetensors file that `from_pretrained` and `omniavatar convert` read."""
        save_safetensors(path, tensors, self.config)


def _with_dropped(values: Tensor | None, drop: Tensor, nothing: Callable[[], Tensor]) -> Tensor | None:
    """Values [B, n, C] with `nothing()`, [n, C] or [1, n, C], in the place of the clips to drop, bool [B]."""
    if values is None or not drop.any():
        return values
    return torch.where(drop.view(-1, 1, 1), nothing().to(values), values)


def _pixels(frames: Tensor | None) -> Tensor | None:
    """uint8 [B, F, H, W, 3] -> float [B, 3, F, H, W] in [-1, 1]."""
    return None if frames is None else to_video(frames).contiguous()


def trainable_parameters(module: torch.nn.Module) -> int:
    """How many numbers train."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
