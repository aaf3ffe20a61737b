"""`omniavatar prepare`: raw footage to a training set.

    omniavatar prepare footage/ more/*.mov --out data --mode v2v
    omniavatar train --dataset_metadata_path data/metadata.csv --dataset_base_path data ...

Each source is looked at (scenes, faces, speech), planned and cut on its own, by as many processes as wanted; then the
clips of all are compared, described and split. What is finished is kept in the output folder, so that a run that was
stopped goes on.

Trade-off: a source is decoded twice, once to look and once to cut, so that no picture has to be kept in between.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...media.timeline import SAMPLE_RATE
from ...media.video import VideoInfo, probe_video
from ...media.voice import speech_spans
from ...system.atomic import clear_leftovers, write_text_atomically
from ...system.output_folder import reserved
from ...system.workers import Done, work_through
from ..clips import reason_of
from .captions import Captions
from .duplicates import reject_duplicates
from .process import SourceWork
from .records import SourceRecord
from .report import write_report
from .settings import PrepareSettings
from .source_state import STATE, SourceState, file_facts
from .sources import Shard, Source
from .split import Person, people_of, splits
from .sync import Sync
from .tables import write_tables

VALIDATION_SHARE = 0.05
SHARDS = "shards"
"""Folder in the output folder that holds a locked folder for each machine at work."""


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What a run of `prepare` has made."""

    sources: tuple[SourceRecord, ...]
    """In the order that they were given in; of a shard, its own."""

    @property
    def kept(self) -> int:
        """Number of kept clips."""
        return sum(clip.is_kept for source in self.sources for clip in source.clips)

    @property
    def kept_seconds(self) -> float:
        return sum(clip.seconds for source in self.sources for clip in source.clips if clip.is_kept)

    @property
    def rejected(self) -> int:
        """Number of rejected clips; sources of which nothing was made count as one each."""
        clips = sum(not clip.is_kept for source in self.sources for clip in source.clips)
        return clips + sum(bool(source.reasons) for source in self.sources)

    def reasons(self) -> Counter[str]:
        """How often each reason was met; a clip can have several."""
        found = [source.reasons for source in self.sources]
        found += [clip.reasons for source in self.sources for clip in source.clips]
        return Counter(reason for reasons in found for reason in reasons)


def prepare(
    sources: Sequence[Source],
    out: str | Path,
    settings: PrepareSettings,
    *,
    workers: int = 1,
    shard: Shard | None = None,
    sync: Sync | None = None,
    captions: Captions | None = None,
    validation_share: float = VALIDATION_SHARE,
    person: Person = "file",
    on_progress: Callable[[Source, float], None] = lambda source, part: None,
    on_source: Callable[[SourceRecord], None] = lambda record: None,
    on_captions: Callable[[float], None] = lambda part: None,
) -> PrepareReport:
    """Make a training set of raw files, or complete one.

    Args:
        sources: from `find_sources`.
        out: folder to write. What an earlier run made there of the same files with the same settings is kept.
        settings: of the clips.
        workers: processes that work on the sources; 1 for this one alone.
        shard: the part of the sources that this machine works on. With several, no tables are written: run without
            one when all machines are done.
        sync: how to measure whether lips and sound fit.
        captions: where captions come from.
        validation_share: part of the people whose clips validate.
        person: what stands for a person; "face" needs the packages of `metrics.identity`.
        on_progress: called with a source and the part of it that is done.
        on_source: called with the record of each source when it is done.
        on_captions: called with the part of the captions that a command has written.

    Raises:
        ValueError: another run writes to the folder.
        OSError: the folder cannot be written; what is done is kept.
    """
    out, shard = Path(out), shard or Shard()
    with _reserved(out, shard):
        speech_spans(torch.zeros(SAMPLE_RATE))  # what it lacks is no fault of the sources
        clear_leftovers(out / STATE)
        work = SourceWork(out=out, settings=settings, sync=sync, embeds=person == "face")
        records = dict[Source, SourceRecord]()
        for done in work_through(work, shard.of(sources), workers, on_progress):
            records[done.item] = _record_of(done)
            on_source(records[done.item])
        ordered = [records[source] for source in shard.of(sources)]
        if shard.total > 1:
            return PrepareReport(sources=tuple(ordered))
        ordered = _finished(ordered, out, settings, captions or Captions(), on_captions)
        ordered = _with_split(ordered, validation_share, person)
        write_tables(out, ordered, settings.rules, settings.mode)
        write_report(out, ordered, settings.rules, settings.mode)
        return PrepareReport(sources=tuple(ordered))


