"""Which clips of one list show the same video as one of another list."""

from __future__ import annotations

from collections.abc import Sequence

from ..system.digests import file_sha256
from .clips import ClipSource, Footage


def same_footage(clips: Sequence[ClipSource], others: Sequence[ClipSource]) -> list[ClipSource]:
    """The `clips` whose video is also that of one of the `others`: the same file, or a copy of it.

    Of files that are not in a cache, only those are read that have the same size as one of the other list.
    """
    if not clips:
        return []
    known = [other.footage() for other in others]
    paths = {footage.path.resolve() for footage in known}
    by_size: dict[int | None, list[Footage]] = {}
    for footage in known:
        by_size.setdefault(footage.size, []).append(footage)
    by_size.pop(None, None)
    found = []
    for clip in clips:
        footage = clip.footage()
        alike = by_size.get(footage.size, [])
        if footage.path.resolve() in paths or (alike and _digest(footage) in map(_digest, alike)):
            found.append(clip)
    return found


def _digest(footage: Footage) -> str:
    return footage.sha256 or file_sha256(footage.path)
