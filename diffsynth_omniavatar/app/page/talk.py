"""Talk: from the filled-in fields to a job that makes a portrait speak."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...generation.request import RequestError, TalkRequest
from ..jobs import talk_job
from .command_lines import command_line
from .faults import FieldFaults, field_faults, named
from .orders import chosen_model, job_folder, model_words, settings_of
from .state import PageApp
from .uploads import PICTURE, SOUND
from .video_work import Order, VideoWork

PROMPT = "A realistic video of a person speaking directly to the camera, with the head still."
LONGEST_PROMPT = 5000
"""Letters; the text encoder reads some 500 words."""


def order_talk(app: PageApp, owner: str, fields: Mapping[str, Any], tab: str = "talk") -> VideoWork:
    """Check what was filled in and put the job into the queue.

    Args:
        app: the page.
        owner: who asks.
        fields: image and audio, files that were sent; prompt, preset, model; and settings of `orders.ADVANCED_TALK`,
            None or "" where they were left alone.
        tab: where.

    Raises:
        FieldFaults: something is wrong, by the field.
    """
    with job_folder(app.videos) as folder, field_faults():
        work = _checked(app, owner, dict(fields), folder, tab)
        app.jobs.add(work)
    return work


def _checked(app: PageApp, owner: str, fields: dict[str, Any], folder: Path, tab: str) -> VideoWork:
    form = dict(fields)
    model = chosen_model(app, fields.pop("model"), dubs=False)
    loras = app.shelf.loras.get(model.name, ())
    sent = {"image": fields.pop("image"), "audio": fields.pop("audio")}
    prompt, preset = check_prompt(fields.pop("prompt")), fields.pop("preset")
    kept: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for name, kind, target in (("image", PICTURE, "portrait"), ("audio", SOUND, "speech")):
        try:
            kept[name] = app.keep(sent[name], name, kind, folder / target)
        except FieldFaults as error:
            faults |= error.faults
    if faults:
        raise FieldFaults(faults)
    settings = settings_of(fields, preset, model.facts)
    out = folder / "talk.mp4"
    files = {kept["image"]: "the portrait", kept["audio"]: "the speech", out: "the video"}
    with field_faults(files):
        assert model.facts is not None
        job = talk_job(TalkRequest(prompt=prompt, out=out, **kept, **settings), model.facts, show_progress=False)
    notes = tuple(named(str(RequestError(note)).removeprefix("warning: image "), files) for note in job.notes)
    words = {**model_words(model, loras), "prompt": prompt, **kept, "out": out, **settings}
    order = Order(
        tab=tab,
        title=prompt,
        model=model.name,
        loras=loras,
        seed=settings["seed"],
        command=command_line(["generate"], words),
        files=files,
        notes=notes,
        form={**form, **kept},
    )
    return VideoWork(owner, job, order, app.shelf)


def check_prompt(prompt: Any) -> str:
    """The prompt, if it is a text of usual length.

    Raises:
        FieldFaults: it is not.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise FieldFaults({"prompt": "Describe the person and what they do."})
    if len(prompt) > LONGEST_PROMPT:
        raise FieldFaults({"prompt": f"Has {len(prompt)} letters, wanted at most {LONGEST_PROMPT}."})
    return prompt.strip()
