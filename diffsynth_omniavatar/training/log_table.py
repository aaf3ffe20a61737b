"""Tables of a run, with a row for each step: `loss.csv` and `validation.csv`."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..system.atomic import write_text_atomically

logger = logging.getLogger(__name__)

Row = dict[str, float]
"""Column -> value; `step` is a whole number, empty cells are left out."""


def read_table(path: str | Path) -> list[Row]:
    """The rows of a table, in their order. Blank and damaged lines, which a crash can leave, are passed over.

    Raises:
        ValueError: it is no table with a column `step` and a row a step.
    """
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a line without its end was cut
    lines = csv.reader(whole.split("\n"))
    header = next(lines, [])
    if header and (header[0] != "step" or header == ["step", "key", "value"]):
        raise ValueError(
            f"{path} has the columns {','.join(header)[:80]}, wanted step,loss,...: it is of an earlier version or of "
            "another program; move it away"
        )
    found = [_row(header, cells) for cells in lines if cells]
    damaged = found.count(None)
    if damaged:
        logger.warning("%s: %d damaged lines are left out", path, damaged)
    return [row for row in found if row is not None]


def _row(header: list[str], cells: list[str]) -> Row | None:
    try:
        return {"step": int(cells[0])} | {
            name: float(cell) for name, cell in zip(header[1:], cells[1:], strict=True) if cell
        }
    except ValueError:
        return None


class StepTable:
    """A table that is being written.

    Args:
        path: the file; rows that are in it stay, if they are not behind `step`.
        columns: those of the first row behind `step`; a name that comes up later gets a column of its own.
        step: of the checkpoint that the run goes on from; what was logged behind it is done again.

    Raises:
        ValueError: `path` is another kind of file.
    """

    def __init__(self, path: Path, columns: Iterable[str], step: int) -> None:
        self.path = path
        rows = [row for row in read_table(path) if row["step"] <= step] if path.exists() else []
        self.columns = [*dict.fromkeys(["step", *columns, *(name for row in rows for name in row)])]
        self._start(rows)

    def _start(self, rows: list[Row]) -> None:
        lines = [",".join(self.columns), *(self._line(row) for row in rows)]
        write_text_atomically(self.path, "".join(f"{line}\n" for line in lines))
        self.file = self.path.open("a", encoding="utf-8", newline="")

    def _line(self, row: Mapping[str, float]) -> str:
        return ",".join(str(row[name]) if name in row else "" for name in self.columns)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the row of a step."""
        row = {"step": step, **values}
        new = [name for name in row if name not in self.columns]
        if new:
            self.close()
            self.columns += new
            self._start(read_table(self.path))
        self.file.write(self._line(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
