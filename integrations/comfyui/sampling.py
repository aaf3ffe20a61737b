"""The node that says how videos are sampled."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from diffsynth_omniavatar.media.timeline import DEFAULT_OVERLAP
from diffsynth_omniavatar.model.sampling import SAMPLERS

from . import kinds

CHECKPOINT = "checkpoint's own"
SWITCH = {CHECKPOINT: None, "yes": True, "no": False}


class SamplingSettings(io.ComfyNode):
    """Steps, guidance and length of chunks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        unset = "0: as the preset says"
        return io.Schema(
            node_id="OmniAvatarSampling",
            display_name="OmniAvatar Sampling",
            category=kinds.CATEGORY,
            description="How videos are made. Without this node, and wherever a value is 0 or empty, as the preset or "
            "the checkpoint says.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[CHECKPOINT, *SAMPLERS],
                    tooltip="steps, timesteps, guidance and solver; those for few steps need their LoRA",
                ),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip=unset),
                io.String.Input("timesteps", default="", tooltip="such as 1000,750,500,250; empty: as the preset says"),
                io.Float.Input("sigma_shift", default=0.0, min=0.0, max=100.0, step=0.1, tooltip=unset),
                io.Float.Input(
                    "cfg_scale", default=0.0, min=0.0, max=100.0, step=0.1, tooltip=f"{unset}; 1: no guidance"
                ),
                io.Float.Input(
                    "audio_cfg_scale",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="how strongly the lips follow the sound; 0: as the preset says",
                ),
                io.String.Input(
                    "negative_prompt", default="", multiline=True, tooltip="what to avoid; empty: the checkpoint's"
                ),
                io.Combo.Input(
                    "match_colours",
                    options=list(SWITCH),
                    tooltip="against colour drift in long videos of a fixed camera",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="longest chunk: frames * height * width / 1024; 0: the checkpoint's",
                ),
                io.Int.Input(
                    "overlap", default=DEFAULT_OVERLAP, min=1, max=81, step=4, tooltip="frames that chunks share, 4n+1"
                ),
                io.Float.Input(
                    "tea_cache", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="0.14 skips steps that change little"
                ),
            ],
            outputs=[kinds.Sampling.Output("sampling", display_name="sampling")],
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        steps: int,
        timesteps: str,
        sigma_shift: float,
        cfg_scale: float,
        audio_cfg_scale: float,
        negative_prompt: str,
        match_colours: str,
        max_tokens: int,
        overlap: int,
        tea_cache: float,
    ) -> io.NodeOutput:
        settings: dict[str, Any] = {
            "sampler": None if preset == CHECKPOINT else preset,
            "steps": steps or None,
            "timesteps": timesteps.strip() or None,
            "sigma_shift": sigma_shift or None,
            "cfg_scale": cfg_scale or None,
            "audio_cfg_scale": audio_cfg_scale or None,
            "negative_prompt": negative_prompt.strip() or None,
            "match_colours": SWITCH[match_colours],
            "max_tokens": max_tokens or None,
            "overlap": overlap,
            "tea_cache_l1_thresh": tea_cache or None,
        }
        return io.NodeOutput({name: value for name, value in settings.items() if value is not None})