@contextlib.contextmanager
def _reserved(out: Path, shard: Shard) -> Iterator[None]:
    """The folder for this run alone; machines with parts of the sources share it, but not a part."""
    with contextlib.ExitStack() as stack:
        if shard.total > 1:
            _wait_for(out)
            stack.enter_context(reserved(out / SHARDS / f"{shard.number}-of-{shard.total}"))
        else:
            stack.enter_context(reserved(out))
            for part in sorted((out / SHARDS).glob("*-of-*")):
                stack.enter_context(reserved(part))
        yield


def _wait_for(out: Path) -> None:
    """Raise if a run on all sources has reserved the folder; other parts do so only for an instant, as here."""
    for tries_left in reversed(range(20)):
        try:
            with reserved(out):
                return
        except ValueError:
            if not tries_left:
                raise
            time.sleep(0.1)


def _record_of(done: Done[Source, SourceRecord]) -> SourceRecord:
    if done.result is not None:
        return done.result
    path = done.item.path
    return SourceRecord(path=str(path), **file_facts(path), reasons={"unreadable": f"{path}: {done.error}"})


def _finished(
    sources: Sequence[SourceRecord],
    out: Path,
    settings: PrepareSettings,
    captions: Captions,
    on_captions: Callable[[float], None],
) -> list[SourceRecord]:
    """Without near-duplicates, and with captions."""
    clips = reject_duplicates([clip for source in sources for clip in source.clips])
    clips = captions.write(clips, out, on_captions)
    if settings.directories:
        for clip in clips:
            if clip.is_kept and clip.video is not None:
                write_text_atomically(out / clip.video / "prompt.txt", clip.prompt + "\n")
    waiting = iter(clips)
    return [replace(source, clips=tuple(next(waiting) for _ in source.clips)) for source in sources]


def _with_split(sources: Sequence[SourceRecord], share: float, person: Person) -> list[SourceRecord]:
    kept = [clip for source in sources for clip in source.clips if clip.is_kept]
    split = splits(people_of(kept, person), share)
    return [
        replace(
            source,
            clips=tuple(replace(clip, split=split[clip.source]) if clip.is_kept else clip for clip in source.clips),
        )
        for source in sources
    ]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What there is to do, before anything is done."""

    sources: int
    finished: int
    """Those of which there is a record in the output folder, made with whatever settings."""
    seconds: float
    """Of all that can be opened."""
    faults: tuple[tuple[str, str], ...]
    """Path and reason of those that cannot be opened or have no sound."""


def survey(sources: Sequence[Source], out: str | Path, threads: int = 8) -> Survey:
    """Count files and seconds; of each file all packets are read, but only the first picture is decoded."""

    def opened(source: Source) -> VideoInfo | str:
        try:
            info = probe_video(source.path)
        except Exception as error:
            return reason_of(error)
        return info if info.has_sound else f"{source.path}: has no sound track"

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(opened, sources))
    faults = [(str(s.path), what) for s, what in zip(sources, found, strict=True) if isinstance(what, str)]
    states = [SourceState(source=source, out=Path(out)) for source in sources]
    return Survey(
        sources=len(sources),
        finished=sum(state.read_record() is not None for state in states),
        seconds=sum(info.duration for info in found if isinstance(info, VideoInfo)),
        faults=tuple(faults),
    )
