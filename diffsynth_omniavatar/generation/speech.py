"""A sound of which several videos are made: the first one encodes it, and the others take what it kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from ..media.sound import Sound, SoundSource
from ..model.speech_encoder import AudioEncoder
from .pipeline import OmniAvatarPipeline


@dataclass(frozen=True, eq=False)
class EncodedSpeech(Sound):
    """A sound that keeps its features, 65 MB a minute, for each silence before it and length of padding behind it."""

    _kept: WeakKeyDictionary[AudioEncoder, dict[tuple[int, int], Tensor]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )


def encode_speech(pipe: OmniAvatarPipeline, source: SoundSource, waveform: Tensor, rows: int) -> Tensor:
    """`OmniAvatarPipeline.encode_speech`, or what an `EncodedSpeech` kept of it.

    Args:
        pipe: whose encoder hears it.
        source: the sound as it was given.
        waveform: [n], made of it: mono at 16 kHz, silence before it.
        rows: number of rows.
    """
    if not isinstance(source, EncodedSpeech) or pipe.speech_encoder is None:
        return pipe.encode_speech(waveform, rows)
    kept = source._kept.setdefault(pipe.speech_encoder, {})
    key = (len(waveform), rows)
    if key not in kept:
        kept[key] = pipe.encode_speech(waveform, rows)
    return kept[key]
