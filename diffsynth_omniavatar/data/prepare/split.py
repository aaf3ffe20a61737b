"""Which clips train and which validate: no person is in both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Person = Literal["file", "folder"]
"""What stands for a person: each file has its own, or each folder."""


def validation_people(sources: Iterable[str], share: float, person: Person = "file") -> set[str]:
    """The people whose clips validate: `share` of them by the hash of their name, at least one if there are two.

    A person stays on the side where they are when others are added, but for the one that is chosen where the hash of
    none is low enough.

    Args:
        sources: paths of the sources of kept clips.
        share: part of the people, 0 to 1; 0 for none.
        person: what stands for a person.
    """
    people = {person_of(source, person) for source in sources}
    chosen = {name for name in people if _place(name) < share}
    if not chosen and share > 0 and len(people) > 1:
        chosen = {min(people, key=_place)}
    return chosen


def person_of(source: str, person: Person) -> str:
    """Whose source it is."""
    return str(Path(source).parent) if person == "folder" else source


def _place(name: str) -> float:
    """From 0 to 1, evenly spread."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
