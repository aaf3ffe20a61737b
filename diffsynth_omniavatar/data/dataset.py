"""From a list of clips to training samples with the random choices of the authors' recipe.

    dataset = OmniAvatarDataset(read_clips("metadata.csv", "data"), settings=ClipSettings(), recipe=Recipe())

`scan_clips` looks at every clip once: its size and length decide what batches with what; its faults are named and it is
left out, on all processes alike. `check_dataset` looks at everything in the clips, before any training.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..media.timeline import MAX_TOKENS
from ..model.config import IMAGE_SIZES, Conventions
from .sources import (
    NETWORKS,
    BadSampleError,
    CachedClip,
    ClipFacts,
    ClipSettings,
    ClipSource,
    Recipe,
    StaleCacheError,
    draw_below,
    read_clips,
)

logger = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------------------------- sample


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSample:
    """B clips of one size and length; all tensors are on the CPU. F = 4T - 3 video frames, T latent frames, h = H/8.

    Of each part either the live fields or the cached ones are given; the others are None.
    """

    sources: list[str]
    """Names of the clips."""
    num_frames: int
    height: int
    width: int
    prefix_frames: int
    """Known frames at the start, less than num_frames; 0 for none."""
    drop_text: Tensor
    """Bool [B]: takes the empty prompt."""
    drop_audio: Tensor
    """Bool [B]: takes the features of silence."""
    drop_prefix: Tensor
    """Bool [B]: the known latents are replaced by noise."""

    target_video: Tensor | None = None
    """uint8 [B, F, H, W, 3]."""
    reference_image: Tensor | None = None
    """uint8 [B, H, W, 3]."""
    mouth_mask: Path | None = None
    """V2V: image of the mask; None for the built-in one, or with `mouth_mask_latents`."""
    reference_video: Tensor | None = None
    """uint8 [B, F, H, W, 3]: another part of the clip than the target."""
    waveforms: list[Tensor] | None = None
    """float32 [n], mono at 16 kHz, of the whole clip each; features made of them are cut to the frames."""
    prompts: list[str] | None = None

    input_latents: Tensor | None = None
    """[B, 16, T, h, w]."""
    reference_latents: Tensor | None = None
    """[B, 16, 1, h, w]."""
    masked_latents: Tensor | None = None
    """[B, 16, T, h, w]."""
    mouth_mask_latents: Tensor | None = None
    """[1, 1, T, h, w], 1 where the mouth is."""
    reference_sequence_latents: Tensor | None = None
    """[B, 16, T, h, w]."""
    audio_features: Tensor | None = None
    """[B, F, C], one row beside each frame."""
    silent_features: Tensor | None = None
    """[F, C] of F frames of silence."""
    context: Tensor | None = None
    """[B, L, D]."""
    empty_context: Tensor | None = None
    """[1, L, D] of the empty prompt."""


# ----------------------------------------------------------------------------------------------------------------- scan

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
        StaleCacheError: the clips come from a cache that was made otherwise.
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
        finally:
            if on_clip is not None:
                on_clip()

    rank, world = _process()
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


def _process() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _gather(share: Any) -> list[Any]:
    """What every process gave, in their order."""
    _, world = _process()
    if world == 1:
        return [share]
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, share)
    return gathered


# -------------------------------------------------------------------------------------------------------------- dataset


class OmniAvatarDataset(torch.utils.data.Dataset[TrainingSample]):
    """Samples with the recipe's random choices, drawn from python's global generator, which the training loop seeds.

    An item is `batch_size` clips of one bucket: of one size and with the same live parts. It is drawn one length,
    limited by its shortest clip, and one prefix; each of its clips is drawn a reference frame and its own dropouts.
    Samples begin where the clip begins and end at random; the reference may come from the whole clip.

    Which clips go together is fixed: a bucket is shuffled once, by a fixed seed, and then sorted by length, so that
    little is cut. So an epoch has every clip once. Where a bucket does not fill its last item, others of the same
    bucket complete it, drawn anew each time.

    A clip that turns out unreadable when it is loaded is named in the log, and the next item that can be read takes
    its item's place. That depends on the data alone, so all processes, and a resumed run, do the same.

    Args:
        clips: from `read_clips`.
        settings: what the model takes.
        recipe: the random choices.
        batch_size: clips in an item.
        repeat: how often an epoch has every item.
        scan: of these clips with these settings; None scans them here. Clips with faults are left out.
        strict: raise BadSampleError instead of leaving clips out.

    Raises:
        BadSampleError: with `strict`, a clip has a fault.
        StaleCacheError: the cache was made of other clips or with other settings.
        ValueError: no clip is usable, or batch_size or repeat is less than 1.
    """

    load_from_cache = False
    """The host then calls `model(sample)`."""

    def __init__(
        self,
        clips: Sequence[ClipSource],
        *,
        settings: ClipSettings,
        recipe: Recipe,
        batch_size: int = 1,
        repeat: int = 1,
        scan: Scan | None = None,
        strict: bool = False,
    ) -> None:
        if batch_size < 1 or repeat < 1:
            raise ValueError(f"batch_size {batch_size} and repeat {repeat} must be at least 1")
        self.clips = list(clips)
        self.settings = settings
        self.recipe = recipe
        self.batch_size = batch_size
        self.repeat = repeat
        self.strict = strict
        self.scan = scan_clips(clips, settings, recipe) if scan is None else scan
        self.skipped = 0
        """Items of this process (a worker of a loader is one) in whose place another was taken."""
        self._refuse_faults()
        self.items = self._group()

    def _refuse_faults(self) -> None:
        faults = self.scan.faults
        stale = [fault.reason for fault in faults if fault.is_stale]
        if stale:
            more = f"; and {len(stale) - 3} more" if len(stale) > 3 else ""
            raise StaleCacheError(f"the cache is stale: {'; '.join(stale[:3])}{more}")
        if faults and self.strict:
            first = faults[0]
            raise BadSampleError(first.clip, [fault.reason for fault in faults if fault.index == first.index])
        if self.scan.bad_clips == len(self.clips):
            shown = f": {faults[0].clip}: {faults[0].reason}" if faults else ""
            raise ValueError(f"none of {len(self.clips)} clips can be used{shown}")
        if faults and _process()[0] == 0:
            for fault in faults:
                logger.warning("left out: %s: %s", fault.clip, fault.reason)
            logger.warning("%d of %d clips are left out", self.scan.bad_clips, len(self.clips))

    def facts(self, index: int) -> ClipFacts:
        """Of a clip that is not left out, by its place in the list."""
        facts = self.scan.facts[index]
        assert facts is not None
        return facts

    def _group(self) -> list[tuple[int, ...]]:
        """The items, each the places of up to `batch_size` clips of one bucket."""
        buckets: dict[tuple[Any, ...], list[int]] = {}
        for index, facts in enumerate(self.scan.facts):
            if facts is not None:
                buckets.setdefault(facts.bucket, []).append(index)
        if self.batch_size > 1:
            for members in buckets.values():
                random.Random(0).shuffle(members)  # neighbours in the list are often of one speaker
                members.sort(key=lambda index: self.facts(index).longest)
        self.buckets = {index: members for members in buckets.values() for index in members}
        return [
            tuple(members[start : start + self.batch_size])
            for members in buckets.values()
            for start in range(0, len(members), self.batch_size)
        ]

    def needed_networks(self) -> dict[str, str]:
        """The networks of the pipeline that the samples need, each with what for; none with a complete cache."""
        needed: dict[str, str] = {}
        for index in self.buckets:
            for part in sorted(self.facts(index).live):
                needed.setdefault(NETWORKS[part], f"the {part} of {self.clips[index].name}")
        return needed

    def __len__(self) -> int:
        return len(self.items) * self.repeat

    def describe(self, index: int) -> str:
        """The clips of an item, for messages."""
        return ", ".join(self.clips[member].name for member in self.items[index % len(self.items)])

    def __getitem__(self, index: int) -> TrainingSample:
        """A sample.

        Raises:
            BadSampleError: with `strict`, a clip cannot be read; else, none of all can.
            IndexError: there are not so many.
        """
        first = range(len(self))[index]
        for offset in range(len(self.items)):
            members = self.items[(first + offset) % len(self.items)]
            try:
                return self._sample(members)
            except BadSampleError as error:
                if self.strict:
                    raise
                self.skipped += 1
                logger.warning("%s; the next sample takes its place (number %d so far)", error, self.skipped)
        raise BadSampleError(self.describe(index), ["neither it nor any other clip can be read"])

    def _complete(self, members: tuple[int, ...]) -> list[int]:
        """The clips of an item, with others of the bucket, drawn, where there are too few."""
        completed, others = [*members], [index for index in self.buckets[members[0]] if index not in members]
        while len(completed) < self.batch_size:
            if not others:
                others = [*self.buckets[members[0]]]
            completed.append(others.pop(draw_below(len(others))))
        return completed

    def _sample(self, members: tuple[int, ...]) -> TrainingSample:
        indices = self._complete(members)
        facts, recipe = [self.facts(index) for index in indices], self.recipe
        num_frames = recipe.draw_length(min(one.longest for one in facts))
        prefix_frames = recipe.draw_prefix(num_frames)
        references = [random.random() for _ in indices]
        drops: dict[str, Any] = {
            name: torch.tensor([random.random() < probability for _ in indices])
            for name, probability in (
                ("drop_text", recipe.text_drop_prob),
                ("drop_audio", recipe.audio_drop_prob),
                ("drop_prefix", recipe.prefix_drop_prob),
            )
        }
        loaded = [
            self._load(index, num_frames, reference) for index, reference in zip(indices, references, strict=True)
        ]
        return TrainingSample(
            sources=[self.clips[index].name for index in indices],
            num_frames=num_frames,
            height=facts[0].height,
            width=facts[0].width,
            prefix_frames=prefix_frames,
            **drops,
            **_batch(loaded),
        )

    def _load(self, index: int, num_frames: int, reference: float) -> dict[str, Any]:
        clip = self.clips[index]
        try:
            return clip.load(self.facts(index), self.settings, num_frames, reference)
        except BadSampleError:
            raise
        except (ValueError, OSError) as error:
            raise BadSampleError(clip.name, [str(error)]) from error


SHARED_FIELDS = ("mouth_mask", "mouth_mask_latents", "silent_features", "empty_context")
"""What the clips of a batch have in common."""


def _batch(clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a sample from those of its clips."""
    fields: dict[str, Any] = {}
    for name in clips[0]:
        values = [clip[name] for clip in clips]
        if name in SHARED_FIELDS:
            fields[name] = values[0]
        elif name in ("waveforms", "prompts"):
            fields[name] = values
        else:
            fields[name] = torch.stack(values)
    return fields


