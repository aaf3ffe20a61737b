"""Compare: from the filled-in fields to two videos of two checkpoints, with the same portrait, speech and seed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from .checkpoints import chosen_checkpoint
from .faults import FieldFaults
from .readable import Readable
from .state import PageApp
from .talk import order_talk
from .training_runs import TrainingRuns
from .video_work import VideoWork

TAB = "compare"
SIDES = ("checkpoint_a", "checkpoint_b")
"""Fields that name the two."""


def order_pair(
    app: PageApp, owner: str, fields: Mapping[str, Any], runs: TrainingRuns, readable: Readable
) -> tuple[VideoWork, VideoWork]:
    """Check what was filled in and put both jobs into the queue.

    Args:
        app: the page.
        owner: who asks.
        fields: image and audio, files that were sent; prompt, preset, seed, and `SIDES`.
        runs: the trainings.
        readable: where checkpoints may lie.

    Raises:
        FieldFaults: something is wrong, by the field.
    """
    shared = {name: value for name, value in fields.items() if name not in SIDES}
    if shared.get("seed") in (None, ""):
        shared["seed"] = secrets.randbelow(2**31)
    names = _names(app, fields, runs, readable)
    first = order_talk(app, owner, {**shared, "model": names[0]}, TAB)
    try:
        return first, order_talk(app, owner, {**shared, "model": names[1]}, TAB)
    except BaseException:
        app.jobs.stop(first)
        raise


def _names(app: PageApp, fields: Mapping[str, Any], runs: TrainingRuns, readable: Readable) -> list[str]:
    """Those of the two on the shelf."""
    found, faults = list[str](), dict[str, str]()
    for side in SIDES:
        try:
            model = chosen_checkpoint(str(fields[side] or ""), app.shelf, runs, readable)
            if model.dubs:
                raise ValueError("it is one for dubbing; wanted one that makes portraits talk")
            if model.name in found:
                raise ValueError("choose another one than A")
            found.append(model.name)
        except (ValueError, OSError) as error:
            text = str(error)
            faults[side] = text[:1].upper() + text[1:].removesuffix(".") + "."
    if faults:
        raise FieldFaults(faults)
    return found
