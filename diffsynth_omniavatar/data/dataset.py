"""From a list of clips to training samples with the random choices of the authors' recipe.

dataset = OmniAvatarDataset(read_clips("metadata.csv", "data"), settings=ClipSettings(), recipe=Recipe())
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..system.messages import counted
from .cache_index import StaleCacheError
from .clips import NETWORKS, BadSampleError, ClipFacts, ClipSettings, ClipSource, reason_of
from .recipe import Recipe, draw_below
from .sample import TrainingSample, batch_fields
from .scan import Scan, rank_and_world, scan_clips

logger = logging.getLogger(__name__)


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
        tables: the weights of the tables that the clips come from, and how many clips each has, in their order; an
            item's clips are of one table. None for one table. See `epoch_indices`.
        scan: of these clips with these settings; None scans them here. Clips with faults are left out.
        strict: raise BadSampleError instead of leaving clips out.

    Raises:
        BadSampleError: with `strict`, a clip has a fault.
        StaleCacheError: the cache was made of other clips or with other settings.
        ValueError: no clip is usable, an epoch has none of a table, or batch_size or repeat is less than 1.
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
        tables: Sequence[tuple[float, int]] | None = None,
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
        tables = [(1.0, len(clips))] if tables is None else tables
        self.weights = [weight for weight, _ in tables]
        self.table_of = [table for table, (_, count) in enumerate(tables) for _ in range(count)]
        """Place of a clip -> place of its table."""
        self.step = 0
        """The optimizer step that takes the next item."""
        self.skipped = 0
        """Items of this process (a worker of a loader is one) in whose place another was taken."""
        self._refuse_faults()
        self.items = self._group()
        self.shares = [*self._shares()]
        for weight, (items, rounds, more) in zip(self.weights, self.shares, strict=True):
            if not rounds + more:
                raise ValueError(
                    f"a table of {counted(len(items), 'sample')} has none in an epoch with weight {weight:g}: a larger "
                    "weight, or more clips"
                )

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
        if faults and rank_and_world()[0] == 0:
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
                buckets.setdefault((self.table_of[index], *facts.bucket), []).append(index)
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
        return sum(len(items) * rounds + more for items, rounds, more in self.shares)

    def _shares(self) -> Iterator[tuple[list[int], int, int]]:
        """For each table: the places of its items, how often an epoch has all of them, and how many once more."""
        for table, weight in enumerate(self.weights):
            items = [place for place, members in enumerate(self.items) if self.table_of[members[0]] == table]
            rounds, rest = divmod(weight * self.repeat, 1)
            yield items, int(rounds), round(rest * len(items))

    def epoch_indices(self, generator: torch.Generator) -> list[int]:
        """The indices of an epoch, in no order.

        Of a table with weight w, an epoch has each item floor(w) times, and some of its items once more, drawn with the
        generator, so that all are w times as many as the table has. With `repeat` r, w r stands for w.
        """
        found = []
        for items, rounds, more in self.shares:
            drawn = torch.randperm(len(items), generator=generator)[:more].tolist() if more else []
            found += [turn * len(self.items) + place for turn in range(rounds) for place in items]
            found += [rounds * len(self.items) + items[number] for number in drawn]
        return found

    @property
    def mixture(self) -> str:
        """The weights, where they are not all 1."""
        return "" if {*self.weights} == {1.0} else " ".join(f"{weight:g}" for weight in self.weights)

    def begin_step(self, step: int) -> None:
        """Called before each item with the number of the optimizer step that takes it, from 0."""
        self.step = step

    def describe(self, index: int) -> str:
        """The clips of an item, for messages."""
        return ", ".join(self.clips[member].name for member in self.items[index % len(self.items)])

    def __getitem__(self, index: int) -> TrainingSample:
        """A sample.

        Raises:
            BadSampleError: with `strict`, a clip cannot be read; else, none of all can.
            IndexError: there are not so many.
        """
        first = range(len(self.items) * math.ceil(max(self.weights) * self.repeat))[index]
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
        longest = min(one.longest for one in facts)
        num_frames = recipe.draw_length(recipe.longest_at(self.step, longest))
        prefix_frames = recipe.draw_prefix(num_frames)
        if facts[0].is_still:  # as generating starts from a portrait
            prefix_frames = 1
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
            **batch_fields(loaded),
        )

    def _load(self, index: int, num_frames: int, reference: float) -> dict[str, Any]:
        clip = self.clips[index]
        try:
            return clip.load(self.facts(index), self.settings, num_frames, reference)
        except BadSampleError:
            raise
        except Exception as error:
            raise BadSampleError(clip.name, [reason_of(error)]) from error
