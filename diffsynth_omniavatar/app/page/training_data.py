"""What a path holds that training can read: a table, a cache, what `omniavatar prepare` wrote, or a folder of clips."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...data.cache_index import CACHE_INDEX
from ...data.clips import ClipSource
from ...data.prepare.sources import SUFFIXES
from ...data.prepare.tables import TRAIN, VALIDATION
from ...data.prepared import PreparedClip
from ...data.tables import COLUMNS, read_clips
from ...data.video_clip import VideoClip
from ...media.video import iter_frames
from ...system.atomic import write_atomically, write_text_atomically
from ...system.messages import counted
from ...system.text_files import read_text
from .readable import Readable

CAPTION = "A realistic video of a person speaking to the camera."
"""Of clips in a folder that have no text beside them."""
HELD_OUT_SHARE = 10
"""Of so many clips one validates, where no table says which."""
TABLE, HELD_OUT, SAMPLES = "clips.csv", "held_out.csv", "validation.txt"
"""Files that are written into a run's folder."""
REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Clips to train on, and others to validate on."""

    path: Path
    """What was given: a table, or a folder."""
    is_cache: bool
    clips: Sequence[ClipSource]
    held_out: Sequence[ClipSource]
    tables: tuple[Path, Path | None] | None = None
    """Of what trains and what validates, as the launcher reads them; None where they have to be written."""

    def told(self) -> str:
        """How many clips there are."""
        return f"{counted(len(self.clips), 'clip')} to train on, {len(self.held_out)} held out to validate"

    def hindrance(self, bad: Sequence[int]) -> str | None:
        """Why one cannot train without some clips: what is to be mended; None where one can.

        Args:
            bad: numbers of clips, those that train first.
        """
        count = len(self.clips)
        if self.tables is not None and any(index >= count for index in bad):
            return "Clips that are held out to validate have faults: mend them, or take them out of their table."
        if len(bad) == count + len(self.held_out) or {*range(count)} <= {*bad}:
            return "All clips have faults."
        return None

    def without(self, bad: Sequence[int]) -> TrainingData:
        """The same without some clips; from tables of others and from caches, training itself leaves them out."""
        if self.tables is not None or not bad:
            return self
        clips = [*self.clips, *self.held_out]
        return _split(self.path, [clip for index, clip in enumerate(clips) if index not in {*bad}])

    def tables_in(self, folder: Path) -> tuple[Path, Path | None]:
        """Where the launcher reads what trains and what validates; tables that there are not yet are in `folder`."""
        if self.tables is not None:
            return self.tables
        return folder / TABLE, folder / HELD_OUT if self.held_out else None

    def shown(self, count: int) -> list[VideoClip]:
        """The held-out clips of which validation videos are made, at most so many; a cache has none."""
        lines = [clip for clip in self.held_out if isinstance(clip, VideoClip) and _can_stand_in_a_line(clip)]
        return lines[:count]

    def write(self, folder: Path, count: int, *, is_v2v: bool) -> None:
        """Write the tables that there are not yet, and SAMPLES: what `count` validation videos are made from.

        Videos of I2V get the first pictures of the clips.
        """
        if self.tables is None:
            _write_table(folder / TABLE, self.clips)
            if self.held_out:
                _write_table(folder / HELD_OUT, self.held_out)
        lines = []
        for index, clip in enumerate(self.shown(count)):
            shown = clip.video
            if not is_v2v:
                shown = clip.reference or _first_picture(clip.video, folder / f"portrait-{index}.png")
            fields = [" ".join(clip.prompt.split()), str(shown.absolute()), str((clip.audio or clip.video).absolute())]
            lines.append("@@".join(fields))
        if lines:
            write_text_atomically(folder / SAMPLES, "".join(f"{line}\n" for line in lines))


def _can_stand_in_a_line(clip: VideoClip) -> bool:
    texts = (clip.prompt, *(str(path) for path in clip.files().values()))
    return bool(clip.prompt.strip()) and not any("@@" in text or "\n" in text for text in texts)


def find_data(path: Path, readable: Readable, caption: str = "") -> TrainingData:
    """What a path holds.

    Args:
        path: a table, a cache, the folder or the report of `omniavatar prepare`, or a folder of clips.
        readable: where clips may lie.
        caption: of a folder's clips without a text of their own; "" for `CAPTION`.

    Raises:
        ValueError: it holds no clips, has faults, or names files elsewhere.
    """
    if path.name == REPORT:
        path = path.parent
    if path.is_dir() and (path / CACHE_INDEX).is_file():
        return TrainingData(path=path, is_cache=True, clips=read_clips(path), held_out=(), tables=(path, None))
    if path.is_dir() and not (path / TRAIN).is_file():
        clips = _clips_in(path, caption.strip() or CAPTION)
        _refuse_outside(path, clips, readable)
        return _split(path, clips)
    table = path / TRAIN if path.is_dir() else path
    clips, held_out = read_clips(table), list[ClipSource]()
    validation = table.with_name(VALIDATION)
    if validation.is_file() and validation != table:
        held_out = read_clips(validation)
    _refuse_outside(table, [*clips, *held_out], readable)
    if not held_out and all(isinstance(clip, VideoClip) for clip in clips):
        return _split(table, clips)
    tables = (table, validation if held_out else None)
    return TrainingData(path=table, is_cache=False, clips=clips, held_out=held_out, tables=tables)


def _split(path: Path, clips: Sequence[ClipSource]) -> TrainingData:
    """The last clips validate, as nobody has said which."""
    count = max(1, len(clips) // HELD_OUT_SHARE) if len(clips) > 1 else 0
    first = len(clips) - count
    return TrainingData(path=path, is_cache=False, clips=clips[:first], held_out=clips[first:])


def _refuse_outside(path: Path, clips: Sequence[ClipSource], readable: Readable) -> None:
    """ValueError if clips of a table or folder lie where the page may not read."""
    for clip in clips:
        if (outside := next((file for file in _files(clip) if not readable.holds(file)), None)) is not None:
            raise ValueError(
                f"{path} names {outside}, which is not in the folders that the page may read; `omniavatar page --data "
                "FOLDER` adds one"
            )


def _files(clip: ClipSource) -> list[Path]:
    if isinstance(clip, VideoClip):
        return [*clip.files().values()]
    return [clip.folder] if isinstance(clip, PreparedClip) else []


def _clips_in(folder: Path, caption: str) -> list[ClipSource]:
    videos = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not videos:
        raise ValueError(
            f"{folder} has no clips: wanted videos, a table {TRAIN}, or a cache of `omniavatar precompute`"
        )
    return [
        VideoClip(name=str(path.relative_to(folder)), video=path, prompt=_caption_of(path) or caption)
        for path in videos
    ]


def _caption_of(video: Path) -> str:
    """What a text file beside a video says."""
    path = video.with_suffix(".txt")
    return " ".join(read_text(path).split()) if path.is_file() else ""


def _write_table(path: Path, clips: Sequence[ClipSource]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    table.writeheader()
    for clip in clips:
        if isinstance(clip, VideoClip):
            table.writerow({part: file.absolute() for part, file in clip.files().items()} | {"prompt": clip.prompt})
    write_text_atomically(path, text.getvalue())


def _first_picture(video: Path, path: Path) -> Path:
    picture = Image.fromarray(next(iter(iter_frames(video))).numpy())
    write_atomically(path, lambda file: picture.save(file, format="PNG"))
    return path
