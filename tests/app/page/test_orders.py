"""What is filled in under Talk and Dub becomes the request of the equal command line; faults come to their fields."""

import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image

from diffsynth_omniavatar.app.cli import parse
from diffsynth_omniavatar.app.dub import DUB_FLAGS, LIST_FLAGS
from diffsynth_omniavatar.app.generate import INPUT_FLAGS, SETTING_FLAGS
from diffsynth_omniavatar.app.model_flags import SHARED_FLAGS, given
from diffsynth_omniavatar.app.page import lora_choice
from diffsynth_omniavatar.app.page.dub import order_dub
from diffsynth_omniavatar.app.page.faults import FieldFaults
from diffsynth_omniavatar.app.page.look import Look
from diffsynth_omniavatar.app.page.orders import ADVANCED, ADVANCED_TALK
from diffsynth_omniavatar.app.page.state import PageApp
from diffsynth_omniavatar.app.page.talk import order_talk
from diffsynth_omniavatar.app.page.work_queue import QueueFull
from diffsynth_omniavatar.generation import dub_inputs
from diffsynth_omniavatar.generation.request import TalkRequest
from diffsynth_omniavatar.nano.speaker.clips import draw_clip
from diffsynth_omniavatar.nano.stage import write_video

pytestmark = pytest.mark.one_host("the same requests with both")

PROMPT = "A person's <b>head</b> $(talks) {x}."


class Queue:
    """Takes work and does nothing."""

    def __init__(self):
        self.works, self.is_full = [], False

    def add(self, work):
        if self.is_full:
            raise QueueFull("20 jobs wait already")
        self.works.append(work)


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A page's folder with uploads of a drawn person: portrait.png, speech.wav, film.mp4; and of what is none."""
    uploads = tmp_path_factory.mktemp("page") / "uploads"
    uploads.mkdir()
    clip = draw_clip(2, 9, split="evaluation")
    Image.fromarray(clip.frames[0]).save(uploads / "portrait.png")
    soundfile.write(uploads / "speech.wav", clip.waveform, 16000)
    soundfile.write(uploads / "silent.wav", np.zeros(8000), 16000)
    write_video(uploads / "film.mp4", clip.frames, clip.waveform)
    for name in ("text.png", "text.wav", "text.mp4"):
        (uploads / name).write_text("no picture, no sound")
    return uploads


@pytest.fixture(scope="module")
def look(sent):
    """The film, looked through."""
    look = Look("me", sent / "film.mp4")
    look.run()
    return look


@pytest.fixture
def app(sent):
    args = parse(["page", "--output_path", str(sent.parent)])
    app = PageApp.open(args, sent.parent)
    app.close()
    kept = ("args", "folder", "shelf", "videos", "keep", "runs", "readable")
    yield SimpleNamespace(**{name: getattr(app, name) for name in kept})
    shutil.rmtree(app.videos, ignore_errors=True)


@pytest.fixture
def page(app):
    app.jobs = Queue()
    app.lora_files = app.folder / "loras"
    return app


@pytest.fixture
def fields(sent):
    """As the form hands them over: all settings left alone."""
    own = {"image": str(sent / "portrait.png"), "audio": str(sent / "speech.wav"), "prompt": PROMPT}
    return {**own, "preset": "draft", "model": "nano", **dict.fromkeys(ADVANCED_TALK, "")}


@pytest.fixture
def dub_fields(sent):
    own = {"audio": str(sent / "speech.wav"), "prompt": PROMPT, "face": "1", "keep_audio": "-20dB", "extend": "hold"}
    return {**own, "preset": "best", "model": "nano-v2v", **dict.fromkeys(ADVANCED, "")}


def faults_of(order, *given):
    with pytest.raises(FieldFaults) as caught:
        order(*given)
    return caught.value.faults


def parsed(command):
    words = shlex.split(command)
    assert words[0] == "omniavatar"
    return parse(words[1:])


def asked_for(request):
    """What a request says, without defaults."""
    plain = TalkRequest(prompt="a", audio="b", image="c", out="d.mp4")
    return {name: value for name, value in vars(request).items() if value != getattr(plain, name, None)}


def test_talk_makes_the_request_of_its_command_line(page, fields, monkeypatch):
    made = []
    monkeypatch.setattr(
        "diffsynth_omniavatar.app.page.talk.talk_job",
        lambda request, *_, **__: made.append(request) or SimpleNamespace(notes=(), out=request.out),
    )
    settings = {
        "cfg_scale": "4,5",
        "overlap": "5",
        "match_colours": False,
        "solver": "renoise",
        "seed": "-3",
        "negative_prompt": "-blurry",
    }
    work = order_talk(page, "me", {**fields, **settings})
    args = parsed(work.order.command)
    assert (args.model, args.prompt, args.seed, args.steps) == ("nano", PROMPT, -3, 2)
    (request,) = made
    of_command = TalkRequest(**given(args, INPUT_FLAGS), **given(args, SETTING_FLAGS))
    texts = {name: str(value) for name, value in asked_for(request).items()}
    assert texts == {name: str(value) for name, value in asked_for(of_command).items()}
    assert page.jobs.works == [work] and work.owner == "me" and work.order.seed == -3


