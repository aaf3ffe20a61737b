"""The denoiser: a Wan 2.1 transformer with OmniAvatar's audio part, and the model function that the pipeline calls.

Shapes: latents `[batch, channel, frame, height, width]`, tokens `[batch, token, width]`, audio features
`[batch, row, audio_dim]` with one row per video frame. The blocks are the host's own, so that everything which the
host, peft or accelerate know about Wan's blocks holds for these too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..host import WanModel, sinusoidal_embedding_1d
from .blocks.forward import add_per_frame
from .blocks.runner import BlockRunner
from .config import AUDIO_WINDOW, OmniAvatarConfig

if TYPE_CHECKING:
    from ..host import TeaCache

AUDIO_NORM_EPS = 1e-5


class AudioPack(nn.Module):
    """Joins the audio features of the four video frames of each latent frame.

    Args:
        audio_dim: width C of one row of audio features.
        hidden_size: width H of the result.
    """

    def __init__(self, audio_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(AUDIO_WINDOW * audio_dim, hidden_size)
        self.norm_out = nn.LayerNorm(hidden_size, eps=AUDIO_NORM_EPS)

    def forward(self, audio_emb: Tensor) -> Tensor:
        """[B, 4T-3, C] -> [B, T, H]. The first row is taken four times, as the first latent frame is one video
        frame.
        """
        first = audio_emb[:, :1].expand(-1, AUDIO_WINDOW - 1, -1)
        windows = torch.cat([first, audio_emb], dim=1).unflatten(1, (-1, AUDIO_WINDOW)).flatten(2)
        return self.norm_out(self.proj(windows))


class OmniAvatarDiT(WanModel):
    """Wan 2.1 text-to-video transformer plus `audio_proj` and `audio_cond_projs`; state-dict names as released.

    Args:
        config: the sizes.
    """

    config: OmniAvatarConfig
    audio_proj: AudioPack
    audio_cond_projs: nn.ModuleList
    runner: BlockRunner | None = None
    """How the blocks are computed; None for the host's own way."""

    def __init__(self, config: OmniAvatarConfig) -> None:
        super().__init__(**wan_sizes(config, config.in_dim))
        self._become_omniavatar(config)

    @classmethod
    def upgrade(cls, dit: WanModel, config: OmniAvatarConfig) -> OmniAvatarDiT:
        """Turn a loaded Wan transformer into an OmniAvatar one, in place, keeping its blocks and how they are stored.

        The patch embedding and the audio modules are new and empty (on the meta device): load their weights next.
        """
        dit.__class__ = cls
        with torch.device("meta"):
            dit.patch_embedding = nn.Conv3d(
                config.in_dim, config.dim, kernel_size=config.patch_size, stride=config.patch_size
            )
            dit.in_dim = config.in_dim
            dit._become_omniavatar(config)
        return dit

    def _become_omniavatar(self, config: OmniAvatarConfig) -> None:
        self.config = config
        # The host would otherwise encode the input image for the image-to-video models of Wan.
        self.require_vae_embedding = self.require_clip_embedding = False
        self.audio_proj = AudioPack(config.audio_dim, config.audio_hidden_size)
        self.audio_cond_projs = nn.ModuleList(
            nn.Linear(config.audio_hidden_size, config.dim) for _ in config.audio_layers
        )

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor,
        audio_emb: Tensor,
        use_gradient_checkpointing: bool = False,
        use_gradient_checkpointing_offload: bool = False,
        tea_cache: TeaCache | None = None,
    ) -> Tensor:
        """Predict the flow `noise - clean` of noisy latents.

        Args:
            x: noisy latents [B, 16, T, h, w], h and w even.
            timestep: [1] or [B], 0..1000.
            context: text embeddings [B, token, text_dim].
            y: conditioning [B, in_dim - 16, T, h, w], see `config.CHANNEL_LAYOUTS`.
            audio_emb: audio features [B, 4T-3, audio_dim]; zeros for "no audio".
            use_gradient_checkpointing: recompute each block in the backward pass.
            use_gradient_checkpointing_offload: keep the blocks' inputs in CPU memory; implies the former.
            tea_cache: the host's TeaCache of this pass, to skip the blocks of steps that change little.

        Returns:
            [B, 16, T, h, w].

        Raises:
            ValueError: the shapes do not belong together.
        """
        self._check_shapes(x, y, audio_emb)
        return self.predict(
            x,
            timestep,
            context,
            y,
            self.audio_proj(audio_emb),
            self.runner,
            use_gradient_checkpointing,
            use_gradient_checkpointing_offload,
            tea_cache,
        )

    def predict(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor,
        packed_audio: Tensor,
        runner: BlockRunner | None,
        use_gradient_checkpointing: bool = False,
        use_gradient_checkpointing_offload: bool = False,
        tea_cache: TeaCache | None = None,
    ) -> Tensor:
        """`forward` behind the packing of the audio [B, T, H], with a given runner; shapes are not checked."""
        t = self.time_embedding(sinusoidal_embedding_1d(self.freq_dim, timestep).to(x.dtype))
        t_mod = self.time_projection(t).unflatten(1, (6, self.dim))
        context = self.text_embedding(context)

        x = self.patch_embedding(torch.cat([x, y], dim=1))
        grid = tuple(x.shape[2:])
        tokens = x.flatten(2).transpose(1, 2).contiguous()
        parallel = None if runner is None else runner.parallel
        frames = None
        if parallel is not None:
            tokens = parallel.share(tokens)
            frames = parallel.share(_frames_of_tokens(grid, x.device), dim=0)
        recompute = use_gradient_checkpointing or use_gradient_checkpointing_offload
        add = add_per_frame if runner is None else runner.add_per_frame
        if runner is not None:
            offload = use_gradient_checkpointing_offload
            run = runner.prepare(self, tokens, context, t_mod, grid, recompute, offload)
        else:
            run_host = _block_runner(use_gradient_checkpointing, use_gradient_checkpointing_offload)
            freqs = self._rotary_frequencies(grid, x.device)

            def run(index: int, tokens: Tensor) -> Tensor:
                return run_host(self.blocks[index], tokens, context, t_mod, freqs)

        if tea_cache is not None and tea_cache.check(self, tokens, t_mod):
            tokens = tea_cache.update(tokens)
        else:
            for index in range(len(self.blocks)):
                if index in self.config.audio_layers:
                    audio = self.audio_cond_projs[index - self.config.audio_layers.start](packed_audio)
                    tokens = add(tokens, audio, frames)
                tokens = run(index, tokens)
            if tea_cache is not None:
                tea_cache.store(tokens)
        # A time axis of length one keeps the head's modulation apart for each sample on both hosts.
        patches = self.head(tokens, t.unsqueeze(1))
        if parallel is not None:
            patches = parallel.join(patches, math.prod(grid))
        return self.unpatchify(patches, grid)

    def _check_shapes(self, x: Tensor, y: Tensor, audio_emb: Tensor) -> None:
        faults = []
        channels = x.shape[1] + y.shape[1]
        if channels != self.config.in_dim:
            faults.append(f"x and y have {x.shape[1]} + {y.shape[1]} channels, the model takes {self.config.in_dim}")
        if x.shape[3] % self.patch_size[1] or x.shape[4] % self.patch_size[2]:
            faults.append(f"the latent size {tuple(x.shape[3:])} is not a multiple of {self.patch_size[1:]}")
        rows = AUDIO_WINDOW * x.shape[2] - AUDIO_WINDOW + 1
        if tuple(audio_emb.shape[1:]) != (rows, self.config.audio_dim):
            faults.append(
                f"audio_emb is {list(audio_emb.shape)}, wanted [batch, {rows}, {self.config.audio_dim}] "
                f"for {x.shape[2]} latent frames"
            )
        if faults:
            raise ValueError(f"OmniAvatarDiT: {'; '.join(faults)}.")

    def _rotary_frequencies(self, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """Complex rotations of every token, [T*h*w, 1, head width / 2]."""
        parts = [
            table[:size].view(*(size if axis == other else 1 for other in range(3)), -1).expand(*grid, -1)
            for axis, (table, size) in enumerate(zip(self.freqs, grid, strict=True))
        ]
        return torch.cat(parts, dim=-1).flatten(0, 2).unsqueeze(1).to(device)


def _frames_of_tokens(grid: tuple[int, ...], device: torch.device) -> Tensor:
    """The latent frame of each token, [T*h*w]."""
    return torch.arange(grid[0], device=device).repeat_interleave(math.prod(grid[1:]))


def _block_runner(use_gradient_checkpointing: bool, offload: bool) -> Callable[..., Tensor]:
    """How to run a block. The flags decide, not `training`: with LoRA the host leaves the model in evaluation mode."""
    if not torch.is_grad_enabled() or not (use_gradient_checkpointing or offload):
        return lambda block, *inputs: block(*inputs)

    def recompute(block: nn.Module, *inputs: Tensor) -> Tensor:
        if not offload:
            return checkpoint(block, *inputs, use_reentrant=False)
        with torch.autograd.graph.save_on_cpu():
            return checkpoint(block, *inputs, use_reentrant=False)

    return recompute


def model_fn_omniavatar(
    dit: OmniAvatarDiT,
    latents: Tensor,
    timestep: Tensor,
    context: Tensor,
    omni_y: Tensor,
    omni_audio: Tensor,
    omni_prefix_latents: Tensor | None = None,
    omni_guidance: Any = None,
    omni_record: Any = None,
    tea_cache: TeaCache | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
    **_: Any,
) -> Tensor:
    """One pass of the denoiser inside the host's loop or loss; takes the place of `pipe.model_fn`.

    Args:
        dit, latents, timestep, context, tea_cache, use_gradient_checkpointing[_offload]: as the host passes them.
        omni_y: conditioning channels [B, in_dim - 16, T, h, w].
        omni_audio: audio features of this pass [B, 4T-3, audio_dim].
        omni_prefix_latents: known latents [B, 16, P, h, w]; they take the place of the first P frames of `latents`.
        omni_guidance: makes more passes than the host, a `guidance.Guidance` or its `negative`; or None.
        omni_record: in training a `record.StepRecord`, whose timesteps count; else None.

    Returns:
        The predicted flow [B, 16, T, h, w]; in training the part of it that the loss covers.
    """
    if omni_prefix_latents is not None:
        prefix = omni_prefix_latents.to(latents)
        latents = torch.cat([prefix, latents[:, :, prefix.shape[2] :]], dim=2)
    if omni_record is not None:
        timestep = omni_record.timestep

    def denoise(context: Tensor, audio: Tensor, cache: TeaCache | None) -> Tensor:
        return dit(
            latents,
            timestep,
            context,
            omni_y,
            audio,
            use_gradient_checkpointing,
            use_gradient_checkpointing_offload,
            cache,
        )

    compute = denoise if omni_guidance is None else functools.partial(omni_guidance, denoise, latents, timestep)
    prediction = compute(context, omni_audio, tea_cache)
    return prediction if omni_record is None else omni_record.keep(latents, prediction)


def wan_sizes(config: OmniAvatarConfig, in_dim: int) -> dict[str, Any]:
    """Keyword arguments of the host's `WanModel` with `in_dim` input channels."""
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "out_dim", "text_dim", "freq_dim", "eps")
    sizes = {name: getattr(config, name) for name in names}
    return {**sizes, "in_dim": in_dim, "patch_size": config.patch_size, "has_image_input": False}


def state_dict_shapes(config: OmniAvatarConfig) -> dict[str, list[int]]:
    """Names and shapes of all tensors of a denoiser of these sizes, without making it."""
    with torch.device("meta"):
        return {name: list(tensor.shape) for name, tensor in OmniAvatarDiT(config).state_dict().items()}


def config_fields(config: OmniAvatarConfig) -> dict[str, Any]:
    """The JSON-serialisable fields from which `build_dit` builds the model."""
    return {**asdict(config), "patch_size": list(config.patch_size)}


def build_dit(**fields: Any) -> OmniAvatarDiT:
    """Make the denoiser from the fields of an `OmniAvatarConfig`; the host's loader imports this by its dotted path."""
    return OmniAvatarDiT(OmniAvatarConfig(**fields))
