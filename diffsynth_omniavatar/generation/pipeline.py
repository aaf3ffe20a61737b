"""OmniAvatar's pipeline: the host's WanVideoPipeline with OmniAvatar's units, model function and audio encoder.

`register()` makes the host's own `WanVideoPipeline.from_pretrained` recognise OmniAvatar checkpoints and wav2vec2
folders among its `model_configs`; all other pipelines stay as they are. `unregister()` takes it back.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import host
from ..media.images import ImageSource, load_image, match_size
from ..media.sound import Sound, SoundSource, load_sound, speech_waveform
from ..media.timeline import audio_rows, chunk_length, clip_length
from ..model import checkpoint
from ..model.blocks.attention_fp8 import check_attention_fp8
from ..model.blocks.process_grid import CFG_PARALLEL, CfgParallel, PassParallel, ProcessGrid
from ..model.blocks.runner import BlockRunner
from ..model.blocks.sequence_parallel import SequenceParallel
from ..model.blocks.weights import block_weights
from ..model.config import LATENT_CHANNELS, Conventions
from ..model.dit import OmniAvatarDiT, model_fn_omniavatar
from ..model.host_entries import add_merged_entries
from ..model.lora_files import LoRA, LoRASource, ReadLoRA, missing_base
from ..model.lora_merge import fitted, merge, takes_changes
from ..model.quantize import layer_names
from ..model.quantized_files import load_quantized
from ..model.sampling import Sampling, Solver
from ..model.small_family import register_family
from ..model.speech_encoder import AudioEncoder
from ..model.upgrade import apply_checkpoint, grow_model
from .masks import MaskSource
from .own_configs import conventions_among, sort_configs
from .pixels import VideoSource, decoding_in_place
from .placement import Placement, place
from .scheduler import FreshNoise, StepScheduler
from .units import CallInputsUnit, PrefixPostUnit, PromptUnit, units

logger = logging.getLogger(__name__)

OnFrames = Callable[[Tensor], None]

UNTILED_PIXELS = 720 * 720
"""Up to this picture size, the largest trained one, the VAE runs without tiles: they shift the colours, leave seams and
take several times as long."""

TEA_CACHE_MODELS = {5120: "Wan2.1-T2V-14B", 1536: "Wan2.1-T2V-1.3B"}
"""Names of the host's TeaCache coefficients by the width of the denoiser."""

UNSUPPORTED_ARGUMENTS = ("sliding_window_size", "sliding_window_stride", "cfg_merge", "end_image", "audio_embeds")


