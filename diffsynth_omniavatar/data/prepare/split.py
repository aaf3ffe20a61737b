"""Which clips train and which validate: no person is in both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from .records import ClipRecord

Person = Literal["file", "folder", "face"]
"""What stands for a person: each file has its own, each folder, or files in which the same face is seen."""
PERSONS: tuple[Person, ...] = get_args(Person)

SAME_FACE = 0.93
"""Cosine of a clip's face with the mean of a person's from which on it is theirs. Faces of one recording have 0.95 and
more with each other, of different people up to 0.91."""


def people_of(clips: Sequence[ClipRecord], person: Person) -> dict[str, str]:
    """Source of each clip -> the name of the person who is in it.

    Args:
        clips: the kept ones; for "face" with `fingerprint["face"]`, an embedding of length 1, where there is one.
        person: what stands for a person.
    """
    sources = list(dict.fromkeys(clip.source for clip in clips))
    if person == "face":
        return _people_by_face(sources, clips)
    return {source: str(Path(source).parent) if person == "folder" else source for source in sources}


def _people_by_face(sources: Sequence[str], clips: Sequence[ClipRecord]) -> dict[str, str]:
    """A person is called by the first source that shows them. Sources that show several people join these."""
    names = {source: source for source in sources}

    def name_of(source: str) -> str:
        while names[source] != source:
            source = names[source]
        return source

    sums, shown = np.zeros((len(clips), 128)), list[str]()
    for clip in clips:
        if "face" not in clip.fingerprint:
            continue  # none of the pictures that were looked at shows it well
        face = np.array(clip.fingerprint["face"])
        means = sums[: len(shown)] / np.linalg.norm(sums[: len(shown)], axis=1, keepdims=True)
        alike = means @ face
        best = int(alike.argmax()) if len(shown) else -1
        if best < 0 or alike[best] < SAME_FACE:
            best = len(shown)
            shown.append(clip.source)
        sums[best] += face
        first, other = sorted((name_of(shown[best]), name_of(clip.source)), key=sources.index)
        names[other] = first
    return {source: name_of(source) for source in sources}


def validation_people(people: Iterable[str], share: float) -> set[str]:
    """Those whose clips validate: `share` of them by the hash of their name; at least one if there are two, never all.

    A person stays on the side where they are when others are added, but for the one that is chosen where the hash of
    none, or of all, is low enough.

    Args:
        people: names.
        share: part of the people, 0 to 1; 0 for none.
    """
    ordered = sorted(set(people), key=_place)
    count = sum(_place(name) < share for name in ordered)
    if share > 0:
        count = max(1, count)
    return set(ordered[: min(count, len(ordered) - 1)])


def splits(people: Mapping[str, str], share: float) -> dict[str, str]:
    """Source -> "train" or "validation", of source -> person."""
    validating = validation_people(people.values(), share)
    return {source: "validation" if name in validating else "train" for source, name in people.items()}


def _place(name: str) -> float:
    """From 0 to 1, evenly spread."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
