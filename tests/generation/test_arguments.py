"""Every argument of `generate` and of the pipeline arrives where it has its effect, in every chunk."""

import dataclasses
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from synthetic_clips import noise, portrait, shown, write_levels

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.generate import generate
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.progress import progress
from diffsynth_omniavatar.generation.request import TalkRequest
from diffsynth_omniavatar.media.images import to_bytes
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.sampling import NEGATIVE_PROMPT
from diffsynth_omniavatar.model.small_family import SmallVAE

SIZE = 32
LENGTH, OVERLAP = 9, 5
"""Frames of a chunk, and those that it takes over."""
SOURCE_FRAMES = 42
CHUNKS = 3
MADE = 0.1
"""Colour of all that the spy makes; within reach of `match_colours` from the portrait's."""
PORTRAIT = Image.new("RGB", (SIZE, SIZE), (134, 134, 134))
OTHER_PORTRAIT = Image.new("RGB", (SIZE, SIZE), (90, 90, 90))
FRAME = [70, 80, 90]
SMALL_FACE = ImageOps.expand(portrait(128), 128, tuple(FRAME))
LEFT_KEPT = torch.tensor([[1.0, 0.0]]).repeat_interleave(SIZE // 2, 1).expand(SIZE, -1)
"""A mouth mask that keeps the left half."""
SPEECH, OTHER_SPEECH = noise(0.64, seed=1), noise(0.6, seed=2)


class SpyPipe:
    """Stands for a pipeline that makes grey chunks; keeps what it is given."""

    is_first_process = True
    vae, device, torch_dtype = SmallVAE(dim=4), "cpu", torch.float32

    def __init__(self, channels, **conventions):
        given = {
            "image_sizes": ((SIZE, SIZE),),
            "max_tokens": 10,
            "prefix_frames": (1, 5, 9, 13),
            "aligned": channels > 33,
        }
        self.conventions = Conventions(**given | conventions)
        config = SimpleNamespace(in_dim=channels)
        self.dit = SimpleNamespace(config=config)
        self.calls = []

    def load_models_to_device(self, names):
        pass

    def encode_prompt(self, prompt):
        return torch.tensor([[list(prompt.encode())]])

    def encode_speech(self, waveform, rows):
        self.waveform = waveform
        return torch.arange(1.0, rows + 1)[:, None]

    def __call__(self, **inputs):
        self.calls.append(inputs)
        list(inputs["progress_bar_cmd"](range(inputs["num_inference_steps"])))
        frames = torch.full((3, inputs["num_frames"], inputs["height"], inputs["width"]), MADE)
        if inputs["on_frames"] is not None:
            inputs["on_frames"](frames)
        return frames


class SpyWriter:
    """Stands for the VideoWriter; keeps the frames as bytes."""

    def __init__(self, path, height, width, **options):
        self.path, self.options, self.frames = path, options, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def write(self, frames):
        self.frames.append(to_bytes(frames) if frames.is_floating_point() else frames)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Clips whose pictures tell their places, by name."""
    folder, lengths = tmp_path_factory.mktemp("videos"), {"source": SOURCE_FRAMES, "other": 20, "short": 7}
    return {name: write_levels(folder / f"{name}.mp4", frames, SIZE) for name, frames in lengths.items()}


@pytest.fixture
def run(monkeypatch, tmp_path, videos):
    """Runs `generate` with spies on both sides: gives what they saw."""

    def run_generate(channels, conventions=None, **arguments):
        writers, bars, dubs = [], [], []
        spies = {
            "VideoWriter": lambda *args, **options: writers.append(SpyWriter(*args, **options)) or writers[-1],
            "progress": lambda chunks, steps, show: bars.append(show) or progress(chunks, steps, False),
            "dub": lambda pipe, request, **_: dubs.append(Path(request.video).stem),
        }
        for name, spy in spies.items():
            monkeypatch.setitem(generate.__globals__, name, spy)
        pipe = SpyPipe(channels, **conventions or {})
        source = {"image": PORTRAIT} if channels == 33 else {"video": videos["source"]}
        common = {"prompt": "a", "audio": SPEECH, "out": tmp_path / "a.mp4", "overlap": OVERLAP, "silence": 0.0}
        arguments = {name: videos.get(value, value) if isinstance(value, str) else value
                     for name, value in arguments.items()}  # fmt: skip
        result = generate(pipe, **common | source | arguments)
        monkeypatch.undo()
        writer = writers[0] if writers else None
        return SimpleNamespace(pipe=pipe, calls=pipe.calls, writer=writer, bars=bars, dubs=dubs, result=result)

    return run_generate


@dataclass(frozen=True)
class Arrival:
    """Where an argument of `generate` is seen."""

    name: str
    given: Any
    seen: Any
    """Function of a run."""
    wanted: Any
    channels: int = 33
    beside: dict[str, Any] = field(default_factory=dict)
    """Arguments that it needs, left out in the run to compare with."""
    always: dict[str, Any] = field(default_factory=dict)
    """Arguments of both runs."""


def of_all_chunks(name, change=lambda value: value):
    """What the pipeline gets as `name`, where all chunks get the same."""

    def seen(run):
        values = [change(call[name]) for call in run.calls]
        assert len(values) > 1 and all(value == values[0] for value in values), values
        return values[0]

    return seen


def text_of(embedding):
    return None if embedding is None else bytes(embedding[0, 0].tolist()).decode()


def places(video):
    """Which frames of a clip of `write_levels` a video shows: uint8 [F, H, W, 3]."""
    return None if video is None else shown(video)


def written(run):
    return torch.cat(run.writer.frames)


def grey_of(image):
    return np.asarray(image)[..., 0].mean()


def straight(name, given, under=None, **more):
    """An argument that the pipeline gets as it is."""
    return Arrival(name, given, of_all_chunks(under or name), given, **more)


ARRIVALS = [
    Arrival("prompt", "a dog", of_all_chunks("prompt_embeds", text_of), "a dog"),
    Arrival("negative_prompt", "a cat", of_all_chunks("negative_prompt_embeds", text_of), "a cat"),
    Arrival("audio", OTHER_SPEECH, lambda run: run.pipe.waveform.tolist(), OTHER_SPEECH.samples[0].tolist()),
    Arrival(
        "audio",
        OTHER_SPEECH,
        lambda run: run.writer.options["sound"].samples.tolist(),
        OTHER_SPEECH.samples.tolist(),
    ),
    Arrival("out", "b.mp4", lambda run: run.writer.path.name, "b.mp4"),
    Arrival("image", OTHER_PORTRAIT, of_all_chunks("input_image", grey_of), 90.0),
    Arrival("image", OTHER_PORTRAIT, of_all_chunks("input_image", grey_of), 90.0, channels=49),
    Arrival(
        "crop_portrait",
        True,
        of_all_chunks("input_image", lambda image: image.width < 256),
        True,
        always={"image": SMALL_FACE},
    ),
    Arrival(
        "video",
        "short",
        lambda run: [places(call["input_video"]) for call in run.calls],
        [[0, 1, 2, 3, 4, 5, 6, 5, 4], [4, 5, 6, 5, 4, 3, 2, 1, 0], [4, 3, 2, 1, 0, 1, 2, 3, 4]],
        channels=49,
        always={"paste_source": False},
    ),
    Arrival("aligned", False, lambda run: run.dubs, ["source"], channels=49),
    Arrival(
        "mouth_mask",
        LEFT_KEPT,
        of_all_chunks("mouth_mask", lambda mask: mask is LEFT_KEPT),
        True,
        channels=49,
    ),
    Arrival(
        "mouth_mask",
        LEFT_KEPT,
        lambda run: (written(run) == to_bytes(torch.tensor(MADE))).float().mean((0, 1, 3))[[1, SIZE - 2]].tolist(),
        [0.0, 1.0],
        channels=49,
    ),
    Arrival(
        "paste_source",
        False,
        lambda run: written(run).unique().tolist(),
        [to_bytes(torch.tensor(MADE)).item()],
        channels=49,
    ),
    Arrival("reference_video", "other", of_all_chunks("reference_video", places), [*range(11, 20)], channels=65),
    Arrival("height", 48, of_all_chunks("height"), 48, beside={"width": SIZE}, always={"max_tokens": 14}),
    Arrival("width", 48, of_all_chunks("width"), 48, beside={"height": SIZE}, always={"max_tokens": 14}),
    Arrival("max_tokens", 14, of_all_chunks("num_frames"), 13),
    Arrival("overlap", 1, lambda run: {call["prefix_video"].shape[1] for call in run.calls[1:]}, {1}),
    Arrival(
        "match_colours",
        True,
        lambda run: {round(call["prefix_video"].mean().item(), 3) for call in run.calls[1:]},
        {0.051},
    ),
    Arrival("silence", 0.2, lambda run: len(run.pipe.waveform), len(SPEECH.samples[0]) + 3200),
    Arrival("sampler", "fastwan", of_all_chunks("timesteps"), (1000.0, 757.0, 522.0)),
    straight("steps", 3, "num_inference_steps"),
    straight("timesteps", (900.0, 300.0)),
    straight("sigma_shift", 7.0),
    straight("solver", "renoise"),
    straight("cfg_scale", 2.0),
    straight("audio_cfg_scale", 3.0),
    straight("apg_eta", 0.5),
    straight("guidance_rescale", 0.7),
    straight("guidance_from", 0.25),
    straight("guidance_to", 0.75),
    Arrival("seed", 7, lambda run: [call["seed"] for call in run.calls], [7, 8, 9]),
    straight("tiled", True),
    straight("tea_cache_l1_thresh", 0.14),
    straight("tea_cache_model_id", "Wan2.1-T2V-1.3B"),
    Arrival("crf", 30, lambda run: run.writer.options["crf"], 30),
    Arrival("preview", "now.png", lambda run: callable(run.calls[0]["on_step"]), True),
    Arrival("on_preview", print, lambda run: callable(run.calls[0]["on_step"]), True),
    Arrival("show_progress", False, lambda run: run.bars, [False]),
]


def test_every_argument_of_generate_is_looked_at():
    fields = {field.name for field in dataclasses.fields(TalkRequest)}
    assert {arrival.name for arrival in ARRIVALS} == fields | {"show_progress", "on_preview"}
    rest = {"pipe", "request", "arguments"}
    assert set(inspect.signature(generate).parameters) == rest | {"show_progress", "on_preview"}


@pytest.mark.parametrize("arrival", ARRIVALS, ids=lambda arrival: arrival.name)
def test_an_argument_of_generate_arrives(run, arrival):
    """With it the stated thing is seen, without it another."""
    given = {arrival.name: arrival.given, **arrival.beside}
    assert arrival.seen(run(arrival.channels, **arrival.always, **given)) == arrival.wanted
    assert arrival.seen(run(arrival.channels, **arrival.always)) != arrival.wanted


def test_generate_without_a_negative_prompt_takes_upstreams(run):
    assert of_all_chunks("negative_prompt_embeds", text_of)(run(33)) == NEGATIVE_PROMPT
    assert NEGATIVE_PROMPT.startswith("Vivid color tones, background/camera moving quickly, screen switching")
    assert run(33, cfg_scale=1.0).calls[0]["negative_prompt_embeds"] is None


@pytest.mark.parametrize("leading", [0, 1])
def test_the_sound_starts_with_the_frame_that_hears_it(run, leading):
    """The first row of features stands beside frame `leading`, at which the file's sound begins."""
    result = run(33, {"leading_audio_rows": leading})
    rows = result.calls[0]["audio_features"][:, 0].tolist()
    assert rows == [0.0] * leading + [*range(1, LENGTH + 1 - leading)]
    assert result.writer.options["sound_delay"] * 25 == pytest.approx(rows.index(1.0))


def test_silence_in_front_is_upstreams_for_portraits_alone(run):
    samples = len(SPEECH.samples[0])
    assert len(run(33, silence=None).pipe.waveform) == samples + 4800
    assert len(run(49, silence=None).pipe.waveform) == samples


@pytest.mark.parametrize("channels", [49, 65])
def test_chunks_of_a_video(run, channels):
    """Each chunk has its own part of the source and the frames of the chunk before; who it is stays."""
    result = run(channels)
    assert result.result.chunks == len(result.calls) == CHUNKS
    for index, call in enumerate(result.calls):
        start = index * (LENGTH - OVERLAP)
        assert places(call["input_video"]) == [*range(start, start + LENGTH)]
        assert places(torch.from_numpy(np.array(call["input_image"]))[None]) == [0]
        if channels == 65:
            assert places(call["reference_video"]) == [*range(SOURCE_FRAMES - LENGTH, SOURCE_FRAMES)]
        else:
            assert call["reference_video"] is None
        # What is pasted for the file is not what the next chunk starts from.
        carried = call["prefix_video"]
        assert carried is None if index == 0 else torch.equal(carried, torch.full((3, OVERLAP, SIZE, SIZE), MADE))
    kept = [*range(result.result.frames)]
    assert places(written(result)[:, :4]) == kept  # above the built-in mask


# The pipeline itself


class SpyHost:
    """Takes the place of the host's `__call__`; keeps what it and the units would get."""

    def __init__(self, monkeypatch):
        def call(pipe, **arguments):
            self.host, (self.shared, self.positive, self.negative) = arguments, pipe.take_call_inputs()
            self.floats, self.on_step = pipe._returns_floats, pipe.scheduler._on_step
            self.on_frames = pipe._on_frames

        monkeypatch.setattr(host.WanVideoPipeline, "__call__", call)


@pytest.fixture
def call(monkeypatch):
    """Calls a pipeline of so many channels whose networks are never run."""

    def call_pipeline(channels=33, leading=1, **arguments):
        pipe = host.WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
        pipe.__class__ = OmniAvatarPipeline
        pipe.conventions = Conventions(leading_audio_rows=leading, image_sizes=((SIZE, SIZE),), max_tokens=30)
        pipe.dit = SimpleNamespace(config=SimpleNamespace(has_masked_video=channels > 33), runner=None, dim=1536)
        pipe._call_inputs, pipe._returns_floats, pipe.vae = ({}, {}, {}), False, SimpleNamespace()
        spy = SpyHost(monkeypatch)
        pipe(**{"input_image": PORTRAIT, "input_audio": SPEECH} | arguments)
        assert pipe.take_call_inputs() == ({}, {}, {}) and not pipe._returns_floats
        return spy

    return call_pipeline


FEATURES, CLIP = torch.ones(13, 4), torch.ones(13, SIZE, SIZE, 3, dtype=torch.uint8)
PREFIX, EMBEDDING = torch.ones(3, 5, SIZE, SIZE), torch.ones(1, 2, 3)


def in_host(name, given, wanted=None, **more):
    return name, given, lambda spy: spy.host[name], given if wanted is None else wanted, more


def in_units(name, given, unit_input=None, **more):
    return name, given, lambda spy: spy.shared[f"omni_{unit_input or name}"], given, more


def in_sampling(name, given):
    return name, given, lambda spy: getattr(spy.shared["omni_sampling"], name), given, {}


CALL_ARRIVALS = [
    in_host("prompt", "a"),
    in_host("negative_prompt", "b"),
    ("input_image", OTHER_PORTRAIT, lambda spy: grey_of(spy.host["input_image"]), 90.0, {}),
    in_units("input_audio", OTHER_SPEECH, "sound"),
    (
        "audio_sample_rate",
        8000,
        lambda spy: spy.shared["omni_sound"].rate,
        8000,
        {"always": {"input_audio": SPEECH.samples[0]}},
    ),
    in_units("audio_features", FEATURES),
    in_host("input_video", CLIP),
    in_units("input_video", CLIP, "source_video", channels=49),
    in_units("mouth_mask", LEFT_KEPT),
    in_units("reference_video", CLIP),
    in_units("prefix_video", PREFIX),
    ("prompt_embeds", EMBEDDING, lambda spy: spy.positive["context"], EMBEDDING, {}),
    ("negative_prompt_embeds", EMBEDDING, lambda spy: spy.negative["context"], EMBEDDING, {}),
    in_host("height", 48, beside={"width": SIZE}),
    in_host("width", 48, beside={"height": SIZE}),
    in_host("num_frames", 5),
    in_host("num_inference_steps", 7),
    in_host("cfg_scale", 2.0),
    in_host("sigma_shift", 3.0),
    ("sampler", "fastwan", lambda spy: spy.host["num_inference_steps"], 3, {}),
    in_sampling("timesteps", (900.0, 300.0)),
    in_sampling("solver", "renoise"),
    in_sampling("audio_cfg_scale", 3.0),
    in_sampling("apg_eta", 0.5),
    in_sampling("guidance_rescale", 0.7),
    in_sampling("guidance_from", 0.25),
    in_sampling("guidance_to", 0.75),
    in_host("denoising_strength", 0.5),
    in_host("tiled", True),
    in_host("tea_cache_l1_thresh", 0.14),
    in_host("tea_cache_model_id", "Wan2.1-T2V-14B"),
    ("output_type", "floatpoint", lambda spy: spy.floats, True, {}),
    ("on_step", print, lambda spy: spy.on_step, print, {}),
    ("on_frames", print, lambda spy: spy.on_frames, print, {}),
    *(
        ("host_arguments", value, lambda spy, name=name: spy.host.get(name), value, {"under": name})
        for name, value in {"seed": 3, "tile_size": (8, 8)}.items()
    ),
]


def test_every_argument_of_the_pipeline_is_looked_at():
    names = {name for name, *_ in CALL_ARRIVALS}
    assert names == set(inspect.signature(OmniAvatarPipeline.__call__).parameters) - {"self"}


@pytest.mark.parametrize(
    ("name", "given", "seen", "wanted", "more"), CALL_ARRIVALS, ids=[name for name, *_ in CALL_ARRIVALS]
)
def test_an_argument_of_the_pipeline_arrives(call, name, given, seen, wanted, more):
    """As in `generate`; a tensor is the one given."""
    always = {"channels": more.get("channels", 33), **more.get("always", {})}
    found = seen(call(**always, **more.get("beside", {}), **{more.get("under", name): given}))
    assert found is wanted or found == wanted
    found = seen(call(**always))
    assert found is not wanted and (isinstance(wanted, torch.Tensor) or found != wanted)


@pytest.mark.parametrize(("leading", "rows", "frames"), [(0, 5, 5), (1, 5, 9), (1, 4, 5), (0, 6, 9)])
def test_a_clip_is_as_long_as_its_sound_and_the_frames_before_it(call, leading, rows, frames):
    sound = SPEECH.samples[0][: rows * 640]
    assert call(leading=leading, input_audio=sound).host["num_frames"] == frames


def test_defaults_of_a_call(call):
    """Upstream's negative prompt; tiles above 720x720 alone; TeaCache's coefficients by the width of the denoiser."""
    spy = call()
    assert spy.host["negative_prompt"] == NEGATIVE_PROMPT and not spy.host["tiled"]
    assert call(negative_prompt="").host["negative_prompt"] == ""
    assert [call(height=512, width=width, num_frames=5).host["tiled"] for width in (512, 1040)] == [False, True]
    assert call(tea_cache_l1_thresh=0.1).host["tea_cache_model_id"] == "Wan2.1-T2V-1.3B"
    assert call(tea_cache_l1_thresh=0.0).host["tea_cache_l1_thresh"] is None


def test_a_source_video_is_the_hosts_start_only_where_it_is_asked_for(call):
    assert call(49, input_video=CLIP).host["input_video"] is None
    assert call(49, input_video=CLIP, denoising_strength=0.5).host["input_video"] is CLIP