class OmniAvatarPipeline(host.WanVideoPipeline):
    """A Wan pipeline whose denoiser is an `OmniAvatarDiT`. Made by `from_pretrained`, not by its constructor."""

    dit: OmniAvatarDiT
    scheduler: Any
    conventions: Conventions
    speech_encoder: AudioEncoder | None
    loras: list[LoRA]
    """Other programs' LoRAs that `loras.add_lora` has added to the weights."""
    kept_weights: dict[str, Tensor]
    """The weights, on the CPU, as they were before."""
    _call_inputs: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
    _returns_floats: bool
    _on_frames: OnFrames | None
    _frames_shown: int

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        """The host's `from_pretrained` with OmniAvatar's configs understood, whether or not `register()` was called.

        Besides the host's arguments:
            omniavatar_lora: "fused" adds the checkpoint's LoRA to the weights; "adapters" keeps it as peft adapters.
            omniavatar_channels: add input channels up to this number (33, 49 or 65); the new ones start at zero.
            omniavatar_loras: LoRA files of other programs, or (file, strength), added to the weights after the
                checkpoint's.
            omniavatar_compile: compute the denoiser's blocks by `blocks`, compiled.
            omniavatar_quantize: hold the blocks' layers in 8 bits, "fp8", "int8" or "fp8_weights"; see `quantize`.
            omniavatar_keep_bf16: names of layers that stay as they are.
            omniavatar_quantize_attention: self-attention in float8, too, on Hopper.
            omniavatar_cfg_parallel: with `use_usp`, "auto" lets processes make different passes of guidance where their
                numbers divide, and those of the same pass share its tokens; "off" lets all share each pass.
            omniavatar_shard_weights: with `use_usp`, each process has a part of the blocks' weights on its GPU.
            omniavatar_stream_weights: the weights of the blocks and of the text encoder's layers wait in CPU memory.

        With the host's `use_usp=True`, all processes that torchrun has started make a video together, each with a part
        of the tokens, by `sequence_parallel`; they must get the same arguments.

        Raises:
            CheckpointError: a checkpoint does not fit; ValueError: something is missing beside it, or an argument does
                not go with how the weights are kept.
        """
        return _load(_host_from_pretrained(), args, kwargs)

    @classmethod
    def adopt(
        cls, pipe: host.WanVideoPipeline, conventions: Conventions, speech_encoder: AudioEncoder | None = None
    ) -> OmniAvatarPipeline:
        """Turn a host pipeline whose denoiser is an `OmniAvatarDiT` into this class, in place."""
        pipe.__class__ = cls
        pipe.conventions = conventions
        pipe.speech_encoder = speech_encoder
        pipe.loras, pipe.kept_weights = [], {}
        pipe._call_inputs = ({}, {}, {})
        pipe._returns_floats, pipe._on_frames = False, None
        host_units = [PromptUnit() if isinstance(unit, host.PromptEmbedder) else unit for unit in pipe.units]
        pipe.units = [CallInputsUnit(), *host_units, *units()]
        pipe.post_units = [*pipe.post_units, PrefixPostUnit()]
        pipe.model_fn = model_fn_omniavatar
        return pipe

    @property
    def is_first_process(self) -> bool:
        """Whether this process writes files: the only one, or the first of those that make a video together."""
        parallel = self._parallel
        return parallel is None or parallel.rank == 0

    @property
    def _parallel(self) -> SequenceParallel | None:
        return None if self.dit.runner is None else self.dit.runner.parallel

    @torch.no_grad()
    def __call__(
        self,
        prompt: str = "",
        negative_prompt: str | None = None,
        input_image: ImageSource | None = None,
        input_audio: SoundSource | None = None,
        *,
        audio_sample_rate: int = 16000,
        audio_features: Tensor | None = None,
        input_video: VideoSource | None = None,
        mouth_mask: MaskSource | None = None,
        reference_video: VideoSource | None = None,
        prefix_video: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        timesteps: str | Sequence[float] | None = None,
        sigma_shift: float | None = None,
        solver: Solver | None = None,
        cfg_scale: float | None = None,
        audio_cfg_scale: float | None = None,
        apg_eta: float | None = None,
        guidance_rescale: float | None = None,
        guidance_from: float | None = None,
        guidance_to: float | None = None,
        denoising_strength: float = 1.0,
        tiled: bool | None = None,
        tea_cache_l1_thresh: float | None = None,
        tea_cache_model_id: str | None = None,
        output_type: Literal["quantized", "floatpoint"] = "quantized",
        on_step: Callable[[int, Tensor], None] | None = None,
        on_frames: OnFrames | None = None,
        **host_arguments: Any,
    ) -> Any:
        """Generate one clip. `generate` makes videos of any length out of such clips.

        Args:
            prompt, negative_prompt: text.
            input_image: the portrait (path or PIL image), scaled and cropped to size. V2V takes the source's first
                frame if there is none.
            input_audio: the speech: a file, a `Sound`, or an array or tensor at `audio_sample_rate`.
            audio_features: features [num_frames, C] instead of a sound.
            input_video: V2V: the video whose mouth is changed; at least num_frames frames. In I2V it is the host's
                starting point for `denoising_strength` < 1.
            mouth_mask: V2V: see `masks.load_mouth_mask`; None for the built-in one.
            reference_video: 65 channels: a second clip of the person.
            prefix_video: frames [3, P, H, W] in [-1, 1], P = 1, 5, 9, 13..., with which the clip must begin.
            prompt_embeds, negative_prompt_embeds: [1, token, C] from `encode_prompt`, instead of the texts.
            height, width: None for the trained size nearest in shape to the portrait or the video.
            num_frames: 4n+1; None for the sound's length, as far as one clip goes.
            sampler: a preset, one of `model.sampling.SAMPLERS`, of the arguments from here to guidance_to.
            num_inference_steps, timesteps, sigma_shift, solver: see `model.sampling.Sampling`.
            cfg_scale: text guidance s; 1 makes one pass without any guidance.
            audio_cfg_scale: audio guidance a: three passes, `n + s (o - n) + a (p - o)`; equal to s, or with s = 1, it
                takes two.
            apg_eta, guidance_rescale, guidance_from, guidance_to: see `model.sampling.Sampling`.
            tiled: run the VAE in tiles; None for "above 720x720".
            tea_cache_l1_thresh: skip steps that change little (upstream's value is 0.14); None computes all.
            tea_cache_model_id: whose coefficients; None for the denoiser's own.
            output_type: "quantized" for PIL images, "floatpoint" for a tensor [3, F, H, W] in [-1, 1].
            on_step: called after each step with its number, from 1, and the clean latents [16, T, h, w] it predicts;
                `preview.LatentColours` makes pictures of them.
            on_frames: gets the frames of the clip in order, [3, n, H, W] in [-1, 1], while the VAE decodes: those of
                each latent frame by themselves, with tiles all together. On a GPU they are still being computed then.
            host_arguments: what else the host's `__call__` takes: seed, rand_device, ...

        None for negative_prompt and the arguments of sampling takes what `sampler` says, or the checkpoint's
        config.json (`conventions.sampling`), or else upstream's values.

        Raises:
            ValueError: an input is missing, unreadable or unsupported; the message names it.
        """
        wrong = [name for name in UNSUPPORTED_ARGUMENTS if host_arguments.get(name)]
        if wrong:
            raise ValueError(f"OmniAvatar does not work with {', '.join(wrong)}; leave it out.")
        if self._parallel is not None and host_arguments.get("seed") is None:
            raise ValueError("Several processes make one video (use_usp) from the same noise: give seed=.")
        sampling = self.conventions.sampling.with_given(
            sampler=sampler,
            negative_prompt=negative_prompt,
            steps=num_inference_steps,
            timesteps=timesteps,
            sigma_shift=sigma_shift,
            solver=solver,
            cfg_scale=cfg_scale,
            audio_cfg_scale=audio_cfg_scale,
            apg_eta=apg_eta,
            guidance_rescale=guidance_rescale,
            guidance_from=guidance_from,
            guidance_to=guidance_to,
        )
        is_v2v = self.dit.config.has_masked_video
        image = None if input_image is None else load_image(input_image)
        height, width = self._choose_size(image, input_video if is_v2v else None, height, width)
        sound = input_audio
        if sound is not None and not isinstance(sound, Sound):
            sound = load_sound(sound, rate=None if isinstance(sound, (str, Path)) else audio_sample_rate)
        if num_frames is None:
            num_frames = self._choose_length(sound, audio_features, height, width)
        if tea_cache_l1_thresh:
            tea_cache_model_id = tea_cache_model_id or self._tea_cache_model()
        shared: dict[str, Any] = {
            "omni_sound": sound,
            "omni_audio_features": audio_features,
            "omni_source_video": input_video if is_v2v else None,
            "omni_mouth_mask": mouth_mask,
            "omni_reference_video": reference_video,
            "omni_prefix_video": prefix_video,
            "omni_sampling": sampling,
        }
        self._call_inputs = (shared, {"context": prompt_embeds}, {"context": negative_prompt_embeds})
        self._returns_floats, self._on_frames, self._frames_shown = output_type == "floatpoint", on_frames, 0
        noise = FreshNoise([host_arguments.get("seed")], host_arguments.get("rand_device", "cpu"))
        decoded = None if on_frames is None else self._decoded
        hosts_scheduler, self.scheduler = self.scheduler, StepScheduler(self.scheduler, sampling, noise, on_step)
        try:
            with self._sharing_passes(sampling) as passes, decoding_in_place(self.vae, decoded):
                shared["omni_passes"] = passes
                return super().__call__(
                    prompt=prompt,
                    negative_prompt=sampling.negative_prompt,
                    input_image=image,
                    input_video=input_video if not is_v2v or denoising_strength < 1 else None,
                    denoising_strength=denoising_strength,
                    height=height,
                    width=width,
                    num_frames=num_frames,
                    num_inference_steps=sampling.steps,
                    cfg_scale=sampling.cfg_scale,
                    sigma_shift=sampling.sigma_shift,
                    tiled=height * width > UNTILED_PIXELS if tiled is None else tiled,
                    tea_cache_l1_thresh=tea_cache_l1_thresh or None,
                    tea_cache_model_id=tea_cache_model_id or "",
                    **host_arguments,
                )
        finally:
            self.scheduler = hosts_scheduler
            self._call_inputs = ({}, {}, {})
            self._returns_floats, self._on_frames = False, None

    def _sharing_passes(self, sampling: Sampling) -> AbstractContextManager[PassParallel | None]:
        runner = self.dit.runner
        return nullcontext() if runner is None else runner.sharing_passes(sampling.shared_passes)

    def take_call_inputs(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The arguments of the running call for the shared, positive and negative inputs; nothing outside a call."""
        return self._call_inputs

    def vae_output_to_video(self, vae_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The host's last step: PIL images, or the tensor [3, F, H, W] itself where the call wants floats."""
        if self._on_frames is not None and not self._frames_shown:
            self._on_frames(vae_output[0])
        return vae_output[0] if self._returns_floats else super().vae_output_to_video(vae_output, *args, **kwargs)

    def _decoded(self, frames: Tensor) -> None:
        """Pass frames [1, 3, n, H, W] on."""
        assert self._on_frames is not None
        self._on_frames(frames[0])
        self._frames_shown += frames.shape[2]

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Tensor:
        """The text embedding [1, token, C] that `prompt_embeds` takes."""
        unit = next(unit for unit in self.units if isinstance(unit, PromptUnit))
        return unit.process(self, prompt=prompt, positive=True, context=None)["context"]

    def encode_speech(self, waveform: Tensor, rows: int) -> Tensor:
        """Features [rows, C] in float32 of a mono 16 kHz waveform [n], silence behind it.

        Raises:
            ValueError: the pipeline has no audio encoder.
        """
        if self.speech_encoder is None:
            raise ValueError(
                "The pipeline has no audio encoder: add ModelConfig(model_id='facebook/wav2vec2-base-960h', "
                "origin_file_pattern='*') to model_configs."
            )
        self.load_models_to_device(["speech_encoder"])
        return self.speech_encoder.encode(waveform, rows)

    def _choose_size(
        self, image: Any, video: VideoSource | None, height: int | None, width: int | None
    ) -> tuple[int, int]:
        if height is not None and width is not None:
            return height, width
        if height is not None or width is not None:
            raise ValueError("Give both height= and width=, or neither.")
        shape: Sequence[int]
        if image is not None:
            shape = (image.height, image.width)
        elif video is None or len(video) == 0:
            raise ValueError("Give input_image=, or height= and width=.")
        elif isinstance(video, Tensor):
            shape = video.shape[2:4] if video.is_floating_point() else video.shape[1:3]
        else:
            shape = (video[0].height, video[0].width)
        return match_size(shape[0], shape[1], self.conventions.image_sizes)

    def _choose_length(self, sound: Any, features: Tensor | None, height: int, width: int) -> int:
        if features is not None:
            return features.shape[-2]
        if sound is None:
            raise ValueError("OmniAvatar needs a sound: give input_audio= (or audio_features=).")
        wanted = clip_length(audio_rows(len(speech_waveform(sound))) + self.conventions.leading_audio_rows)
        longest = chunk_length(height, width, self.conventions.max_tokens)
        if wanted > longest:
            logger.warning(
                "The sound lasts %d frames, one clip %d: the rest is left out. Use generate() for all of it.",
                wanted,
                longest,
            )
        return min(wanted, longest)

    def _tea_cache_model(self) -> str:
        try:
            return TEA_CACHE_MODELS[self.dit.dim]
        except KeyError:
            raise ValueError(
                f"TeaCache has no coefficients for a width of {self.dit.dim}: name some with tea_cache_model_id=, "
                f"for instance {list(TEA_CACHE_MODELS.values())}."
            ) from None


# -------------------------------------------------------------------------------------------------------------- loading


def _load(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lora = kwargs.pop("omniavatar_lora", "fused")
    channels = kwargs.pop("omniavatar_channels", None)
    compile_blocks = kwargs.pop("omniavatar_compile", False)
    attention_fp8 = kwargs.pop("omniavatar_quantize_attention", False)
    cfg_parallel: CfgParallel = kwargs.pop("omniavatar_cfg_parallel", "auto")
    if cfg_parallel not in CFG_PARALLEL:
        raise ValueError(f"--cfg_parallel is {cfg_parallel!r}, wanted {' or '.join(CFG_PARALLEL)}.")
    placement = Placement(
        kwargs.pop("omniavatar_quantize", None),
        layer_names(kwargs.pop("omniavatar_keep_bf16", ())),
        kwargs.pop("omniavatar_stream_weights", False),
        kwargs.pop("omniavatar_shard_weights", False),
    )
    given: Sequence[LoRASource] = kwargs.pop("omniavatar_loras", ())
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    device = bound.arguments["device"]
    placement.check(device)
    own = sort_configs(bound.arguments["model_configs"])
    if own.quantized is not None:
        if own.lora_checkpoint is not None or given or channels is not None:
            raise ValueError(f"{own.quantized} is in 8 bits: it takes no other checkpoint, LoRA or channels.")
        placement = replace(placement, is_quantized=True)
    if placement.loads_on_cpu(device, own.host_bytes):
        bound.arguments["device"] = "cpu"
    loras = [ReadLoRA.of(one) for one in given]
    if own.lora_checkpoint is None and own.conventions is None and own.wav2vec2 is None and channels is None:
        pipe = original(*bound.args, **bound.kwargs)
        if isinstance(pipe.dit, OmniAvatarDiT):
            _add_loras(pipe, loras, device)
            _choose_blocks(pipe, BlockRunner(compile=compile_blocks, attention_fp8=attention_fp8), placement, device)
            return OmniAvatarPipeline.adopt(pipe, conventions_among(own.host_configs))
        if given:
            raise ValueError("There is no OmniAvatar checkpoint among model_configs for omniavatar_loras to go with.")
        return pipe
    parallel = SequenceParallel.start(device) if bound.arguments["use_usp"] else None
    grid = None if parallel is None or cfg_parallel == "off" else ProcessGrid(parallel)
    runner = BlockRunner(compile=compile_blocks, parallel=parallel, grid=grid, attention_fp8=attention_fp8)
    bound.arguments.update(model_configs=own.host_configs, use_usp=False)
    pipe = original(*bound.args, **bound.kwargs)
    if own.quantized is not None:
        home = placement.home(device)
        pipe.dit = load_quantized(own.quantized, quantize=placement.quantize, dtype=pipe.torch_dtype, device=home)
    if own.lora_checkpoint is not None:
        _apply_lora_checkpoint(pipe, own.lora_checkpoint, lora, channels, loras, device)
        _tell_missing_base(own.lora_checkpoint, given)
    elif not isinstance(pipe.dit, OmniAvatarDiT):
        raise ValueError(
            "There is a wav2vec2 folder, but no OmniAvatar checkpoint among model_configs: add "
            "ModelConfig(model_id='OmniAvatar/OmniAvatar-14B', origin_file_pattern='*')."
        )
    else:
        _add_loras(pipe, loras, device)
        if channels is not None:
            grow_model(pipe.dit, channels)
    # Here all LoRAs are in the weights: what quantises, streams or shards these comes below.
    encoder = None
    if own.wav2vec2 is not None:
        encoder = AudioEncoder.from_pretrained(own.wav2vec2).to(device)
    _choose_blocks(pipe, runner, placement, device)
    return OmniAvatarPipeline.adopt(pipe, own.conventions or conventions_among(own.host_configs), encoder)


def _add_loras(pipe: Any, loras: Sequence[ReadLoRA], device: torch.device | str) -> None:
    merge(pipe.dit, [_told(fitted(one, pipe.dit)) for one in loras], device)


def _told(lora: LoRA) -> LoRA:
    """The LoRA, after a line about it."""
    logger.log(logging.WARNING if lora.unknown else logging.INFO, "%s", lora.report())
    return lora


def _tell_missing_base(loaded: checkpoint.Checkpoint, given: Sequence[LoRASource]) -> None:
    missing = missing_base(loaded.config.base_loras, given)
    if missing:
        logger.warning(
            "%s was trained on weights with the LoRA %s in them, which they lack now: give it with --lora "
            "FILE:STRENGTH (loras= in Python, --base_lora in training).",
            loaded.source,
            " and ".join(missing),
        )


def _choose_blocks(pipe: Any, runner: BlockRunner, placement: Placement, device: Any) -> None:
    """Let the denoiser compute its blocks by `blocks`, where something asks for it; bring all models to `device`."""
    dit: OmniAvatarDiT = pipe.dit
    if runner.compile or runner.parallel is not None or runner.attention_fp8 or placement.stream:
        for block in dit.blocks:
            block_weights(block)
        if runner.parallel is not None:
            runner.parallel.check(dit.config.num_heads)
        if runner.attention_fp8:
            check_attention_fp8(device, dit.config.dim // dit.config.num_heads)
        dit.runner = runner
    if placement.is_wanted:
        place(pipe, placement, device)


def _apply_lora_checkpoint(
    pipe: Any,
    loaded: checkpoint.Checkpoint,
    lora: Any,
    channels: int | None,
    loras: Sequence[ReadLoRA],
    device: torch.device | str,
) -> None:
    if pipe.dit is None:
        raise ValueError(
            f"{loaded.source} goes on top of the transformer that it was trained on, such as Wan's: add that "
            "one's files, in Python by ModelConfig(...) in model_configs, in training by --model_paths or "
            "--model_id_with_origin_paths."
        )
    if isinstance(pipe.dit, OmniAvatarDiT):
        fits = pipe.dit.in_dim <= loaded.in_dim
    else:
        fits = pipe.dit2 is None and not pipe.dit.has_image_input and pipe.dit.in_dim == LATENT_CHANNELS
    if not fits:
        raise ValueError(
            f"{loaded.source} goes on top of Wan 2.1 text-to-video (16 input channels), or of a full OmniAvatar "
            f"checkpoint of at most {loaded.in_dim}, not of the given transformer ({pipe.dit.in_dim} input channels)."
        )
    kept_by_host = getattr(pipe.dit, "vram_management_enabled", False) or hasattr(pipe.dit, "quantize_config")
    fused_elsewhere = kept_by_host and not all(
        takes_changes(weight) and weight.dtype == pipe.torch_dtype for weight in pipe.dit.blocks.parameters()
    )
    apply_checkpoint(
        pipe.dit,
        loaded,
        in_dim=channels,
        lora=lora,
        dtype=pipe.torch_dtype,
        device=pipe.device,
        loras=[_told(fitted(one, pipe.dit)) for one in loras],
        sums_on=device,
        hot_load=functools.partial(_hot_load, pipe) if fused_elsewhere else None,
    )


def _hot_load(pipe: Any, dit: OmniAvatarDiT, low_rank: dict[str, Tensor], scale: float) -> None:
    """Let the host add the low-rank parts at each forward: its weights are offloaded or quantised."""
    pipe.load_lora(dit, state_dict=low_rank, alpha=scale, hotload=True)


# --------------------------------------------------------------------------------------------------------- registration

_original_from_pretrained: Any = None


def _host_from_pretrained() -> Callable[..., Any]:
    return (_original_from_pretrained or host.WanVideoPipeline.__dict__["from_pretrained"]).__func__


def register() -> None:
    """Make the host's `WanVideoPipeline.from_pretrained` load OmniAvatar. Calling it again changes nothing.

    Raises:
        UnsupportedHostError: no supported DiffSynth-Studio is installed.
    """
    global _original_from_pretrained
    if _original_from_pretrained is not None:
        return
    _original_from_pretrained = host.WanVideoPipeline.__dict__["from_pretrained"]
    original = _host_from_pretrained()

    @functools.wraps(original)
    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        return _load(original, args, kwargs)

    host.WanVideoPipeline.from_pretrained = staticmethod(from_pretrained)
    add_merged_entries()
    register_family()
    print(f"OmniAvatar is registered with DiffSynth-Studio {host.VERSION} ({host.PIPELINE_MODULE}).")


def unregister() -> None:
    """Take `register()` back. Pipelines that are loaded go on working."""
    global _original_from_pretrained
    if _original_from_pretrained is None:
        return
    host.WanVideoPipeline.from_pretrained = _original_from_pretrained
    _original_from_pretrained = None
    host.remove_model_entries(__package__.partition(".")[0])
