"""Files with a line `prompt@@image@@audio` for each video (V2V: `prompt@@video@@audio`). Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..system.text_files import read_lines


@dataclass(frozen=True)
class Sample:
    """What a video is made from."""

    prompt: str
    source: Path
    """The portrait, or for a V2V checkpoint the video."""
    audio: Path
    reference: Path | None = None
    """The real video that it should equal, where lines may name one."""


def read_sample(line: str, *, may_have_reference: bool = False) -> Sample:
    """A line of such a file, to which a fourth field may add a reference; spaces around its fields do not count.

    Raises:
        ValueError: it has other fields; FileNotFoundError: a file of it is not there.
    """
    fields = [field.strip() for field in line.split("@@")]
    if len(fields) not in ((3, 4) if may_have_reference else (3,)) or not all(fields):
        raise ValueError(f"wanted prompt@@image@@audio, got {len(fields)} fields: {line.strip()[:80]}")
    prompt, *paths = fields
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there.")
    return Sample(prompt, *map(Path, paths))


def read_samples(path: str | Path, *, may_have_reference: bool = False) -> tuple[dict[int, Sample], dict[int, str]]:
    """The good lines of a file, and what is wrong with the others, both by number from 1; blank ones are neither.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not in UTF-8.
    """
    samples: dict[int, Sample] = {}
    faults: dict[int, str] = {}
    for number, line in read_lines(path):
        try:
            samples[number] = read_sample(line, may_have_reference=may_have_reference)
        except (ValueError, OSError) as error:
            faults[number] = str(error)
    return samples, faults
