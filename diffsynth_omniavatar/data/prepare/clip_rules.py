"""All rules that a clip of raw footage has to keep; each bound is a flag of `omniavatar prepare`."""

from __future__ import annotations

from collections.abc import Mapping

from ..face_rules import face_rules
from ..figure_rules import Mode, Rule


def clip_rules(mode: Mode, given: Mapping[str, float] | None = None) -> tuple[Rule, ...]:
    """The rules for "i2v" or "v2v" in the order in which reports show them.

    Args:
        mode: what the clips are for.
        given: bounds to set, by their flags without dashes: {"min_face_size": 200}.

    Raises:
        ValueError: a name of `given` is no bound.
    """
    faces = (rule for rule in face_rules(mode) if rule.figure != "cuts")  # clips are cut at the cuts
    rules = (*_time_rules(), *faces, *_picture_rules(mode), *_sound_rules())
    given = given or {}
    unknown = sorted(set(given) - {name for rule in rules for name in rule.flags})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such bound for {mode}")
    return tuple(rule.with_bounds(given) for rule in rules)


def _time_rules() -> tuple[Rule, ...]:
    return (
        Rule(
            figure="seconds",
            title="length",
            unit="s",
            meaning="length of the clip",
            complaint="the clip is too short",
            least=2.0,
        ),
        Rule(
            figure="frozen_share",
            title="frames that repeat",
            meaning="part of the frames that equal the one before: low frame rates and stills",
            complaint="the picture is frozen",
            most=0.45,
        ),
    )


def _picture_rules(mode: Mode) -> tuple[Rule, ...]:
    return (
        Rule(
            figure="enlargement",
            title="enlargement",
            unit="times",
            meaning="how much the source's pixels are enlarged in the clip",
            complaint="the source has too few pixels",
            most=2.5 if mode == "v2v" else 1.5,
        ),
        Rule(
            figure="sharpness",
            title="sharpness",
            meaning="variance of the Laplacian of the face at 128 pixels, in grey levels squared, median over the clip",
            complaint="the face is blurred",
            least=15.0,
        ),
        Rule(
            figure="brightness",
            title="brightness",
            unit="of 255",
            meaning="mean grey level of the face",
            complaint="the face is too dark or too bright",
            least=40.0,
            most=220.0,
        ),
        Rule(
            figure="clipped_share",
            title="clipped pixels",
            meaning="part of the face's pixels that are black or white",
            complaint="the face is badly exposed",
            most=0.2,
        ),
        Rule(
            figure="brightness_jump",
            title="brightness jump",
            unit="of 255",
            meaning="largest change of the picture's mean grey level from a frame to the next",
            complaint="the light jumps",
            most=12.0,
        ),
    )


def _sound_rules() -> tuple[Rule, ...]:
    return (
        Rule(
            figure="speech_share",
            title="speech",
            meaning="part of the clip in which somebody speaks",
            complaint="there is too little speech",
            least=0.5,
        ),
        Rule(
            figure="loudness",
            title="loudness of the speech",
            unit="dB",
            meaning="root mean square of the speech, in dB of full scale",
            complaint="the speech is too quiet",
            least=-45.0,
        ),
        Rule(
            figure="speech_to_noise",
            title="speech above the rest",
            unit="dB",
            meaning="how much louder the speech is than the pauses around it: noise, music",
            complaint="there is noise or music under the speech",
            least=10.0,
        ),
        Rule(
            figure="mouth_motion",
            title="motion of the lips",
            unit="eye distances",
            meaning="standard deviation of the lips' distance while somebody speaks",
            complaint="the lips do not move",
            least=0.01,
        ),
        Rule(
            figure="speaker_lead",
            title="lead of the speaker",
            unit="times",
            meaning="motion of these lips by that of any other face's in the picture while somebody speaks",
            complaint="somebody else may be speaking",
            least=2.0,
        ),
        Rule(
            figure="sync_confidence",
            title="sync confidence",
            meaning="StableSyncNet's cosine at the best offset, less the median over all offsets",
            complaint="lips and sound do not fit",
            least=0.1,
        ),
    )
