"""The figures of a clip, from what the first pass has seen."""

from __future__ import annotations

import math

import torch

from ...media.timeline import FRAME_RATE
from ..face_rules import face_figures
from .crops import Crop
from .look import Look
from .spans import Span, mouth_motion

AROUND = 3 * FRAME_RATE
"""Frames before and after a clip whose pauses tell how loud the noise is."""

LEAST_PAUSE = 8
"""Frames of pause from which on noise can be told."""


def clip_figures(look: Look, span: Span, crop: Crop | None) -> dict[str, float]:
    """All figures of a clip that can be measured; without a crop, those that need no face."""
    repeated = sum(frame in look.duplicates for frame in span.frames if frame > span.start)
    figures = {
        "seconds": len(span.frames) / FRAME_RATE,
        "frozen_share": repeated / max(len(span.frames) - 1, 1),
        "brightness_jump": _brightness_jump(look, span.frames),
        **_sound_figures(look, span.frames),
    }
    if crop is not None and span.track is not None:
        track = look.tracks[span.track]
        others = [other for other in look.tracks if other is not track]
        figures |= face_figures(track, span.frames, others, crop.bounds, crop.inside)
        figures |= _pixel_figures(look, span.track, span.frames)
        figures["enlargement"] = crop.enlargement
        spoken = look.speech_frames()
        figures["mouth_motion"] = mouth_motion(track, [frame for frame in span.frames if spoken[frame]])
    if span.lead is not None:
        figures["speaker_lead"] = span.lead
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _brightness_jump(look: Look, frames: range) -> float:
    light = look.light[frames.start : frames.stop]
    return float(light.diff().abs().max()) if len(light) > 1 else 0.0


def _pixel_figures(look: Look, track: int, frames: range) -> dict[str, float]:
    samples = look.samples
    own = samples[(samples[:, 0] == track) & (samples[:, 1] >= frames.start) & (samples[:, 1] < frames.stop)]
    if not len(own):
        return {}
    return {
        "sharpness": float(own[:, 2].median()),
        "brightness": float(own[:, 3].mean()),
        "clipped_share": float(own[:, 4].mean()),
    }


def _sound_figures(look: Look, frames: range) -> dict[str, float]:
    spoken = look.speech_frames()
    inner = spoken[frames.start : frames.stop]
    figures = {"speech_share": float(inner.float().mean())}
    if not inner.any():
        return figures
    speech = _decibels(look.power[frames.start : frames.stop][inner])
    figures["loudness"] = speech
    wide = slice(max(0, frames.start - AROUND), frames.stop + AROUND)
    pauses = look.power[wide][~spoken[wide]]
    if len(pauses) >= LEAST_PAUSE:
        figures["speech_to_noise"] = speech - _decibels(pauses)
    return figures


def _decibels(power: torch.Tensor) -> float:
    """Of the mean of powers [n], in dB of full scale; silence is -100."""
    return 10 * math.log10(max(float(power.mean()), 1e-10))