def test_dub_makes_the_request_of_its_command_line(page, sent, look, dub_fields, monkeypatch):
    monkeypatch.setattr(dub_inputs, "find_footage", lambda *_, **__: pytest.fail("the faces are looked for again"))
    assert [name for _, name in look.choices()] == ["1"]
    work = order_dub(page, "me", look, {**dub_fields, "crf": "20"})
    args = parsed(work.order.command)
    assert given(args, {**DUB_FLAGS, **LIST_FLAGS, **SHARED_FLAGS}) == {
        **{"face": ["1"], "keep_audio": "-20dB", "extend": "hold", "prompt": PROMPT, "crf": 20},
        **{"audio": [str(work.order.form["audio"])], "out": str(work.job.out), "seed": work.order.seed},
    }
    assert args.video == str(sent / "film.mp4") and (sent / "film.mp4").is_file()
    assert "The video: 128x128" in work.order.notes[0]


@pytest.mark.parametrize(
    ("wrong", "field", "told"),
    [
        ({"image": None}, "image", "Nothing here yet"),
        ({"image": "text.png"}, "image", "The portrait cannot be read as an image"),
        ({"image": "/etc/passwd"}, "image", "send it again"),
        ({"audio": "text.wav"}, "audio", "The speech "),
        ({"audio": "silent.wav"}, "audio", "silent"),
        ({"audio": "portrait.png"}, "audio", "is not a sound"),
        ({"prompt": "  "}, "prompt", "Describe"),
        ({"prompt": "a" * 5001}, "prompt", "5001 letters"),
        ({"prompt": ["a"]}, "prompt", "Describe"),
        ({"model": "nano-v2v"}, "model", "wanted one that makes portraits talk (I2V)"),
        ({"model": ["nano"]}, "model", "Choose a checkpoint"),
        ({"preset": "rm"}, "preset", "draft"),
        ({"crf": "60"}, "crf", "wanted 0 to 51"),
        ({"steps": "many"}, "steps", "many is not a whole number"),
        ({"height": "100", "width": "100"}, "height", "multiples of 16"),
    ],
)
def test_a_mistake_is_told_at_its_field_and_leaves_nothing(page, sent, fields, wrong, field, told):
    wrong = {
        name: str(sent / value) if name in ("image", "audio") and value else value for name, value in wrong.items()
    }
    faults = faults_of(order_talk, page, "", {**fields, **wrong})
    assert list(faults) == [field] and told in faults[field] and str(sent.parent) not in faults[field]
    assert page.jobs.works == [] and not list(page.videos.glob("*"))


def test_both_missing_files_are_told_at_once(page, fields):
    assert set(faults_of(order_talk, page, "", {**fields, "image": None, "audio": None})) == {"image", "audio"}


def test_a_full_queue_is_told_and_leaves_nothing(page, fields):
    page.jobs.is_full = True
    assert faults_of(order_talk, page, "", fields) == {"": "20 jobs wait already"}
    assert not list(page.videos.glob("*"))


def test_a_video_without_a_face_is_told_and_removed(page, sent):
    video = page.keep(
        str(sent / "text.mp4"), "video", SimpleNamespace(suffixes=(".mp4",), name=""), page.videos / "a/b"
    )
    assert faults_of(Look("", video).run)[""].startswith("The video ") and not video.exists()
    assert list(faults_of(order_dub, page, "", None, {})) == ["video"]


def test_the_smallest_box_at_a_place_is_meant(look):
    sheet = look.sheet
    (box,) = sheet.boxes
    left, top, right, bottom = box.corners
    assert sheet.face_at((left + right) / 2, (top + bottom) / 2) == 1 and sheet.face_at(left - 2, top) is None
    inner = type(box)(2, (left + 5, top + 5, right - 5, bottom - 5))
    both = type(sheet)(sheet.image, (box, inner))
    assert both.face_at((left + right) / 2, (top + bottom) / 2) == 2 and both.face_at(left + 2, top + 2) == 1


def test_a_lora_that_does_not_fit_is_told_at_its_field(page, sent):
    (sent / "<i>my lora.safetensors").write_bytes(b"no LoRA")
    name = lora_choice.keep_lora(page, str(sent / "<i>my lora.safetensors"))
    assert name == "_i_my_lora.safetensors" == lora_choice.lora_names(page)[0]
    assert lora_choice.keep_lora(page, str(sent / "<i>my lora.safetensors")) == "_i_my_lora-2.safetensors"
    add = lora_choice.add_lora
    assert list(faults_of(add, page, "nano", name, 1.0)) == ["lora"]
    assert list(faults_of(add, page, "nano", "../uploads/portrait.png", 1.0)) == ["lora"]
    assert list(faults_of(add, page, "14B", name, 1.0)) == ["lora_model"]
    assert list(faults_of(add, page, "nano", name, float("nan"))) == ["strength"]
    assert page.shelf.loras == {}


def test_a_lora_that_is_added_again_gets_its_new_strength(page, monkeypatch):
    monkeypatch.setattr(lora_choice, "facts", lambda args: None)
    page.lora_files.mkdir(exist_ok=True)
    for name in ("one.pt", "two.pt"):
        (page.lora_files / name).touch()
    for name, strength in (("one.pt", 0.5), ("two.pt", 1), ("one.pt", -2)):
        lora_choice.add_lora(page, "nano", name, strength)
    assert page.shelf.loras == {"nano": ((page.lora_files / "two.pt", 1.0), (page.lora_files / "one.pt", -2.0))}
    lora_choice.clear_loras(page, "nano-v2v")
    lora_choice.clear_loras(page, "nano")
    assert page.shelf.loras == {}
