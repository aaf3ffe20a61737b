"""What is said of the clips: from files beside the sources, a table, a program of the user, or one text for all."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from ...system.atomic import write_text_atomically
from ...system.text_files import parse_json, read_text
from ..prepared import PreparedClip
from ..tables import read_clips
from .records import ClipRecord
from .source_state import STATE

DEFAULT_TEMPLATE = "A realistic video of a person speaking to the camera."

SIDECAR_KEYS = ("prompt", "caption", "text", "description")
"""Keys of a JSON file beside a source that hold its caption, the first that is there."""

CLIP, CLIPS = "{clip}", "{clips}"
"""Places in a command: the path of one clip, and of a text file with the path of a clip a line."""

BATCH = 256
"""Clips that a command with `CLIPS` gets at once; what is done is kept."""

LONGEST_COMMAND = 3600
"""Seconds after which a command is given up."""

LONGEST_CAPTION = 10_000
"""Characters; what is longer is no caption, and readers of CSV files may refuse it."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Where captions come from: the first of table, file beside the source, command and template that has one.

    Raises:
        ValueError: the command has no place for clips or is not there, or the table cannot be read.
    """

    table: Path | None = None
    """A table with `video` and `prompt`, as training reads them; its videos are the sources."""
    command: str | None = None
    """A program and its arguments, split as a shell splits them, but run without one. With `{clip}` it is run for
    each clip, and what it prints is the caption; with `{clips}` it is run for many, and prints a line for each."""
    template: str = DEFAULT_TEMPLATE
    """With `{stem}` and `{folder}` of the source in it."""
    _prompts: dict[Path, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.command is not None:
            words = self._words()
            if not any(place in word for word in words for place in (CLIP, CLIPS)):
                raise ValueError(f"--caption_command {self.command}: wanted {CLIP} or {CLIPS} among its arguments")
            if shutil.which(words[0]) is None:
                raise ValueError(f"--caption_command {self.command}: there is no program {words[0]}")
        try:
            self.template.format(stem="", folder="")
        except (LookupError, ValueError) as error:
            raise ValueError(f"--caption {self.template!r}: {{stem}} and {{folder}} can stand in it") from error
        for clip in read_clips(self.table) if self.table is not None else ():
            assert not isinstance(clip, PreparedClip)
            self._prompts[Path(clip.video).resolve()] = clip.prompt  # type: ignore[attr-defined]

    def _words(self) -> list[str]:
        assert self.command is not None
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"--caption_command {self.command}: {error}") from error
        return words or [""]

    def write(self, clips: Sequence[ClipRecord], out: Path, tell: Callable[[float], None]) -> list[ClipRecord]:
        """Give kept clips their captions; those for which none can be had are rejected.

        What a command has said of a clip is kept in the output folder and not asked again.

        Args:
            clips: all clips.
            out: the output folder.
            tell: called with the part that is done.
        """
        texts, failed = dict[str, str](), dict[str, str]()
        asked = list[ClipRecord]()
        for clip in clips:
            if not clip.is_kept:
                continue
            try:
                text = self._given(Path(clip.source))
            except (ValueError, OSError) as error:
                failed[clip.name] = str(error)
                continue
            if text:
                texts[clip.name] = text
            elif self.command is None:
                texts[clip.name] = self._from_template(Path(clip.source))
            else:
                asked.append(clip)
        if asked:
            memory = _Memory(out / STATE / "captions.json", self.command or "")
            new = [clip for clip in asked if clip.name not in memory.texts]
            try:
                for count, (name, text, fault) in enumerate(self._ask(new, out), start=1):
                    if fault is None:
                        memory.add(name, text)
                    else:
                        failed[name] = fault
                    tell(count / len(new))
            finally:  # an interrupt loses no answer
                memory.write()
            texts |= {clip.name: memory.texts[clip.name] for clip in asked if clip.name in memory.texts}
        return [
            replace(clip, reasons={"caption": failed[clip.name]})
            if clip.name in failed
            else replace(clip, prompt=texts.get(clip.name, ""))
            for clip in clips
        ]

    def _given(self, source: Path) -> str | None:
        """From the table or a file beside the source; ValueError for one that cannot be read."""
        if (text := self._prompts.get(source.resolve())) is not None:
            return _one_line(text)
        for path in (source.with_suffix(".txt"), source.with_name(f"{source.name}.txt")):
            if path.is_file() and path != source:
                return _checked(read_text(path), path)
        path = source.with_suffix(".json")
        if path.is_file():
            content = parse_json(read_text(path), str(path))
            found = [content[key] for key in SIDECAR_KEYS if isinstance(content, dict) and key in content]
            if found and not isinstance(found[0], str):
                raise ValueError(f"{path}: the caption is a {type(found[0]).__name__}, wanted a text")
            return _checked(found[0], path) if found else None
        return None

    def _from_template(self, source: Path) -> str:
        return _one_line(self.template.format(stem=source.stem, folder=source.parent.name))

    def _ask(self, clips: Sequence[ClipRecord], out: Path) -> Iterator[tuple[str, str, str | None]]:
        """Name, caption and fault of each clip."""
        words = self._words()
        if any(CLIPS in word for word in words):
            yield from self._ask_for_many(clips, out)
            return
        for clip in clips:
            path = _video(clip, out)
            try:
                text = _checked(_run([word.replace(CLIP, str(path)) for word in words]), "the caption command")
                fault = None if text else f"the caption command printed nothing for {path}"
            except ValueError as error:
                text, fault = "", str(error)
            yield clip.name, text, fault

    def _ask_for_many(self, clips: Sequence[ClipRecord], out: Path) -> Iterator[tuple[str, str, str | None]]:
        waiting = iter(clips)
        while batch := list(islice(waiting, BATCH)):
            lines, fault = list[str](), None
            with tempfile.TemporaryDirectory() as folder:
                names = Path(folder, "clips.txt")
                names.write_text("".join(f"{_video(clip, out)}\n" for clip in batch), encoding="utf-8")
                try:
                    printed = _run([word.replace(CLIPS, str(names)) for word in self._words()])
                    lines = [line for line in printed.split("\n") if line.strip()]
                    if len(lines) != len(batch):
                        fault = f"the caption command printed {len(lines)} lines for {len(batch)} clips"
                except ValueError as error:
                    fault = str(error)
            for index, clip in enumerate(batch):
                if fault is not None:
                    yield clip.name, "", fault
                    continue
                try:
                    yield clip.name, _checked(lines[index], "the caption command"), None
                except ValueError as error:
                    yield clip.name, "", str(error)


class _Memory:
    """What the command has said of clips, in a file."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self.texts = dict[str, str]()
        if path.is_file():
            content = parse_json(read_text(path), str(path))
            if content["command"] == command:
                self.texts = content["captions"]
        self._unwritten = 0

    def add(self, name: str, text: str) -> None:
        self.texts[name] = text
        self._unwritten += 1
        if self._unwritten >= 20:
            self.write()

    def write(self) -> None:
        content = {"command": self.command, "captions": self.texts}
        write_text_atomically(self.path, json.dumps(content, ensure_ascii=False, indent=1))
        self._unwritten = 0


def _video(clip: ClipRecord, out: Path) -> Path:
    path = (out / (clip.video or "")).resolve()
    return path / "sub_clip.mp4" if path.is_dir() else path


def _run(words: Sequence[str]) -> str:
    """What a program prints; ValueError if it fails."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,  # one that asks something must not wait for an answer
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=LONGEST_COMMAND,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines()
        raise ValueError(
            f"the caption command ended with exit code {error.returncode}: {said[-1] if said else 'without a word'}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"the caption command failed: {error}") from error
    return done.stdout


def _checked(text: str, origin: object) -> str:
    """The text in one line; ValueError for what is no caption."""
    text = _one_line(text)
    if len(text) > LONGEST_CAPTION:
        raise ValueError(f"{origin}: a caption of {len(text)} characters, wanted {LONGEST_CAPTION} at most")
    if control := next((letter for letter in text if unicodedata.category(letter) == "Cc"), None):
        raise ValueError(f"{origin}: a caption with the control character {control!r}: {text[:40]!r}")
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())
