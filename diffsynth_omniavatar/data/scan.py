"""Looks at every clip of a list once: its size and length, or its faults; all processes get the same result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from .cache import CachedClip
from .cache_index import StaleCacheError
from .clips import BadSampleError, ClipFacts, ClipSettings, ClipSource, reason_of
from .recipe import Recipe

SCAN_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with a clip."""

    index: int
    """Place of the clip in the list."""
    clip: str
    reason: str
    is_stale: bool = False
    """The clip is fine, but its cache entry is of an earlier version of it."""

    @property
    def told(self) -> str:
        """The reason, without the clip's name before it."""
        return self.reason.removeprefix(f"{self.clip}: ")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What `scan_clips` found; equal on all processes."""

    facts: tuple[ClipFacts | None, ...]
    """By clip; None for those with faults."""
    faults: tuple[Fault, ...]
    """In the order of the clips; a clip can have several."""

    @property
    def bad_clips(self) -> int:
        """Number of clips with faults."""
        return self.facts.count(None)


def scan_clips(
    clips: Sequence[ClipSource],
    settings: ClipSettings,
    recipe: Recipe,
    *,
    deep: bool = False,
    on_clip: Callable[[], None] | None = None,
) -> Scan:
    """Look at every clip, without decoding more than its first picture.

    In a distributed run every process must call it: each looks at its share, and all get the whole result.

    Args:
        clips: from `read_clips`.
        settings, recipe: of the samples.
        deep: decode and read everything; see `check_dataset`.
        on_clip: called after each clip of this process, from several threads.

    Raises:
        StaleCacheError: the clips come from a cache that was made otherwise. Whatever else a clip raises is its fault.
    """
    for cache in {id(clip.cache): clip.cache for clip in clips if isinstance(clip, CachedClip)}.values():
        cache.check(settings)

    def inspect(index: int) -> ClipFacts | list[Fault]:
        try:
            return clips[index].inspect(settings, recipe, deep)
        except BadSampleError as error:
            return [Fault(index=index, clip=clips[index].name, reason=reason) for reason in error.reasons]
        except StaleCacheError as error:
            return [Fault(index=index, clip=clips[index].name, reason=str(error), is_stale=True)]
        except Exception as error:
            return [Fault(index=index, clip=clips[index].name, reason=reason_of(error))]
        finally:
            if on_clip is not None:
                on_clip()

    rank, world = rank_and_world()
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        share = list(pool.map(inspect, range(rank, len(clips), world)))
    found: list[Any] = [None] * len(clips)
    for other, part in enumerate(_gather(share)):
        found[other::world] = part
    faults = tuple(fault for result in found if isinstance(result, list) for fault in result)
    return Scan(facts=tuple(result if isinstance(result, ClipFacts) else None for result in found), faults=faults)


def check_dataset(clips: Sequence[ClipSource], settings: ClipSettings, recipe: Recipe, **options: Any) -> list[Fault]:
    """All faults of all clips: every picture and sound decoded, every tensor read.

    Missing files, no or a silent sound, unreadable or too short clips, empty prompts, tensors of wrong shape or with
    NaN, sizes off the grid, cache entries of changed clips. `options` are those of `scan_clips`.
    """
    return list(scan_clips(clips, settings, recipe, deep=True, **options).faults)


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _gather(share: Any) -> list[Any]:
    """What every process gave, in their order."""
    _, world = rank_and_world()
    if world == 1:
        return [share]
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, share)
    return gathered