# ----------------------------------------------------------------------------------------------------- the command line


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which clips there are and what the model takes of them."""
    parser.add_argument(
        "data", metavar="DATA", help="table of clips (.csv, .json, .jsonl), list of directories, or cache"
    )
    parser.add_argument("--dataset_base_path", help="folder that the paths start from (default: that of DATA)")
    parser.add_argument("--omniavatar_mode", choices=["i2v", "v2v"], default="i2v", help="(default: i2v)")
    parser.add_argument("--use_ref_sequence", action="store_true", help="V2V with 65 channels")
    parser.add_argument("--first_frame", choices=["known", "masked"], default="known", help="V2V (default: known)")
    parser.add_argument(
        "--mouth_mask", type=Path, help="V2V: image of the mouth mask, white is kept (default: built-in)"
    )
    parser.add_argument("--height", type=int, help="of all samples, with --width (default: by --image_sizes)")
    parser.add_argument("--width", type=int)
    parser.add_argument(
        "--image_sizes", choices=list(IMAGE_SIZES), default="720", help="upstream's sizes (default: 720)"
    )
    parser.add_argument("--num_frames", type=int, help="most frames of a sample, 4n+1 (default: by --max_tokens)")
    parser.add_argument("--min_frames", type=int, help="fewest frames (default: the longest prefix and four more)")
    parser.add_argument("--max_tokens", type=int, default=MAX_TOKENS, help=f"(default: {MAX_TOKENS})")
    parser.add_argument("--prefix_frames", default="1,5,9,13", help="known frames at the start (default: 1,5,9,13)")


def data_of(args: argparse.Namespace) -> tuple[list[ClipSource], ClipSettings, Recipe]:
    """Clips, settings and recipe from the flags of `add_data_arguments`.

    Raises:
        ValueError: a flag does not fit.
    """
    if args.use_ref_sequence and args.omniavatar_mode != "v2v":
        raise ValueError("--use_ref_sequence goes with --omniavatar_mode v2v")
    prefixes = tuple(int(length) for length in args.prefix_frames.split(",") if length)
    settings = ClipSettings(
        in_dim=33 if args.omniavatar_mode == "i2v" else 65 if args.use_ref_sequence else 49,
        conventions=Conventions(first_frame=args.first_frame, image_sizes=IMAGE_SIZES[args.image_sizes]),
        height=args.height,
        width=args.width,
        mouth_mask=args.mouth_mask,
    )
    recipe = Recipe(
        prefix_frames=prefixes, max_tokens=args.max_tokens, num_frames=args.num_frames, min_frames=args.min_frames
    )
    return read_clips(args.data, args.dataset_base_path), settings, recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar check`."""
    add_data_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """`omniavatar check`: list all faults; the exit code is 1 if there are any."""
    from rich.console import Console
    from rich.table import Table

    clips, settings, recipe = data_of(args)
    console = Console()
    faults = check_dataset(clips, settings, recipe)
    if faults:
        table = Table("clip", "fault")
        for fault in faults:
            table.add_row(fault.clip, fault.reason)
        console.print(table)
    bad = len({fault.index for fault in faults})
    console.print(f"{len(clips)} clips, {bad} of them with faults")
    return 1 if faults else 0
