"""Files that people send: of which kinds, how large, where they go, and what is told before they are sent."""

from __future__ import annotations

import json
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
    media: str = ""
    """Of the browser's type for such files what stands before the stroke, where gradio asks for one."""

    @property
    def css(self) -> list[str]:
        """Classes of a field that takes such files."""
        return ["takes", f"takes-{self.name.split()[-1].lower()}"]


VIDEO = Kind("a video", (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts"), "video")
_SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm")
SOUND = Kind("a sound", (*_SOUNDS, *VIDEO.suffixes), "audio")
PICTURE = Kind("a picture", _PICTURES, "image")
LORA = Kind("a LoRA", (".safetensors", ".pt"))
SCRIPT = Path(__file__).with_name("uploads.js")


def upload_script(megabytes: int) -> str:
    """What tells in the browser that a field does not take a file, as an HTML element."""
    kinds = [
        {"name": kind.name, "mark": kind.css[-1], "endings": kind.suffixes, "type": kind.media}
        for kind in (VIDEO, SOUND, PICTURE, LORA)
    ]
    script = SCRIPT.read_text(encoding="utf-8").replace("__KINDS__", json.dumps(kinds))
    return f"<script>{script.replace('__MEGABYTES__', str(megabytes))}</script>"


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
