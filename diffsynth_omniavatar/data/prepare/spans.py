"""Where a source is cut into clips: one person, one scene, somebody speaking, not too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from ...media.faces.face import Track
from ...media.timeline import FRAME_RATE
from ..face_rules import OTHER_FACE_SIZE
from .look import Look

LONGEST_PAUSE = 25
"""Frames of silence within a clip; a longer pause ends it."""

AROUND_SPEECH = 5
"""Frames that a clip has before and after the speech."""

FROM_CUT = 1
"""Frames beside a cut that no clip shows: they may be a mix of both scenes."""

LEAST_OVERLAP = 0.5
"""Part of a span of speech in which a face has to be seen to be its speaker's."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a source that may become a clip."""

    start: int
    stop: int
    track: int | None
    """Who speaks; None where there is no face."""
    lead: float | None = None
    """How much more the speaker's lips move than any other's; None where nobody else is seen."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why it can be no clip, as in `ClipRecord.reasons`."""

    @property
    def frames(self) -> range:
        """The frames of the source."""
        return range(self.start, self.stop)


def plan_spans(look: Look, shortest: int, longest: int) -> list[Span]:
    """All parts of a source that may become clips, and those that cannot with their reason.

    Args:
        look: at the source.
        shortest, longest: frames of a clip; longer speech is cut at pauses. Shorter parts come too.
    """
    found = list[Span]()
    borders = (0, *look.cuts, look.frames)
    for start, stop in pairwise(borders):
        inner = range(start + FROM_CUT * (start > 0), stop - FROM_CUT * (stop < look.frames))
        if inner:
            found += _Scene(look, inner, shortest, longest).spans()
    return found


class _Scene:
    def __init__(self, look: Look, frames: range, shortest: int, longest: int) -> None:
        self.look, self.frames = look, frames
        self.shortest, self.longest = shortest, longest
        self.tracks = {
            number: track
            for number, track in enumerate(look.tracks)
            if len(shared := overlap(track.frames, frames)) and 2 * len(shared) >= min(shortest, len(frames))
        }
        largest = max((track.size for track in self.tracks.values()), default=0.0)
        self.tracks = {n: track for n, track in self.tracks.items() if track.size >= OTHER_FACE_SIZE * largest}

    def spans(self) -> Iterator[Span]:
        if not self.tracks:
            yield self._rejected(self.frames, None, "no_face", "there is no face")
            return
        speeches = list(self._speeches())
        if not speeches:
            first = max(self.tracks, key=lambda number: len(self.tracks[number].faces))
            yield self._rejected(self.frames, first, "no_speech", "nobody speaks")
            return
        for joined in _joined(speeches):
            start, stop = joined[0].start, joined[-1].stop
            number = joined[0].track
            if number is None:
                yield self._rejected(range(start, stop), None, "no_face", "somebody speaks whose face is not seen")
                continue
            others = [span for span in speeches if span not in joined]
            whole = self._padded(range(start, stop), self.tracks[number], others)
            lead = min((span.lead for span in joined if span.lead is not None), default=None)
            for part in self._split(whole, joined):
                yield Span(start=part.start, stop=part.stop, track=number, lead=lead)

    def _rejected(self, frames: range, track: int | None, reason: str, text: str) -> Span:
        times = f"from {frames.start / FRAME_RATE:.1f} to {frames.stop / FRAME_RATE:.1f} s"
        return Span(start=frames.start, stop=frames.stop, track=track, reasons={reason: f"{text} {times}"})

    def _speeches(self) -> Iterator[Span]:
        """Each time that somebody speaks, with who does."""
        for start, end in self.look.speech:
            spoken = overlap(range(round(start * FRAME_RATE), round(end * FRAME_RATE)), self.frames)
            if not spoken:
                continue
            seen = {
                number: mouth_motion(track, spoken)
                for number, track in self.tracks.items()
                if len(overlap(track.frames, spoken)) >= LEAST_OVERLAP * len(spoken)
            }
            speaker = max(seen, key=lambda number: seen[number], default=None)
            lead = None
            if speaker is not None and len(seen) > 1:
                second = max(motion for number, motion in seen.items() if number != speaker)
                lead = seen[speaker] / max(second, 1e-6)
            yield Span(start=spoken.start, stop=spoken.stop, track=speaker, lead=lead)

    def _padded(self, frames: range, track: Track, others: Sequence[Span]) -> range:
        """Some frames more before and after the speech, but none of the next speaker's and none without the track."""
        start, stop = frames.start - AROUND_SPEECH, frames.stop + AROUND_SPEECH
        start = max([start, *(other.stop for other in others if other.stop <= frames.start)])
        stop = min([stop, *(other.start for other in others if other.start >= frames.stop)])
        return overlap(overlap(range(start, stop), self.frames), track.frames)

    def _split(self, frames: range, speeches: Sequence[Span]) -> Iterator[range]:
        """Parts of `frames` of `longest` at most, cut at pauses where there are some, else where it is quietest."""
        pauses = [(before.stop + after.start) // 2 for before, after in pairwise(speeches)]
        start = frames.start
        while frames.stop - start > self.longest:
            # The rest must not be too short either.
            first, last = start + self.shortest, min(start + self.longest, frames.stop - self.shortest)
            fitting = [pause for pause in pauses if first <= pause <= last]
            if fitting:
                cut = fitting[-1]
            else:
                quarter = max(first, last - self.longest // 4)
                cut = quarter + int(smoothed(self.look.power[quarter : last + 1]).argmin())
            yield range(start, cut)
            start = cut
        if start < frames.stop:
            yield range(start, frames.stop)


def _joined(speeches: Sequence[Span]) -> Iterator[list[Span]]:
    """Speeches of one person with short pauses between them, together."""
    group = list[Span]()
    for span in speeches:
        if group and (span.track != group[-1].track or span.start - group[-1].stop > LONGEST_PAUSE):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


def overlap(one: range, other: range) -> range:
    """The frames that both have."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def mouth_motion(track: Track, frames: Iterable[int]) -> float:
    """Standard deviation of the lips' distance over some frames, in distances between the eyes."""
    opened = [face.openness for face in (track.at(frame) for frame in frames) if face is not None]
    return float(torch.tensor(opened, dtype=torch.float64).std(correction=0)) if opened else 0.0


def smoothed(values: Tensor) -> Tensor:
    """[n] the mean of each value and its two neighbours on both sides."""
    padded = torch.nn.functional.pad(values[None, None].float(), (2, 2), mode="replicate")
    return torch.nn.functional.avg_pool1d(padded, 5, 1)[0, 0]
