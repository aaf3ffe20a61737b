"""Prints the tests of what differs from origin/main, for `make test-quick`: those of the same rooms.

The tests that lie in no room are always among them.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

TESTS = Path(__file__).resolve().parent
BASE = "origin/main"


def changed_files() -> list[str]:
    """Paths that differ from `BASE`, or where there is none from the last commit; new ones too."""

    def git(*words: str) -> list[str]:
        done = subprocess.run(["git", *words], cwd=TESTS.parent, capture_output=True, text=True)
        return done.stdout.splitlines() if done.returncode == 0 else []

    start = git("merge-base", BASE, "HEAD") or ["HEAD"]
    return [*git("diff", "--name-only", *start), *git("ls-files", "--others", "--exclude-standard")]


def tests_of(files: Iterable[str]) -> list[str]:
    """The folders and files of tests that belong to changed files."""
    chosen = {path.name for path in TESTS.glob("test_*.py")}
    for file in map(Path, files):
        if file.parts[0] == "tests" and file.name.startswith("test_"):
            chosen.add(file.relative_to("tests").as_posix())
        elif file.parts[0] in ("tests", "diffsynth_omniavatar") and len(file.parts) > 2:
            chosen.add(file.parts[1])
        elif file.parts[0] == "integrations":
            chosen.add("integrations")
        elif file.parts[0] == "patches":
            chosen.add("host")
        elif file.parts[0] in ("examples", "README.md", "docs"):
            chosen.add("app/test_examples.py")
    rooms = {name for name in chosen if (TESTS / name).is_dir()}
    return sorted(
        f"tests/{name}" for name in chosen if (TESTS / name).exists() and not {*map(str, Path(name).parents)} & rooms
    )


if __name__ == "__main__":
    print(*tests_of(changed_files()))
