"""Apply, check or revert the source patches in this folder on an installed or vendored DiffSynth.

    python patches/apply.py --list                      # every patch, for every DiffSynth version
    python patches/apply.py --print constant-lr         # the diff for the DiffSynth that is installed
    python patches/apply.py --check                     # what would happen; writes nothing
    python patches/apply.py constant-lr head-batch      # apply two of them
    python patches/apply.py --all --target vendor/      # apply all to a copy
    python patches/apply.py --all --revert              # and back, byte for byte

The target is a folder that holds `diffsynth`, or that folder itself; without `--target` it is the installed package.
Which patches belong to it follows from its version. A patch is applied where every line of it is found, or not at all:
lines may have moved (another patch came first), but they are never guessed. Exit status: 0 when all patches asked for
are in the state asked for, 1 when one does not fit, 2 when the question itself is wrong.

Only the standard library is used, so the file can be copied along with the patches.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PACKAGE = "diffsynth"
HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class DoesNotFit(Exception):
    """A hunk has no place in the file; nothing was written."""


@dataclass(frozen=True)
class Hunk:
    """Consecutive lines `old`, from index `old_start` of the released file, that become `new` from `new_start`."""

    old_start: int
    old: list[str]
    new_start: int
    new: list[str]

    def reversed(self) -> Hunk:
        return Hunk(self.new_start, self.new, self.old_start, self.old)


@dataclass(frozen=True)
class Patch:
    """One defect's diff: the hunks of each file, by the file's path below the package folder."""

    version: str
    name: str
    text: str
    files: dict[str, list[Hunk]]

    @property
    def subject(self) -> str:
        return self.text.split("\n", 1)[0]


def parse(text: str) -> dict[str, list[Hunk]]:
    """Hunks of a unified diff by path below a/diffsynth/ and b/diffsynth/. Text around them is skipped.

    Raises ValueError for a hunk whose lines are not as many as its header says, or not marked by ' ', '-' or '+'.
    """
    files: dict[str, list[Hunk]] = {}
    hunks: list[Hunk] = []
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        if lines[at].startswith("--- "):
            hunks = files.setdefault(_path(lines[at], lines[at + 1]), [])
            at += 2
        elif header := HUNK.match(lines[at]):
            old_start, n_old, new_start, n_new = (int(group or 1) for group in header.groups())
            at += 1
            body: list[str] = []
            while _count(body, " -") < n_old or _count(body, " +") < n_new:
                if at == len(lines) or lines[at][:1] not in (" ", "-", "+"):
                    raise ValueError(f"line {at + 1} of the diff: a hunk of -{n_old} +{n_new} lines ends too early")
                body.append(lines[at])
                at += 1
            old, new = ([line[1:] for line in body if line[0] in marks] for marks in (" -", " +"))
            if (len(old), len(new)) != (n_old, n_new):
                raise ValueError(f"line {at} of the diff: got -{len(old)} +{len(new)} lines, wanted -{n_old} +{n_new}")
            hunks.append(Hunk(old_start - 1, old, new_start - 1, new))
        else:
            at += 1
    return files


def _count(body: Iterable[str], marks: str) -> int:
    return sum(line[0] in marks for line in body)


def _path(old: str, new: str) -> str:
    path = old.removeprefix(f"--- a/{PACKAGE}/")
    if new != f"+++ b/{PACKAGE}/{path}" or ".." in path.split("/"):
        raise ValueError(f"got {old!r}, {new!r}; wanted the same path after a/{PACKAGE}/ and b/{PACKAGE}/")
    return path


def patched(content: str, hunks: Sequence[Hunk]) -> str:
    """`content` with all hunks applied, in order. Raises DoesNotFit with the line of the first that has no place."""
    lines = content.split("\n")
    done = moved = 0
    for hunk in hunks:
        start = _locate(lines, hunk.old, hunk.old_start + moved, done)
        lines[start : start + len(hunk.old)] = hunk.new
        done = start + len(hunk.new)
        moved = start - hunk.old_start + len(hunk.new) - len(hunk.old)
    return "\n".join(lines)


def _locate(lines: list[str], block: list[str], expected: int, first: int) -> int:
    """Where `block` stands: at `expected`, or else at the only place from `first` on."""
    size = len(block)
    if expected >= first and lines[expected : expected + size] == block:
        return expected
    places = [at for at in range(first, len(lines) - size + 1) if lines[at : at + size] == block]
    if len(places) != 1:
        raise DoesNotFit(f"the lines for line {expected + 1} are found {len(places)} times")
    return places[0]


def changed_files(patch: Patch, package: Path, revert: bool) -> dict[Path, bytes]:
    """The new content of every file that `patch` touches (or, with `revert`, of every file without it).

    Raises DoesNotFit when any hunk of any file has no place. Writes nothing.
    """
    contents = {}
    for path, hunks in patch.files.items():
        file = package / path
        if not file.is_file():
            raise DoesNotFit(f"there is no {path}")
        try:
            after = patched(file.read_bytes().decode(), [hunk.reversed() for hunk in hunks] if revert else hunks)
        except DoesNotFit as error:
            raise DoesNotFit(f"{path}: {error}") from None
        contents[file] = after.encode()
    return contents


def write_all(contents: dict[Path, bytes]) -> None:
    """Replace all files or none: new content is written beside the old, then renamed over it."""
    before = {file: file.read_bytes() for file in contents}
    temporary = {file: file.with_name(f".{file.name}.{os.getpid()}") for file in contents}
    try:
        for file, content in contents.items():
            temporary[file].write_bytes(content)
            shutil.copymode(file, temporary[file])
        for file in contents:
            temporary[file].replace(file)
    except OSError:
        for file, content in before.items():
            if file.read_bytes() != content:
                file.write_bytes(content)
        raise
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)


def run(patch: Patch, package: Path, *, revert: bool = False, write: bool = True) -> str:
    """Bring `patch` into the state asked for and say what was done; raises DoesNotFit when that cannot be."""
    try:
        changed_files(patch, package, revert=not revert)
    except DoesNotFit:
        contents = changed_files(patch, package, revert)
    else:
        return "not applied" if revert else "already applied"
    if not write:
        return "would be reverted" if revert else "fits"
    write_all(contents)
    return "reverted" if revert else "applied"


def load_patches() -> list[Patch]:
    """All patches of this folder, by version and name."""
    patches = []
    for file in sorted(FOLDER.glob("*/*.patch")):
        text = file.read_bytes().decode()
        patches.append(Patch(file.parent.name, file.stem, text, parse(text)))
    return patches


def find_package(target: Path | None) -> Path:
    """The `diffsynth` folder in or at `target`, or of the installed package. Raises ValueError when there is none."""
    if target is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise ValueError("DiffSynth is not installed here: name its folder with --target")
        return Path(spec.origin).parent
    for package in (target / PACKAGE, target):
        if (package / "__init__.py").is_file() and (package / "pipelines").is_dir():
            return package
    raise ValueError(f"got --target {target}: wanted a folder that holds {PACKAGE}/, or that folder")


def find_version(package: Path) -> str:
    """Version of the package by its version.py (2.x) or the metadata beside it. Raises ValueError when unknown."""
    file = package / "version.py"
    if file.is_file() and (match := re.search(r"""^__version__ = ['"](.+)['"]""", file.read_text(), re.MULTILINE)):
        return match[1]
    for distribution in importlib.metadata.distributions(path=[str(package.parent)]):
        if distribution.metadata["Name"] == PACKAGE:
            return distribution.version
    raise ValueError(f"the version of {package} is not written there: give it with --version")


