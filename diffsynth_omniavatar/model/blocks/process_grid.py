"""The processes that make a video together as a grid: rows make different passes of guidance, each with all its tokens.

With two passes a step and two GPUs, each GPU makes one pass, and they exchange one prediction a step instead of all
tokens in each layer. With more GPUs, those of a row share the tokens of their pass (`sequence_parallel`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from .sequence_parallel import SequenceParallel

CfgParallel = Literal["auto", "off"]
CFG_PARALLEL: tuple[CfgParallel, ...] = get_args(CfgParallel)


@dataclass(frozen=True)
class PassParallel:
    """The place of this process among those that make different passes of the same step."""

    row: int
    rows: int
    group: Any
    """Of one process in each row."""

    def predictions(self, passes: int, make: Callable[[int], Tensor]) -> list[Tensor]:
        """What `make(i)` gives for each pass i, of which this process calls its own.

        Args:
            passes: a multiple of `rows`.
        """
        results: list[Tensor] = []
        for first in range(0, passes, self.rows):
            own = make(first + self.row).contiguous()
            gathered = [torch.empty_like(own) for _ in range(self.rows)]
            dist.all_gather(gathered, own, group=self.group)
            results += gathered
        return results


class ProcessGrid:
    """All processes that make a video together, arranged for a number of passes.

    Args:
        processes: all of them.
    """

    def __init__(self, processes: SequenceParallel) -> None:
        self._processes = processes
        self._arranged: dict[int, tuple[SequenceParallel | None, PassParallel]] = {}

    def rows(self, passes: int) -> int:
        """How many rows make `passes` passes in equal parts: the most that divide both passes and processes."""
        return max(n for n in range(1, passes + 1) if passes % n == 0 and self._processes.ranks % n == 0)

    def arrange(self, passes: int) -> tuple[SequenceParallel | None, PassParallel | None]:
        """Who shares this process's tokens, and who makes the other passes; None for nobody.

        All processes call it in the same order.
        """
        rows = self.rows(passes)
        if rows == 1:
            return self._processes, None
        if rows not in self._arranged:
            self._arranged[rows] = self._arrange(rows)
        return self._arranged[rows]

    def _arrange(self, rows: int) -> tuple[SequenceParallel | None, PassParallel]:
        columns = self._processes.ranks // rows
        row, column = divmod(self._processes.rank, columns)
        # Each process takes part in making each group, its own or not.
        in_row = [dist.new_group(range(first * columns, (first + 1) * columns)) for first in range(rows)]
        in_column = [dist.new_group(range(first, self._processes.ranks, columns)) for first in range(columns)]
        sequence = SequenceParallel(column, columns, in_row[row]) if columns > 1 else None
        return sequence, PassParallel(row, rows, in_column[column])
