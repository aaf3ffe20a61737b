"""Whose mouth is changed: from "largest", "left", "speaking" or a number to the tracks of a video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..media.clip import Clip
from ..media.faces.face import Track
from ..media.sound import Sound, load_sound, speech_waveform
from ..media.voice import speech_spans
from .footage import Footage
from .request import RequestError

BYSTANDER = 0.5
"""A face below this part of the largest one's size in a scene is nobody's whom "largest", "left", ... mean."""

Rank = Callable[[Track], float]
"""A number that is the larger, the more a track is meant."""


def choose_tracks(footage: Footage, faces: Sequence[str]) -> list[list[Track]]:
    """The tracks of each face that is named, in order; of a video that has some.

    A number is one track. A word chooses in each scene, where it takes several tracks only if they follow each other.

    Raises:
        RequestError: there is not that number, no speech to judge by, or two names mean the same face.
    """
    chosen = [_tracks(footage, face) for face in faces]
    for number, tracks in enumerate(chosen):
        for other in range(number):
            if any(track in chosen[other] for track in tracks):
                raise RequestError(
                    f"@face {faces[other]} and @face {faces[number]} mean the same face; the video has "
                    f"{footage.faces()}."
                )
    return chosen


def _tracks(footage: Footage, face: str) -> list[Track]:
    if face.isdecimal():
        if int(face) > len(footage.tracks):
            raise RequestError(f"@face {face} is not there; the video has {footage.faces()}.")
        return [footage.tracks[int(face) - 1]]
    rank = _ranks(footage, face)
    found: list[Track] = []
    for scene in range(len(footage.cuts) + 1):
        tracks = [track for track in footage.tracks if footage.scene(track.start) == scene]
        least = BYSTANDER * max((_weight(track) / len(track.frames) for track in tracks), default=0)
        meant: list[Track] = []
        for track in sorted(tracks, key=rank, reverse=True):
            alone = all(_apart(track, other) for other in meant)
            if alone and _weight(track) >= least * len(track.frames):
                meant.append(track)
        found += meant
    return sorted(found, key=lambda track: track.start)


def _ranks(footage: Footage, face: str) -> Rank:
    if face == "left":
        return lambda track: -_middle(track)
    if face == "right":
        return _middle
    return _weight if face == "largest" else _speaking(footage)


def _weight(track: Track) -> float:
    """Size of a face times the pictures that show it."""
    return track.size * len(track.frames)


def _middle(track: Track) -> float:
    places = [face.box[0] + face.box[2] for face in track.faces if face is not None]
    return sum(places) / len(places)


def _apart(track: Track, other: Track) -> bool:
    return track.frames.stop <= other.frames.start or other.frames.stop <= track.frames.start


def _own_sound(source: Path | Clip) -> Sound:
    if not isinstance(source, Clip):
        return load_sound(source, allow_silent=True)
    if source.sound is None:
        raise ValueError(f"{source} has none")
    return source.sound


def _speaking(footage: Footage) -> Rank:
    """How much more the lips move while the video's own sound has a voice than while it has none."""
    try:
        waveform = speech_waveform(_own_sound(footage.source))
    except ValueError as error:
        raise RequestError(f"@face speaking needs the video's own sound: {error}") from error
    spans = speech_spans(waveform)
    if not spans:
        raise RequestError(f"@face speaking: nobody speaks in the sound of {footage.source}; name the face otherwise.")
    tick = footage.times.tick
    voiced = torch.zeros(len(footage.times.starts), dtype=torch.bool)
    for picture, start in enumerate(footage.times.starts):
        time = float(start * tick)
        voiced[picture] = any(begin <= time < end for begin, end in spans)

    def rank(track: Track) -> float:
        moves: dict[bool, list[float]] = {True: [], False: []}
        for picture, before, face in zip(track.frames[1:], track.faces, track.faces[1:], strict=False):
            if before is not None and face is not None:
                moves[bool(voiced[picture])].append(abs(face.openness - before.openness))
        speaking, silent = (sum(values) / max(len(values), 1) for values in (moves[True], moves[False]))
        return speaking - silent / 2

    return rank