def select(patches: Sequence[Patch], version: str, names: Sequence[str]) -> list[Patch]:
    """The patches of `version` with these names, or all. Raises ValueError for what does not exist."""
    own = {patch.name: patch for patch in patches if patch.version == version}
    if not own:
        versions = ", ".join(sorted({patch.version for patch in patches}))
        raise ValueError(f"got DiffSynth {version}, wanted one of {versions}: try one version's patches with --version")
    if unknown := [name for name in names if name not in own]:
        raise ValueError(f"got {', '.join(unknown)}: DiffSynth {version} has the patches {', '.join(own)}")
    return [own[name] for name in names or own]


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="patches to apply")
    parser.add_argument("--all", action="store_true", help="all patches of the target's version")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="list every patch")
    action.add_argument("--print", metavar="NAME", help="print one patch")
    action.add_argument("--check", action="store_true", help="say whether patches fit (default: all); write nothing")
    action.add_argument("--revert", action="store_true", help="take the patches out again")
    parser.add_argument("--target", type=Path, metavar="SITE_PACKAGES_OR_DIFFSYNTH_FOLDER")
    parser.add_argument("--version", help="DiffSynth's version, where the target does not tell it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    patches = load_patches()
    if args.list:
        width = max(len(patch.name) for patch in patches)
        for patch in patches:
            print(f"{patch.version:7} {patch.name:{width}}  {patch.subject}")
        return 0
    if bool(args.names) == args.all and not (args.check or args.print):
        parser.error("name the patches, or use --all; --list shows them")
    try:
        if args.print and args.version:
            sys.stdout.write(select(patches, args.version, [args.print])[0].text)
            return 0
        package = find_package(args.target)
        version = args.version or find_version(package)
        chosen = select(patches, version, [args.print] if args.print else args.names)
    except ValueError as error:
        parser.error(str(error))
    if args.print:
        sys.stdout.write(chosen[0].text)
        return 0
    return _run_all(chosen, package, version, revert=args.revert, write=not args.check)


def _run_all(chosen: Sequence[Patch], package: Path, version: str, *, revert: bool, write: bool) -> int:
    print(f"DiffSynth {version} in {package}")
    status = 0
    for patch in chosen:
        try:
            said = run(patch, package, revert=revert, write=write)
        except (DoesNotFit, OSError) as error:
            status, said = 1, f"does not fit, nothing changed: {error}" if isinstance(error, DoesNotFit) else str(error)
        print(f"  {patch.name}: {said}")
    return status


if __name__ == "__main__":
    sys.exit(main())
