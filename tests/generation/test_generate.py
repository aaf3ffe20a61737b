"""Long videos follow upstream's plan; the conditioning has its channels in order; both hosts give the same bits."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_faces import still, write_faces
from golden_models import Goldens
from PIL import Image
from safetensors.torch import load_file, save_file

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.chunk_writer import ChunkWriter
from diffsynth_omniavatar.generation.colours import match_colours
from diffsynth_omniavatar.generation.dub import dub
from diffsynth_omniavatar.generation.generate import generate
from diffsynth_omniavatar.generation.inputs import SourceVideo
from diffsynth_omniavatar.generation.loading import nano_pipeline
from diffsynth_omniavatar.generation.masks import draw_mouth_mask, load_mouth_mask, paste_outside_mouth
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.pixels import image_tensor
from diffsynth_omniavatar.generation.speech import EncodedSpeech
from diffsynth_omniavatar.media.images import to_bytes
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.timeline import latent_frames, ping_pong
from diffsynth_omniavatar.media.video import probe_video, read_frames
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.small_family import TINY, family_configs
from diffsynth_omniavatar.nano.family import write_random_family

FAST = {"steps": 1, "cfg_scale": 1.0, "show_progress": False}


class FakePipe:
    """Counts rows in its features and frames in its pictures, so that a test sees where everything goes."""

    shows_corners = False

    def __init__(self, conventions=None):
        self.conventions = conventions or Conventions()
        self.dit = SimpleNamespace(config=SimpleNamespace(in_dim=33))
        self.calls, self.prompts = [], []
        self.is_first_process = True

    def encode_prompt(self, prompt):
        self.prompts.append(prompt)
        return torch.zeros(1, 1, 1)

    def encode_speech(self, waveform, rows):
        self.samples, self.rows = len(waveform), rows
        return torch.arange(1.0, rows + 1)[:, None]

    def __call__(self, **inputs):
        self.calls.append(inputs)
        height, width = inputs["height"], inputs["width"]
        for _ in inputs["progress_bar_cmd"](range(inputs["num_inference_steps"])):
            pass
        level = torch.linspace(-1, 1, inputs["num_frames"]) * 0.5 + 0.01 * len(self.calls)
        frames = level.view(1, -1, 1, 1).expand(3, -1, height, width)
        if inputs["on_frames"] is not None:
            inputs["on_frames"](frames[:, :, :1, :1] if self.shows_corners else frames)
        return frames


def noise(samples):
    return Sound(0.1 * np.random.default_rng(0).standard_normal((1, samples)).astype(np.float32), 16000)


def test_chunks_go_through_the_pipeline_as_upstream_plans(goldens, tmp_path, monkeypatch):
    written = []
    monkeypatch.setitem(generate.__globals__, "VideoWriter", lambda *_, **kw: Recorder(written, kw))
    cases = [case for case in Goldens(goldens).json("chunks")["cases"] if case["chunks"] <= 6]
    assert len(cases) >= 3
    for case in cases:
        pipe = FakePipe(Conventions(prefix_frames=(1, 5, 9, 13) if case["random_prefix_frames"] else (1,)))
        pipe.shows_corners = True  # `Recorder` looks at nothing else
        written.clear()
        height, width = case["size"]
        result = generate(
            pipe, prompt="p", image=Image.new("RGB", (64, 64)), audio=noise(case["audio_samples"]),
            out=tmp_path / "v.mp4", height=height, width=width, overlap=case["overlap_frame"], silence=0.0, **FAST,
        )  # fmt: skip
        assert pipe.rows == case["padded_audio_len"] and result.frames == case["frames"]
        assert len(pipe.calls) == case["chunks"] and sum(len(frames) for frames in written) == case["frames"]
        assert pipe.prompts == ["p"]
        for index, (call, plan, frames) in enumerate(zip(pipe.calls, case["plan"], written, strict=True)):
            rows = call["audio_features"][:, 0].long() - 1  # zeros, in front, become -1
            first, last = plan["audio_prefix"]
            wanted = [*range(first, last + 1), *range(plan["audio_start"], plan["audio_end"])]
            assert rows.tolist() == wanted
            assert len(frames) == plan["kept"][1] - plan["kept"][0]
            if plan["carried"] is None:
                assert call["prefix_video"] is None
            else:
                start, end, _ = plan["carried"]
                level = torch.linspace(-1, 1, case["L"]) * 0.5 + 0.01 * index
                assert torch.allclose(call["prefix_video"][0, :, 0, 0], level[start : end + 1])
                assert latent_frames(call["prefix_video"].shape[1]) == plan["prefix_lat_frame"]


@pytest.mark.parametrize("masks", [0, 1, 13])
def test_frames_are_written_as_they_come_as_they_would_be_together(masks):
    generator = torch.Generator().manual_seed(0)
    frames, source = (torch.rand(3, 13, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    pasted = (torch.rand(masks, 16, 16, generator=generator) > 0.5).float() if masks else None
    written = []
    video = SimpleNamespace(write=written.append, path="a.mp4")
    writer = ChunkWriter(video, range(3, 12), pasted, source)
    for part, done in zip(frames.split([1, 4, 4, 4], dim=1), [0, 0, 2, 6], strict=True):
        writer(part.to(torch.bfloat16))
        assert sum(map(len, written)) == done  # a part waits for the next call
    writer.finish()
    together = frames.to(torch.bfloat16).float()
    if pasted is not None:
        together = paste_outside_mouth(together, source, pasted)
    shown = torch.cat(written)
    assert torch.equal(to_bytes(shown) if masks else shown, to_bytes(together[:, 3:12]).permute(1, 2, 3, 0))
    writer(torch.full((3, 1, 16, 16), torch.nan))  # not kept
    broken = ChunkWriter(video, range(1), pasted, source)
    broken(torch.full((3, 1, 16, 16), torch.nan))
    with pytest.raises(ValueError, match=r"^a.mp4: frames have values that are not finite"):
        broken.finish()


class Recorder:
    """Stands for the VideoWriter and keeps the frames."""

    def __init__(self, written, options):
        self.written, self.options = written, options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def write(self, frames):
        self.written.append(frames[:, 0, 0])


def picture(generator, *shape):
    """Random colours within [-0.5, 0.5], each over a cell of 8x8 pixels."""
    return (torch.rand(*shape, generator=generator) - 0.5).repeat_interleave(8, -1).repeat_interleave(8, -2)


def test_matched_colours_are_the_originals():
    """A small linear change of colours is taken off, from what hides the original too; what is alike stays."""
    generator = torch.Generator().manual_seed(0)
    for frames in (1, 9):  # a portrait, a source video
        original = picture(generator, 2, 3, frames, 6, 6)
        shown = original.expand(2, 3, 9, 48, 48).clone()
        shown[..., 16:32, 16:32] = picture(generator, 2, 3, 9, 2, 2)  # a mouth, say
        assert torch.allclose(match_colours(original, original), original, atol=1e-6)
        mixed = torch.einsum("bifhw,io->bofhw", shown, torch.eye(3) + 0.03 * torch.randn(3, 3, generator=generator))
        changed = mixed + torch.tensor([0.03, -0.04, 0.02]).view(3, 1, 1, 1)
        assert (changed - shown).abs().amax() > 0.04
        assert (match_colours(changed, original) - shown).abs().amax() < 0.004  # half of a step of 255


def test_colours_stay_where_nothing_is_alike():
    generator = torch.Generator().manual_seed(0)
    frames = picture(generator, 3, 9, 4, 4)
    assert torch.equal(match_colours(frames, -frames.sign()[:, :1]), frames)


def test_matched_colours_do_not_drift():
    """What each chunk adds to the colours does not add up over many."""
    generator = torch.Generator().manual_seed(0)
    portrait = picture(generator, 3, 1, 8, 8)
    shift = torch.tensor([0.01, -0.008, 0.004]).view(3, 1, 1, 1)
    frames = portrait.expand(-1, 5, -1, -1)
    for _ in range(50):
        frames = match_colours(1.005 * frames + shift, portrait)
    assert (frames - portrait).abs().amax() < 0.001


def test_each_chunk_takes_the_colours_of_the_portrait(tmp_path):
    """The first chunk too, and the next one starts from frames that have them."""
    pipe = FakePipe(Conventions(max_tokens=100, prefix_frames=(1, 5, 9, 13)))
    image = Image.new("RGB", (64, 64), (120, 130, 140))
    common = {"prompt": "p", "image": image, "audio": noise(64000), "out": tmp_path / "v.mp4"}
    generate(pipe, **common, height=64, width=64, match_colours=True, overlap=5, **FAST)
    prefixes = [call["prefix_video"] for call in pipe.calls]
    assert len(prefixes) > 3 and prefixes[0] is None
    length, portrait = pipe.calls[0]["num_frames"], image_tensor(image, 64, 64)[0].unsqueeze(1)
    for index in range(len(prefixes) - 1):
        made = (torch.linspace(-1, 1, length) * 0.5 + 0.01 * (index + 1)).view(1, -1, 1, 1).expand(3, -1, 64, 64)
        assert torch.allclose(prefixes[index + 1], match_colours(made, portrait)[:, -5:], atol=1e-6)
        assert not torch.allclose(prefixes[index + 1], made[:, -5:], atol=1e-3)


def test_sound_is_delayed_by_the_frames_before_it(tmp_path):
    """Frame j shows row j - leading_rows while that row sounds: the sound starts after the leading frames."""
    for leading in (0, 1):
        pipe = FakePipe(Conventions(leading_audio_rows=leading, max_tokens=100))
        out = tmp_path / f"{leading}.mp4"
        result = generate(pipe, prompt="p", image=Image.new("RGB", (64, 64)), audio=noise(16000), out=out,
                          height=64, width=64, **FAST)  # fmt: skip
        silence = round(0.3 * 25)
        assert pipe.samples == 16000 + 4800 and result.frames == probe_video(out).frames == 25 + silence + 1 - (
            1 - leading
        )


def test_what_stays_in_memory_is_what_a_file_gets(tmp_path, monkeypatch):
    written, write = [], VideoWriter.write
    monkeypatch.setattr(VideoWriter, "write", lambda writer, frames: (written.append(frames), write(writer, frames)))
    common = {"prompt": "p", "image": Image.new("RGB", (64, 64)), "audio": noise(16000), "height": 64, "width": 64}
    generate(FakePipe(Conventions(max_tokens=80)), out=tmp_path / "a.mp4", **common, **FAST)
    made = generate(FakePipe(Conventions(max_tokens=80)), **common, **FAST)
    assert made.path is None and made.chunks > 1 and len(made.clip.frames) == made.frames
    assert torch.equal(made.clip.frames, torch.cat(written))
    level = torch.full((1, 13, 64, 64), torch.nan).expand(3, -1, -1, -1)
    monkeypatch.setattr(FakePipe, "__call__", lambda _, **inputs: (inputs["on_frames"](level), level)[1])
    with pytest.raises(ValueError, match=r"^the clip in memory: frames have values that are not finite"):
        generate(FakePipe(Conventions(max_tokens=80)), **common, **FAST)
    # One frame before the sound, 0.3 s of silence, the sound; as in the file.
    samples = made.clip.sound.samples[0]
    assert made.clip.frame_rate == 25 and not samples[: 640 + 4800].any()
    assert np.array_equal(samples[640 + 4800 :], common["audio"].samples[0])


def test_a_speech_is_encoded_once_for_each_silence_and_encoder(tmp_path):
    speech = EncodedSpeech(noise(16000).samples, 16000)
    common = {"prompt": "p", "image": Image.new("RGB", (64, 64)), "height": 64, "width": 64, **FAST}
    plain = generate(FakePipe(Conventions(max_tokens=80)), audio=noise(16000), **common).clip

    def made(pipe, **arguments):
        pipe.rows = 0  # of the last encoding
        clip = generate(pipe, audio=speech, **common, **arguments).clip
        return pipe.rows, torch.equal(clip.frames, plain.frames)

    first, second = (FakePipe(Conventions(max_tokens=80)) for _ in range(2))
    first.speech_encoder, second.speech_encoder = FakePipe(), FakePipe()
    assert made(first) == (made(second)[0], True) != (0, True)
    assert made(first)[0] == made(second)[0] == 0
    assert made(first, silence=1.0)[0] > 0


def test_wrong_sources_are_named(tmp_path):
    pipe = FakePipe()
    common = {"prompt": "p", "audio": noise(16000), "out": tmp_path / "v.mp4", **FAST}
    with pytest.raises(ValueError, match="give image, or video for a V2V checkpoint"):
        generate(pipe, **common)
    with pytest.raises(ValueError, match="video needs a V2V checkpoint"):
        generate(pipe, video="a.mp4", **common)
    pipe.dit.config.in_dim = 49
    with pytest.raises(ValueError, match="V2V checkpoint, which changes the mouth of a video: give video"):
        generate(pipe, image=Image.new("RGB", (8, 8)), **common)
    with pytest.raises(ValueError, match=r"^video: .*absent.mp4"):
        generate(pipe, video=tmp_path / "absent.mp4", height=64, width=64, **common)


def write_video(path, frames, size=64):
    """A clip whose picture and brightness tell the frame."""
    rng = np.random.default_rng(1)
    base = torch.from_numpy(rng.integers(60, 120, (size // 8, size // 8, 3), dtype=np.uint8))
    picture = base.repeat_interleave(8, 0).repeat_interleave(8, 1)
    with VideoWriter(path, size, size, crf=0) as writer:
        writer.write(torch.stack([picture + index for index in range(frames)]))
    return path


def test_short_sources_ping_pong(tmp_path):
    source = SourceVideo(write_video(tmp_path / "source.mp4", 5), (64, 64))
    assert [ping_pong(place, source.count) for place in range(12)] == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3]
    frames = source.frames(range(3, 8))
    stored = read_frames(tmp_path / "source.mp4")
    assert torch.equal(frames, stored[[3, 4, 3, 2, 1]])


@pytest.fixture(scope="module")
def family_folders(tmp_path_factory):
    return {in_dim: write_random_family(tmp_path_factory.mktemp(str(in_dim)), in_dim) for in_dim in (33, 49, 65)}


def load(folder, conventions=TINY.conventions):
    pipe = OmniAvatarPipeline.from_pretrained(torch_dtype=torch.float32, device="cpu", **family_configs(folder))
    pipe.conventions = conventions
    return pipe


def record_model_inputs(pipe):
    """Keep what the model function gets and the final latents."""
    seen = SimpleNamespace(inputs=[], final=None)
    model_fn, decode = pipe.model_fn, pipe.vae.decode

    def record(**inputs):
        seen.inputs.append({name: inputs[name] for name in inputs if name.startswith("omni_")})
        return model_fn(**inputs)

    def keep(latents, **kwargs):
        seen.final = latents
        return decode(latents, **kwargs)

    pipe.model_fn, pipe.vae.decode = record, keep
    return seen


@pytest.mark.parametrize("prefix", [None, 1, 5, 9])
def test_known_frames_are_known_everywhere(family_folders, prefix):
    pipe = load(family_folders[33])
    seen = record_model_inputs(pipe)
    image = Image.fromarray(np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    video = None if prefix is None else torch.rand(3, prefix, 64, 64) * 2 - 1
    pipe("p", input_image=image, input_audio=noise(6400), prefix_video=video, height=64, width=64, num_frames=13,
         num_inference_steps=2, cfg_scale=1.0, seed=0, progress_bar_cmd=iter)  # fmt: skip
    known = 1 if prefix is None else latent_frames(prefix)
    reference = pipe.vae.encode([_pixels(image)[:, None]], device="cpu")
    latents = reference if prefix is None else pipe.vae.encode([video], device="cpu")
    for inputs in seen.inputs:
        y = inputs["omni_y"]
        assert torch.equal(y[:, :16], reference.expand(-1, -1, 4, -1, -1))
        assert (y[:, 16, :known] == 0).all() and (y[:, 16, known:] == 1).all()
        assert torch.equal(inputs["omni_prefix_latents"], latents)
    assert torch.equal(seen.final[:, :, :known], latents)


def _pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 * 2 - 1


@pytest.mark.parametrize("first_frame", ["known", "masked"])
@pytest.mark.parametrize("in_dim", [49, 65])
def test_v2v_channels(family_folders, in_dim, first_frame):
    pipe = load(family_folders[in_dim], Conventions(first_frame=first_frame, image_sizes=((64, 64),), max_tokens=60))
    seen = record_model_inputs(pipe)
    video = torch.randint(0, 255, (9, 64, 64, 3), dtype=torch.uint8)
    other = torch.randint(0, 255, (9, 64, 64, 3), dtype=torch.uint8)
    pipe("p", input_video=video, input_audio=noise(6400), reference_video=other, num_frames=9, num_inference_steps=2,
         cfg_scale=1.0, seed=0, progress_bar_cmd=iter)  # fmt: skip
    pixels = video.permute(3, 0, 1, 2).float() / 255 * 2 - 1
    keep = torch.nn.functional.interpolate(draw_mouth_mask()[None, None], (64, 64), mode="bilinear")[0] > 0.5
    masked = pixels * keep
    if first_frame == "known":
        masked[:, 0] = pixels[:, 0]
    y = seen.inputs[0]["omni_y"]
    assert y.shape[1] == in_dim - 16
    assert torch.allclose(
        y[:, :16], pipe.vae.encode([pixels[:, :1]], device="cpu").expand(-1, -1, 3, -1, -1), atol=1e-5
    )
    assert torch.allclose(y[:, 17:33], pipe.vae.encode([masked], device="cpu"), atol=1e-5)
    generated = y[0, 16, 1] == 1
    assert 0.3 < generated.float().mean() < 0.5 and torch.equal(y[0, 16, 1], y[0, 16, 2])
    assert (y[0, 16, 0] == 0).all() == (first_frame == "known")
    if first_frame == "known":
        assert torch.equal(seen.inputs[0]["omni_prefix_latents"], y[:, 17:33, :1])
        assert torch.equal(seen.final[:, :, :1], y[:, 17:33, :1])
    else:
        assert "omni_prefix_latents" not in seen.inputs[0]
    if in_dim == 65:
        wanted = pipe.vae.encode([other.permute(3, 0, 1, 2).float() / 255 * 2 - 1], device="cpu")
        assert torch.allclose(y[:, 33:], wanted, atol=1e-5)


def test_dubbing_a_video(family_folders, tmp_path):
    source = write_video(tmp_path / "source.mp4", 24)
    pipe = load(family_folders[65], Conventions(image_sizes=((64, 64),), max_tokens=40, aligned=True))
    result = generate(pipe, prompt="p", video=source, audio=noise(11200), out=tmp_path / "out.mp4", overlap=5,
                      **FAST, crf=0)  # fmt: skip
    info = probe_video(result.path)
    # 17.5 rows of sound make 18 frames, and one stands before them.
    assert (info.frames, info.height, info.width, info.has_sound) == (19, 64, 64, True) and result.chunks == 4
    # The source's own pixels outside the mouth, but for what coding them once more takes.
    kept = load_mouth_mask(None, 64, 64)[0] == 1
    wanted = read_frames(source)[:19, kept].float()
    assert (read_frames(result.path)[:, kept].float() - wanted).abs().mean() < 2
    options = {**FAST, "crf": 0, "paste_source": False}
    generate(pipe, prompt="p", video=source, audio=noise(11200), out=tmp_path / "raw.mp4", overlap=5, **options)
    assert (read_frames(tmp_path / "raw.mp4")[:, kept].float() - wanted).abs().mean() > 20
    with pytest.raises(ValueError, match="too few for a reference sequence of 9 frames"):
        short = write_video(tmp_path / "short.mp4", 12)
        generate(pipe, prompt="p", video=short, audio=noise(11200), out=tmp_path / "out.mp4", overlap=5, **FAST)


def test_a_face_in_a_video_is_dubbed(family_folders, tmp_path):
    source = write_video(tmp_path / "source.mp4", 18, 96)
    faces = write_faces(tmp_path / "faces.jsonl", still(0, 18, 48, 48))
    pipe = load(family_folders[65], Conventions(image_sizes=((64, 64),), max_tokens=36))
    made = dub(pipe, video=source, audio=noise(8000), out=tmp_path / "out.mp4", detections=faces, overlap=5, **FAST)
    assert (made.frames, made.dubbed, made.height, made.width) == (18, 18, 96, 96)
    difference = (read_frames(made.path).float() - read_frames(source).float()).abs().mean((0, 3))
    assert difference[60:72, 40:56].mean() > 10 * difference[:20].mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"sliding_window_size": 8, "sliding_window_stride": 4},
            "does not work with sliding_window_size, sliding_window_stride",
        ),
        ({"cfg_merge": True}, "does not work with cfg_merge"),
        ({"input_image": None}, "Give input_image="),
        ({"input_audio": None}, "needs a sound"),
        ({"height": 64}, "both height= and width="),
        ({"input_audio": np.zeros(6400, np.float32)}, "silent"),
        ({"input_audio": np.full(6400, np.nan, np.float32)}, "NaN"),
        ({"input_audio": np.ones(160, np.float32)}, "10.0 ms"),
        ({"tea_cache_l1_thresh": 0.1}, "no coefficients for a width of 96"),
        ({"audio_features": torch.zeros(8, 128), "num_frames": 9}, "8 rows of audio features for 9 video frames"),
    ],
)
def test_bad_inputs_are_named(family_folders, arguments, message):
    pipe = load_once(family_folders[33])
    given = {"input_image": Image.new("RGB", (64, 64)), "input_audio": noise(6400), **arguments}
    with pytest.raises(ValueError, match=message):
        pipe("p", **given)


_loaded = {}


def load_once(folder):
    if folder not in _loaded:
        _loaded[folder] = load(folder)
    return _loaded[folder]


def test_text_is_encoded_once_and_wav2vec_in_float32(family_folders, tmp_path):
    pipe = OmniAvatarPipeline.from_pretrained(
        torch_dtype=torch.bfloat16, device="cpu", **family_configs(family_folders[33])
    )
    pipe.conventions = Conventions(image_sizes=((64, 64),), max_tokens=40)
    passes, speech = [], []
    pipe.text_encoder.register_forward_hook(lambda *_: passes.append(1))
    pipe.speech_encoder.wav2vec2.register_forward_hook(lambda _, __, out: speech.append(out.last_hidden_state.dtype))
    result = generate(pipe, prompt="p", image=Image.new("RGB", (80, 80)), audio=noise(6400), out=tmp_path / "v.mp4",
                      steps=1, cfg_scale=2.0, overlap=5, show_progress=False)  # fmt: skip
    assert result.chunks > 1 and len(passes) == 2
    assert speech and set(speech) == {torch.float32}
    assert next(pipe.dit.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("model", ["tiny", "nano"])
def test_both_hosts_give_the_same_bits(family_folders, model):
    """Compares with what the other host's run of this test left; `make test` runs it on both."""
    folder = os.environ.get("OMNIAVATAR_HOST_VIDEOS")
    if folder is None:
        pytest.skip("set OMNIAVATAR_HOST_VIDEOS to a folder that the tests of both hosts share")
    pipe = load(family_folders[33]) if model == "tiny" else nano_pipeline(device="cpu")
    image = Image.fromarray(np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    video = pipe("a man", input_image=image, input_audio=noise(6400), audio_cfg_scale=3.0, height=64, width=64,
                 num_frames=9, num_inference_steps=3, seed=7, output_type="floatpoint",
                 progress_bar_cmd=iter)  # fmt: skip
    path = Path(folder) / model
    path.mkdir(parents=True, exist_ok=True)
    save_file({"video": video.contiguous()}, path / f"{host.GENERATION}.safetensors")
    for other in path.glob("*.safetensors"):
        assert torch.equal(load_file(other)["video"], video), other
