"""`python -m diffsynth_omniavatar.nano.speaker`: write a data set of the speaker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..command_line import module_parser
from .clips import write_clips


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = module_parser("speaker", write_clips.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--frames", type=int, default=101)
    parser.add_argument("--seed", type=int, default=0, help="of the first clip; the others follow")
    parser.add_argument("--split", choices=("train", "evaluation"), default="train")
    parser.add_argument("--lead", type=int, default=0, help="most frames that are spoken before a clip begins")
    parser.add_argument("--silent", type=float, default=0.0, help="share of clips in which nobody speaks, 0 to 1")
    parser.add_argument("--lively", action="store_true", help="with moves that nothing decides, and textures")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    seeds = range(given.seed, given.seed + given.clips)
    options = {name: getattr(given, name) for name in ("split", "lead", "silent", "lively", "workers")}
    print(write_clips(given.folder, seeds, given.frames, **options))


if __name__ == "__main__":
    main()
