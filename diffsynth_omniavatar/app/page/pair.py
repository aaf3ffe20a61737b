"""Compare: from the filled-in fields to two videos of two checkpoints, with the same speech and seed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from .faults import FieldFaults
from .orders import chosen_model
from .state import PageApp
from .video_work import VideoWork

SIDES = ("checkpoint_a", "checkpoint_b")
"""Fields that name the two."""


def order_pair(
    app: PageApp, dubs: bool, fields: Mapping[str, Any], order: Callable[[Mapping[str, Any]], VideoWork]
) -> tuple[VideoWork, VideoWork]:
    """Check what was filled in and put both jobs into the queue.

    Args:
        app: the page.
        dubs: whether the two dub a video, else they make a portrait talk.
        fields: those of `order_talk` or `order_dub`, but model; and `SIDES`.
        order: one of these two functions, which gets the fields.

    Raises:
        FieldFaults: something is wrong, by the field.
    """
    shared = {name: value for name, value in fields.items() if name not in SIDES}
    if shared.get("seed") in (None, ""):
        shared["seed"] = secrets.randbelow(2**31)
    _check_sides(app, dubs, fields)
    first = order({**shared, "model": fields[SIDES[0]]})
    try:
        return first, order({**shared, "model": fields[SIDES[1]]})
    except BaseException:
        app.jobs.stop(first)
        raise


def _check_sides(app: PageApp, dubs: bool, fields: Mapping[str, Any]) -> None:
    """FieldFaults unless two checkpoints are chosen, both of the mode."""
    names, faults = list[str](), dict[str, str]()
    for side in SIDES:
        try:
            name = chosen_model(app, fields[side], dubs).name
            if name in names:
                raise FieldFaults({"model": "Choose another one than A."})
            names.append(name)
        except FieldFaults as error:
            faults[side] = error.faults["model"]
    if faults:
        raise FieldFaults(faults)
