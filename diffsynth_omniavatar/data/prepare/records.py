"""What is known of each source and of each clip cut from it: the content of state files, tables and the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...media.timeline import FRAME_RATE


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """A clip that was cut from a source, or why it was not."""

    name: str
    """Unique in the output folder; the clip's files are called so in their folders. The part up to "/" is its source's.
    """

    source: str
    """Path of the file that it comes from."""

    start: int
    """First frame in the source, at 25 per second."""

    frames: int
    """Number of frames at 25 per second."""

    track: int | None = None
    """Which of the source's face tracks it shows; None where there is no face."""

    figures: Mapping[str, float] = field(default_factory=dict)
    """By the names of `clip_rules`; what could not be measured is absent."""

    reasons: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with it, in words, by the figure of the rule that it breaks, or by one of `OTHER_REASONS`; empty
    for a clip that is kept."""

    strip: str | None = None
    """Picture of eight frames side by side, a path in the output folder; None if none could be made."""

    video: str | None = None
    """The clip, a path in the output folder: an mp4 file or a prepared directory; None for a rejected one."""

    size: tuple[int, int] | None = None
    """Height and width of the clip in pixels."""

    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """What near-duplicates are found by."""

    prompt: str = ""
    """The caption of a kept clip."""

    split: str | None = None
    """"train" or "validation" for a kept clip."""

    @property
    def is_kept(self) -> bool:
        return not self.reasons

    @property
    def seconds(self) -> float:
        return self.frames / FRAME_RATE


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """A raw file, and what was made of it."""

    path: str
    """As it was given or found."""

    size: int
    """Bytes."""

    modified_ns: int
    """Time of its last change."""

    seconds: float = 0.0
    height: int = 0
    width: int = 0
    frame_rate: float = 0.0
    scenes: int = 0
    tracks: int = 0
    speech_seconds: float = 0.0

    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why nothing was made of the whole file, by one of `OTHER_REASONS`."""

    clips: tuple[ClipRecord, ...] = ()
    """Kept and rejected ones, by their start."""


OTHER_REASONS = {
    "unreadable": "the file cannot be read",
    "sound": "there is no usable sound",
    "no_speech": "nobody speaks",
    "no_face": "there is no face",
    "turned": "the picture is turned",
    "duplicate": "there is a clip like it already",
    "caption": "there is no caption",
}
"""Reasons that are no bound of a figure, with what they mean."""


def to_json(record: SourceRecord) -> dict[str, Any]:
    """The record as plain values."""
    return dataclasses.asdict(record)


def from_json(content: Mapping[str, Any]) -> SourceRecord:
    """The record of `to_json`'s plain values."""
    clips = (
        ClipRecord(**{**clip, "size": None if clip["size"] is None else tuple(clip["size"])})
        for clip in content["clips"]
    )
    return SourceRecord(**{**content, "clips": tuple(clips)})
