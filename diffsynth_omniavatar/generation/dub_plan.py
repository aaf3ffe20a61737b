"""Where a new mouth is shown, how strongly, and in which chunks it is made.

A *span* is a row of the finished video's pictures in which one track of a face can be dubbed without a break: within a
scene, with a face that is sure and not turned aside. Chunks lie within a span, so none begins with frames from before a
cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..media.faces.align import crop_transforms, inside_share
from ..media.faces.face import Track
from ..media.faces.faults import NO_FACE, face_fault
from ..media.faces.template import Template
from ..media.mix import Spans
from ..media.timeline import clip_length
from .footage import Footage
from .playback import Playback

FADE = 0.2
"""Seconds over which the new mouth comes and goes, unless a cut does it."""

SPEECH_MARGIN = 0.3
"""Seconds before and after speech that get the new mouth too, so that it is there when the speech begins."""

SHORTEST = 5
"""The model's frames that a span has at least."""

SHOWN = 0.6
"""How much of the new mouth has to be shown at some time of a span; less is a flicker, as within a profile."""

NO_SPEECH = "no new speech"
TOO_SHORT = "seen too briefly"


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedTrack:
    """A track with the places of its crops."""

    track: Track
    transforms: Tensor
    """Float32 [n, 2, 3] from `align.crop_transforms`, one for each of its frames."""
    faults: tuple[str | None, ...]
    """Why it cannot be dubbed, for each of its frames."""

    def transform(self, picture: int) -> Tensor:
        """Float32 [2, 3]: where its crop lies in a picture."""
        return self.transforms[picture - self.track.start]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Frames that the model makes at once. Frames are the model's, counted from the start of the video."""

    index: int
    """Number of the chunk in the plan of its face."""
    frames: range
    """Frames that it makes; they may go beyond the span."""
    known: int
    """Frames at its start that the chunk before ended with; 0 in the first one of a span."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Span:
    """Places of the finished video that get a new mouth without a break."""

    face: PlacedTrack
    places: range
    frames: range
    """The model's frames that are shown there."""
    chunks: tuple[Chunk, ...]

    def picture(self, frame: int, playback: Playback) -> int:
        """The source's picture of the span that is on screen at the time of a model's frame, or nearest to it."""
        place = playback.place_at(frame)
        return playback.pictures[min(max(place, self.places.start), self.places[-1])]


@dataclass(frozen=True, kw_only=True, eq=False)
class FacePlan:
    """Where one face gets a new mouth."""

    spans: tuple[Span, ...]
    strengths: Tensor
    """Float32 [place]: how much of the new mouth is shown, 0 to 1."""
    reasons: tuple[str | None, ...]
    """Why a place stays as it is; None where it does not."""

    @property
    def chunks(self) -> int:
        """Chunks of all spans."""
        return sum(len(span.chunks) for span in self.spans)


def place_track(track: Track, footage: Footage, template: Template) -> PlacedTrack:
    """A track with its crops' places and its faults."""
    rate = float(footage.times.frame_rate)
    transforms = crop_transforms(track, template, duplicates=footage.duplicates, frame_rate=rate)
    shares = inside_share(transforms, *footage.size).tolist()
    faults = tuple(face_fault(face, share) for face, share in zip(track.faces, shares, strict=True))
    return PlacedTrack(track=track, transforms=transforms, faults=faults)


def plan_face(
    footage: Footage,
    playback: Playback,
    tracks: Sequence[PlacedTrack],
    *,
    length: int,
    overlap: int,
    speech: Spans | None = None,
) -> FacePlan:
    """Where one face gets a new mouth.

    Args:
        footage: the source.
        playback: what of it is shown when.
        tracks: of the face, apart from each other.
        length: the longest chunk in frames, 4n+1.
        overlap: frames that chunks share, 4n+1, fewer than `length`.
        speech: seconds in which there is new speech; with these, all other places stay as they are. None for all.
    """
    by_picture: list[int | None] = [None] * len(footage.times.starts)
    for index, placed in enumerate(tracks):
        for picture in placed.track.frames:
            by_picture[picture] = index
    spoken = [True] * len(playback.pictures) if speech is None else _spoken(playback, speech)
    reasons: list[str | None] = []
    for place, picture in enumerate(playback.pictures):
        number = by_picture[picture]
        fault = NO_FACE if number is None else tracks[number].faults[picture - tracks[number].track.start]
        reasons.append(fault if fault is not None or spoken[place] else NO_SPEECH)
    strengths = torch.zeros(len(playback.pictures))
    spans: list[Span] = []

    def kind(place: int) -> int | None:
        return by_picture[playback.pictures[place]] if reasons[place] is None else None

    for number, group in groupby(range(len(playback.pictures)), key=kind):
        if number is None:
            continue
        members = list(group)
        places = range(members[0], members[-1] + 1)
        frames = range(playback.frame_at(places[0]), playback.frame_at(places[-1]) + 1)
        shown = _strengths(footage, playback, places)
        if len(frames) < SHORTEST or shown.max() < SHOWN:
            for place in places:
                reasons[place] = TOO_SHORT
            continue
        strengths[places.start : places.stop] = shown
        made = sum(len(span.chunks) for span in spans)
        chunks = plan_chunks(frames, length, overlap, made)
        spans.append(Span(face=tracks[number], places=places, frames=frames, chunks=chunks))
    return FacePlan(spans=tuple(spans), strengths=strengths, reasons=tuple(reasons))


def plan_chunks(frames: range, length: int, overlap: int, index: int = 0) -> tuple[Chunk, ...]:
    """Frames in chunks of equal length, at most `length`, that share `overlap` frames; the last may reach beyond.

    Args:
        frames: of a span, one at least.
        length, overlap: 4n+1 each, overlap the smaller one.
        index: number of the first chunk.
    """
    count = 1 if len(frames) <= length else math.ceil((len(frames) - overlap) / (length - overlap))
    each = clip_length(math.ceil((len(frames) + (count - 1) * overlap) / count))
    starts = [frames.start + number * (each - overlap) for number in range(count)]
    return tuple(
        Chunk(index=index + number, frames=range(start, start + each), known=overlap if number else 0)
        for number, start in enumerate(starts)
    )


def _spoken(playback: Playback, speech: Spans) -> list[bool]:
    """Whether there is new speech while a place is shown, or soon before or after."""
    spoken, following = [], 0
    for place in range(len(playback.pictures)):
        start, stop = playback.seconds(place)
        while following < len(speech) and speech[following][1] + SPEECH_MARGIN <= start:
            following += 1
        spoken.append(following < len(speech) and speech[following][0] - SPEECH_MARGIN < stop)
    return spoken


def _strengths(footage: Footage, playback: Playback, places: range) -> Tensor:
    """Float32 [n]: 1, but for ramps at those ends of a span that are no cuts and no ends of the video."""
    scene = footage.scene(playback.pictures[places.start])

    def goes_on(place: int) -> bool:
        inside = 0 <= place < len(playback.pictures)
        return inside and footage.scene(playback.pictures[place]) == scene

    begin, end = playback.seconds(places.start)[0], playback.seconds(places[-1])[1]
    middles = torch.tensor([sum(playback.seconds(place)) / 2 for place in places])
    strengths = torch.ones(len(places))
    if goes_on(places.start - 1):
        strengths = strengths.minimum((middles - begin) / FADE)
    if goes_on(places.stop):
        strengths = strengths.minimum((end - middles) / FADE)
    return strengths
