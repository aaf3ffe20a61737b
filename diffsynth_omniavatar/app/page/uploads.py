"""Files that people send: of which kinds, how large, and where they go."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .faults import FieldFaults

MEGABYTE = 10**6


@dataclass(frozen=True)
class Kind:
    """A kind of file that a field takes."""

    name: str
    suffixes: tuple[str, ...]


VIDEO = Kind("a video", (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts"))
SOUND = Kind("a sound", (".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", *VIDEO.suffixes))
PICTURE = Kind("a picture", (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm"))
LORA = Kind("a LoRA", (".safetensors", ".pt"))


def kept_upload(upload: str | None, field: str, kind: Kind, uploads: Path, target: Path, megabytes: int) -> Path:
    """The page's own copy of an uploaded file. Its name is the page's; of the sender's only the suffix is kept.

    Args:
        upload: where the server has put it; None where nothing was sent.
        field: that it was sent in.
        kind: what the field takes.
        uploads: the folder that uploads lie in.
        target: the copy, without a suffix; its folder is made.
        megabytes: the largest size.

    Raises:
        FieldFaults: there is none, it is of another kind, too large, or lies elsewhere.
    """
    if not isinstance(upload, str) or not upload:
        raise FieldFaults({field: f"Nothing here yet: give {kind.name}."})
    path = Path(upload.replace("\0", "")).resolve()
    if not path.is_relative_to(uploads.resolve()) or not path.is_file():
        raise FieldFaults({field: "This file is no longer there: send it again."})
    suffix = path.suffix.lower()
    if suffix not in kind.suffixes:
        shown = f"A file that ends in {suffix}" if suffix[1:].isalnum() else "A file without an ending"
        raise FieldFaults({field: f"{shown} is not {kind.name}; wanted {', '.join(kind.suffixes)}."})
    if path.stat().st_size > megabytes * MEGABYTE:
        raise FieldFaults({field: f"The file is larger than {megabytes} MB."})
    target.parent.mkdir(parents=True, exist_ok=True)
    copy = target.with_suffix(suffix)
    shutil.copyfile(path, copy)
    return copy
