"""Which videos `omniavatar evaluate` measures, and which reference, sound and portrait belong to each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.tables import read_csv
from ..metrics.clip import ClipFiles

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".opus", *VIDEO_SUFFIXES)
COLUMNS = ("generated", "reference", "audio", "portrait")


def pair_clips(generated: Sequence[str], reference: Sequence[str] = (), audio: Sequence[str] = ()) -> list[ClipFiles]:
    """The clips that the command line names.

    Args:
        generated: videos, folders of videos, or one CSV with the columns generated, reference, audio and portrait, of
            which all but the first may be absent or empty.
        reference: as many videos, in the same order; or one for all; or folders, whose files go by name.
        audio: likewise.

    Raises:
        ValueError: a file is missing, or there is no pair for a video.
    """
    tables = [name for name in generated if name.lower().endswith(".csv")]
    if tables:
        if len(generated) > 1 or reference or audio:
            raise ValueError(f"{tables[0]} is a table: give nothing else, and references and speech as its columns")
        return _from_table(Path(tables[0]))
    videos = [video for name in generated for video in _files(Path(name), VIDEO_SUFFIXES)]
    references = _matched("--reference", reference, videos, VIDEO_SUFFIXES)
    sounds = _matched("--audio", audio, videos, AUDIO_SUFFIXES)
    return [
        ClipFiles(generated=video, reference=truth, audio=sound)
        for video, truth, sound in zip(videos, references, sounds, strict=True)
    ]


def _from_table(path: Path) -> list[ClipFiles]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    clips = []
    for place, row in read_csv(path):
        unknown = sorted(set(row) - set(COLUMNS))
        if unknown or not row.get("generated"):
            raise ValueError(
                f"{path}, {place} has the columns {', '.join(row)}; wanted {', '.join(COLUMNS)}, the first filled in"
            )
        files = {name: path.parent / value for name, value in row.items() if value}
        for file in files.values():
            if not file.is_file():
                raise ValueError(f"{path}, {place}: {file} does not exist or is no file")
        clips.append(ClipFiles(**files))
    if not clips:
        raise ValueError(f"{path} has no rows")
    return clips


def _files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The file, or the files of a folder."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        if not found:
            raise ValueError(f"{path} has no files that end in {', '.join(suffixes)}")
        return found
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return [path]


def _matched(flag: str, names: Sequence[str], videos: Sequence[Path], suffixes: Sequence[str]) -> Sequence[Path | None]:
    if not names:
        return [None] * len(videos)
    files = [file for name in names for file in _files(Path(name), suffixes)]
    if any(Path(name).is_dir() for name in names):
        return [_of_name(flag, video, files) for video in videos]
    if len(files) == 1:
        return files * len(videos)
    if len(files) != len(videos):
        raise ValueError(f"{flag} has {len(files)} files for {len(videos)} videos; give one, as many, or a folder")
    return files


def _of_name(flag: str, video: Path, files: Sequence[Path]) -> Path:
    """The file that has the video's name, whatever its ending."""
    fitting = [file for file in files if file.stem == video.stem]
    if not fitting:
        raise ValueError(f"{flag}: there is no file named {video.stem} for {video}")
    if len(fitting) > 1:
        raise ValueError(f"{flag}: {fitting[0]} and {fitting[1]} are both named as {video}; give one of them")
    return fitting[0]
