"""One source from its file to its clips and its record: what a worker does."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...system.workers import Tell
from ..clips import reason_of
from ..figure_rules import faults
from .clip_figures import clip_figures
from .crops import crop_of
from .cut import Cutting, clip_files, cut_clips, remove_strays
from .duplicates import fingerprint
from .look import LOOK_VERSION, FileFacts, Look, SourceFault, load_waveform, look_at
from .records import ClipRecord, SourceRecord
from .settings import PrepareSettings
from .source_state import SourceState, file_facts
from .sources import Source
from .spans import plan_spans
from .sync import Sync, measure_sync

LOOK_PART = 0.6
"""Part of the work on a source that is done when it has been looked at."""


@dataclass(frozen=True, kw_only=True)
class SourceWork:
    """Makes the clips of a source; to be pickled, so that other processes can do it."""

    out: Path
    settings: PrepareSettings
    sync: Sync | None = None
    """Measures whether lips and sound fit; None for clips whose sync is not known."""
    embeds: bool = False
    """Tell people by their faces."""

    def __call__(self, source: Source, tell: Tell = lambda part: None) -> SourceRecord:
        """The record of a source, whose clips are in the output folder then.

        What an earlier run made of the same file with the same settings is kept. Nothing that is wrong with the source
        is raised: it is in the record.

        Raises:
            OSError: the output folder cannot be written.
        """
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # the other cores have sources of their own
        state = SourceState(source=source, out=self.out)
        try:
            file = file_facts(source.path)
            if source.path.is_dir():
                os.scandir(source.path).close()  # one that cannot be searched says why
            os.fspath(source.path).encode()
        except OSError as error:
            return _unusable(source, str(error.strerror))
        except UnicodeEncodeError:
            return _unusable(source, "the name is not UTF-8; rename it")
        made_with = self._made_with(file)
        before = state.read_record()
        if before is not None and before[1] == made_with and self._is_whole(before[0].clips):
            return _called(before[0], str(source.path))
        reusable = self._reusable(before, file)
        if not reusable:
            state.forget_record()  # its clips are about to be overwritten
        try:
            record = self._made(source, state, file, tell, reusable)
        except OSError:  # of the output folder: what reading raises is worded
            raise
        except Exception as error:  # libraries break anywhere on damaged files; the next run tries again
            remove_strays(self.out, source.key, [])
            return _unusable(source, reason_of(error))
        if not _is_unchanged(source.path, file):
            remove_strays(self.out, source.key, [])
            state.forget_record()
            return _unusable(source, "it changed while it was read; run again when it is complete")
        remove_strays(self.out, source.key, [path for clip in record.clips for path in clip_files(clip, self.settings)])
        state.write_record(record, made_with)
        return record

    def _made_with(self, file: FileFacts) -> dict[str, Any]:
        return {
            "file": dict(file),
            "look": LOOK_VERSION,
            "settings": json.loads(self.settings.to_json()),
            "sync": None if self.sync is None else self.sync.identity(),
            "embeds": self.embeds,
        }

    def _is_whole(self, clips: Collection[ClipRecord]) -> bool:
        return all((self.out / path).exists() for clip in clips for path in clip_files(clip, self.settings))

    def _reusable(
        self, before: tuple[SourceRecord, Mapping[str, Any]] | None, file: FileFacts
    ) -> dict[str, ClipRecord]:
        """Clips and strips of an earlier run that differ from those of this one in nothing but which are kept."""
        if before is None:
            return {}
        now = self._made_with(file)
        then = {**before[1], "settings": {**before[1]["settings"], "bounds": now["settings"]["bounds"]}}
        if then != now:
            return {}
        return {clip.name: clip for clip in before[0].clips if clip.strip is not None and self._is_whole([clip])}

    def _made(
        self,
        source: Source,
        state: SourceState,
        file: FileFacts,
        tell: Tell,
        reusable: Mapping[str, ClipRecord],
    ) -> SourceRecord:
        record = SourceRecord(path=str(source.path), **file)
        try:
            look = state.read_look(file)
            if look is None:
                look = look_at(source.path, lambda part: tell(LOOK_PART * part))
                state.write_look(look, file)
            record = _with_facts(record, look)
            return replace(record, clips=tuple(self._clips(source, state, look, tell, reusable)))
        except SourceFault as fault:
            return replace(record, reasons={fault.reason: str(fault)})

    def _clips(
        self, source: Source, state: SourceState, look: Look, tell: Tell, reusable: Mapping[str, ClipRecord]
    ) -> list[ClipRecord]:
        planned = self._planned(source, look)
        kept = [cutting for cutting in planned if cutting.record.is_kept]
        waveform = load_waveform(source.path) if kept else None
        if self.sync is not None and waveform is not None:
            planned = self._synced(source, look, planned, waveform)
        done, cuttings = list[ClipRecord](), list[Cutting]()
        for cutting in planned:
            old = reusable.get(cutting.record.name)
            if old is None or (cutting.record.is_kept and old.video is None):
                cuttings.append(cutting)
            else:
                video = old.video if cutting.record.is_kept else None
                fingerprint = {**old.fingerprint, **cutting.record.fingerprint}
                done.append(replace(cutting.record, strip=old.strip, video=video, fingerprint=fingerprint))
        done += cut_clips(
            source.path,
            waveform,
            cuttings,
            self.out,
            state.scratch,
            self.settings,
            lambda part: tell(LOOK_PART + (1 - LOOK_PART) * part),
        )
        return sorted(done, key=lambda clip: (clip.start, clip.name))

    def _planned(self, source: Source, look: Look) -> list[Cutting]:
        planned = []
        for span in plan_spans(look, self.settings.shortest, self.settings.longest):
            crop = None
            if span.track is not None and not span.reasons:
                crop = crop_of(look, look.tracks[span.track], span.frames, self.settings)
            figures = clip_figures(look, span, crop)
            reasons = span.reasons or faults(figures, self.settings.rules)
            who = "" if span.track is None else f"-face{span.track}"
            record = ClipRecord(
                name=f"{source.key}/{span.start:06}-{len(span.frames):03}{who}",
                source=str(source.path),
                start=span.start,
                frames=len(span.frames),
                track=span.track,
                figures=figures,
                reasons=reasons,
                size=None if crop is None else crop.size,
                fingerprint=fingerprint(look, span.frames),
            )
            track = look.tracks[span.track] if self.embeds and span.track is not None else None
            planned.append(Cutting(record=record, crop=crop, embedded=track))
        return planned

    def _synced(self, source: Source, look: Look, planned: list[Cutting], waveform: Any) -> list[Cutting]:
        """With the sync figures of the clips that nothing else is wrong with."""
        assert self.sync is not None
        places = {
            cutting.record.name: (look.tracks[cutting.record.track], cutting.frames)
            for cutting in planned
            if cutting.record.is_kept and cutting.record.track is not None
        }
        measured = measure_sync(source.path, waveform, places, look.duplicates, self.sync)
        return [
            self._with_sync(cutting, measured[name]) if (name := cutting.record.name) in measured else cutting
            for cutting in planned
        ]

    def _with_sync(self, cutting: Cutting, measured: tuple[float, int]) -> Cutting:
        confidence, offset = measured
        figures = {**cutting.record.figures, "sync_confidence": confidence, "sync_offset": float(offset)}
        record = replace(cutting.record, figures=figures, reasons=faults(figures, self.settings.rules))
        return replace(cutting, record=record, sound_offset=offset)


def _is_unchanged(path: Path, file: FileFacts) -> bool:
    try:
        return file_facts(path) == file
    except OSError:
        return False


def _called(record: SourceRecord, path: str) -> SourceRecord:
    """The record of a file that is called otherwise now, as by another relative path."""
    return replace(record, path=path, clips=tuple(replace(clip, source=path) for clip in record.clips))


def _unusable(source: Source, reason: str) -> SourceRecord:
    name = os.fsencode(source.path).decode(errors="replace")
    text = reason if reason.startswith(name) else f"{name}: {reason}"
    return SourceRecord(path=name, size=0, modified_ns=0, reasons={"unreadable": text})


def _with_facts(record: SourceRecord, look: Look) -> SourceRecord:
    return replace(
        record,
        seconds=look.frames / 25,
        height=look.height,
        width=look.width,
        frame_rate=look.frame_rate,
        scenes=len(look.cuts) + 1,
        tracks=len(look.tracks),
        speech_seconds=sum(end - start for start, end in look.speech),
    )
