"""What the command lines of this folder's modules share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch


def module_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m diffsynth_omniavatar.nano.MODULE`, which shows the description as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m diffsynth_omniavatar.nano.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def trainer_parser(
    module: str, description: str | None, *, clips: int, clips_help: str, evaluation_clips: int
) -> argparse.ArgumentParser:
    """`module_parser` with the flags that each trainer has."""
    parser = module_parser(module, description)
    add = parser.add_argument
    add("out", type=Path)
    add("--clips", type=int, default=clips, help=clips_help)
    add("--evaluation_clips", type=int, default=evaluation_clips)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    return parser


def write_figures(path: Path, figures: Mapping[str, float]) -> None:
    """Write what a trained network reaches as JSON, and show it."""
    text = json.dumps(figures, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
