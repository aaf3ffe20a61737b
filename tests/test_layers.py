"""A module imports only what stands above it in the table of docs/architecture.md, and only host/ imports DiffSynth."""

import ast
import functools
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffsynth_omniavatar"
WITHOUT_HOST = (
    "media.timeline",
    "media.images",
    "media.files",
    "media.colour",
    "media.video",
    "media.sound",
    "media.writer",
    "media.faces.face",
    "media.faces.measures",
    "media.faces.networks",
    "media.faces.views",
    "media.faces.find",
    "media.faces.tracks",
    "media.faces.detections",
    "model.config",
    "model.speech_encoder",
    "model.files",
    "host.versions",
)
WITHOUT_HOST += (
    "model.frame_decoder",
    "losses.decode",
    "metrics.sync",
    "metrics.picture",
    "metrics.plots",
    "metrics.evaluate",
    "metrics.compare",
    "losses.windows",
    "losses.frozen",
    "losses.mel",
    "losses.syncnet",
    "losses.sync",
    "losses.lpips",
    "losses.trepa",
    "losses.dmd",
    "nano.speaker.clips",
    "nano.speaker.recording",
    "nano.measure",
)

ROOMS = ("system", "host", "media", "model", "generation", "losses", "metrics", "data", "training", "nano", "app")
LONGEST_FILE = 600

BLOCK_HOST = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "diffsynth":
            raise ImportError("DiffSynth is blocked: " + name)

sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module("diffsynth_omniavatar." + name)
try:
    import diffsynth_omniavatar.host.wan_video
except ImportError as error:
    print(error)
"""


def table() -> list[str]:
    """The rows of the module table, paths of files."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## Modules", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `([\w/.]+)` \|", section, flags=re.MULTILINE)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Path inside the package -> parsed file; files that hold only a docstring are left out."""
    parsed = {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    return {name: tree for name, tree in parsed.items() if len(tree.body) > 1}


class Imports(ast.NodeVisitor):
    """Dotted names that a file imports, wherever it does, those for type checking too."""

    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.names: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        self.names += [alias.name for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        package = self.package[: len(self.package) - node.level + 1] if node.level else []
        base = ".".join([*package, *([node.module] if node.module else [])])
        self.names += [f"{base}.{alias.name}" for alias in node.names]


def imports(name: str, tree: ast.Module) -> list[str]:
    visitor = Imports([PACKAGE.name, *name.split("/")[:-1]])
    visitor.visit(tree)
    return visitor.names


def own_files(dotted: str) -> Iterator[str]:
    """The file of the package that an imported name means: the longest part of it that is a file."""
    parts = dotted.split(".")
    if parts[0] != PACKAGE.name:
        return
    for end in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[1:end])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                yield file.relative_to(PACKAGE).as_posix()
                return


def room_of(name: str) -> str:
    """The folder that a file lies in; "" for files of the package's own folder."""
    return name.partition("/")[0] if "/" in name else ""


def length(name: str) -> int:
    return len((PACKAGE / name).read_text(encoding="utf-8").splitlines())


def test_every_module_has_its_row_and_every_row_its_module():
    rows = table()
    assert len(rows) == len(set(rows)) > 10
    without_row = [name for name in modules() if name not in rows]
    assert not without_row, f"add to the table of docs/architecture.md: {without_row}"
    assert not [row for row in rows if not (PACKAGE / row).is_file()]


def test_rooms_stand_in_their_order():
    rooms = [(room, list(rows)) for room, rows in itertools.groupby(table(), room_of) if room]
    for room, rows in rooms:
        print(f"{room:12}{len(rows):3} files{sum(map(length, rows)):6} lines")
    assert [room for room, _ in rooms] == list(ROOMS)


def test_modules_import_only_what_stands_above_them():
    rows = table()
    wrong = []
    for name, tree in modules().items():
        if name not in rows or name == "__init__.py":  # the test above says so; public names, imported when used
            continue
        for dotted in imports(name, tree):
            for used in own_files(dotted):
                if used in rows and used != name and rows.index(used) > rows.index(name):
                    wrong.append(f"{name} imports {used}")
    assert not wrong


def test_files_stay_small():
    assert not {name: length(name) for name in modules() if length(name) > LONGEST_FILE}


def test_only_host_imports_diffsynth():
    users = {
        name
        for name, tree in modules().items()
        if any(dotted.split(".")[0] == "diffsynth" for dotted in imports(name, tree))
    }
    assert users == {"host/wan_video.py", "host/wan_video_new.py"}


def test_media_and_speech_work_without_diffsynth():
    command = [sys.executable, "-c", BLOCK_HOST, *WITHOUT_HOST]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "DiffSynth is blocked" in done.stdout
