"""Dub, second part: from the chosen face and the speech to a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...generation.dub_request import DubRequest
from ..jobs import dub_job
from .command_lines import command_line, shown_path
from .faults import FieldFaults, field_faults
from .look import Look
from .orders import chosen_model, job_folder, model_words, settings_of
from .state import PageApp
from .talk import check_prompt
from .uploads import SOUND, VIDEO
from .video_work import Order, VideoWork


def order_look(app: PageApp, owner: str, upload: str | None) -> Look:
    """Look for the faces of a video that was sent.

    Raises:
        FieldFaults: there is no video, or too much work.
    """
    with job_folder(app.videos) as folder, field_faults():
        look = Look(owner, app.keep(upload, "video", VIDEO, folder / "source"))
        app.looks.add(look)
    return look


def order_dub(app: PageApp, owner: str, look: Look | None, fields: Mapping[str, Any], tab: str = "dub") -> VideoWork:
    """Check what was filled in and put the job into the queue.

    Args:
        app: the page.
        owner: who asks.
        look: the video, with its faces found.
        fields: audio, a file that was sent; face, prompt, preset, model, extend and keep_audio; and settings of
            `orders.ADVANCED`, None or "" where they were left alone.
        tab: where.

    Raises:
        FieldFaults: something is wrong, by the field.
    """
    if look is None or look.footage is None:
        raise FieldFaults({"video": "Give a video, and wait until its faces are found."})
    with job_folder(app.videos) as folder, field_faults():
        work = _checked(app, owner, look, dict(fields), folder, tab)
        app.jobs.add(work)
    return work


def _checked(app: PageApp, owner: str, look: Look, fields: dict[str, Any], folder: Path, tab: str) -> VideoWork:
    form = dict(fields)
    model = chosen_model(app, fields.pop("model"), dubs=True)
    loras = app.shelf.loras.get(model.name, ())
    prompt, preset = check_prompt(fields.pop("prompt")), fields.pop("preset")
    audio = app.keep(fields.pop("audio"), "audio", SOUND, folder / "speech")
    settings = settings_of(fields, preset, model.facts)
    out = folder / "dubbed.mp4"
    files = {look.video: "the video", audio: "the speech", out: "the dubbed video"}
    with field_faults(files):
        assert model.facts is not None
        request = DubRequest(video=look.video, audio=audio, prompt=prompt, out=out, **settings)
        job = dub_job(request, model.facts, show_progress=False, footage=look.footage)
    words = {**model_words(model, loras), "prompt": prompt, "audio": audio, "out": out, **settings}
    order = Order(
        tab=tab,
        title=prompt,
        model=model.name,
        loras=loras,
        seed=settings["seed"],
        command=command_line(["dub", shown_path(look.video)], words),
        files=files,
        notes=tuple(note.replace(str(look.video), "The video") for note in job.notes),
        form={**form, "audio": audio},
    )
    return VideoWork(owner, job, order, app.shelf)
