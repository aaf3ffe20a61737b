"""What the denoiser gets in generation, in bfloat16: identity, source, mask, known frames and sound in their places."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from synthetic_clips import noise

from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.media.images import to_video
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.sampling import NEGATIVE_PROMPT
from diffsynth_omniavatar.model.small_family import family_configs
from diffsynth_omniavatar.nano.family import write_random_family

SIZE, FRAMES = 32, 9
GENERATOR = torch.Generator().manual_seed(0)
IDENTITY, *SOURCE = torch.randint(0, 255, (FRAMES + 1, SIZE, SIZE, 3), generator=GENERATOR, dtype=torch.uint8)
SOURCE = torch.stack(SOURCE)
LEFT_KEPT = torch.tensor([[1.0, 0.0]]).repeat_interleave(SIZE // 2, 1).expand(SIZE, -1)
PREFIX = torch.rand(3, 5, SIZE, SIZE, generator=GENERATOR) * 2 - 1


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """One for portraits, one for videos."""

    def load(channels):
        folder = write_random_family(tmp_path_factory.mktemp(str(channels)), channels)
        return OmniAvatarPipeline.from_pretrained(torch_dtype=torch.bfloat16, device="cpu", **family_configs(folder))

    return {channels: load(channels) for channels in (33, 49)}


@pytest.fixture
def generated(pipelines, monkeypatch):
    """Generates a clip in one step: gives what each pass of the denoiser got, the last latents, and the pipeline."""

    def run(channels, first_frame="known", leading=1, **arguments):
        pipe = pipelines[channels]
        pipe.conventions = Conventions(first_frame=first_frame, leading_audio_rows=leading)
        passes, finals, model_fn, decode = [], [], pipe.model_fn, pipe.vae.decode
        monkeypatch.setattr(pipe, "model_fn", lambda **inputs: passes.append(inputs) or model_fn(**inputs))
        monkeypatch.setattr(
            pipe.vae, "decode", lambda latents, **more: finals.append(latents) or decode(latents, **more)
        )
        common = {"prompt": "a", "input_image": Image.fromarray(IDENTITY.numpy()), "input_audio": noise(FRAMES / 25)}
        sizes = {"height": SIZE, "width": SIZE, "num_frames": FRAMES, "num_inference_steps": 1, "cfg_scale": 1.0}
        pipe(**{**common, **sizes, "seed": 0, "progress_bar_cmd": iter, **arguments})
        monkeypatch.undo()
        return SimpleNamespace(pipe=pipe, passes=passes, inputs=passes[0], final=finals[0])

    return run


def pixels(frames):
    """uint8 [F, H, W, 3] -> [3, F, H, W] in [-1, 1]."""
    return to_video(frames[None])[0]


def latents(pipe, video):
    return pipe.vae.encode([video.bfloat16()], device="cpu").bfloat16()


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["first chunk", "later chunk"])
@pytest.mark.parametrize("first_frame", ["known", "masked"])
def test_conditioning_of_a_video(generated, first_frame, prefix):
    """The identity image is the reference alone; what is known at the start comes from the source or the prefix."""
    made = generated(49, first_frame, input_video=SOURCE, mouth_mask=LEFT_KEPT, prefix_video=prefix)
    y = made.inputs["omni_y"]
    assert y.dtype == made.inputs["latents"].dtype == torch.bfloat16
    assert torch.equal(y[:, :16], latents(made.pipe, pixels(IDENTITY[None])).expand(-1, -1, 3, -1, -1))
    masked = pixels(SOURCE) * LEFT_KEPT
    if first_frame == "known":
        masked[:, 0] = pixels(SOURCE)[:, 0] if prefix is None else prefix[:, 0]
    assert torch.equal(y[:, 17:], latents(made.pipe, masked))
    known = y[:, 17:, :1] if first_frame == "known" else None
    if prefix is not None:
        known = latents(made.pipe, prefix)
    count = 0 if known is None else known.shape[2]
    assert (y[:, 16, :count] == 0).all()
    assert torch.equal(y[0, 16, count:], torch.tensor([0.0, 0, 1, 1]).expand(3 - count, 4, 4).bfloat16())
    if known is None:
        assert made.inputs.get("omni_prefix_latents") is None
    else:
        assert torch.equal(made.inputs["omni_prefix_latents"], known)
        assert torch.equal(made.final[:, :, :count], known)


@pytest.mark.parametrize("leading", [0, 1])
def test_the_first_sound_is_beside_the_frame_after_the_leading_ones(generated, leading):
    made = generated(33, leading=leading)
    audio = made.inputs["omni_audio"]
    features = made.pipe.encode_speech(torch.from_numpy(noise(FRAMES / 25).samples[0]), FRAMES)
    assert audio.dtype == torch.bfloat16 and audio.shape == (1, FRAMES, features.shape[1])
    assert (audio[:, :leading] == 0).all() and features.abs().amax(1).min() > 0
    assert torch.equal(audio[0, leading:], features[: FRAMES - leading].bfloat16())


def test_passes_of_the_guidance(generated):
    """With sound and the prompt; with the negative prompt and no sound. Upstream's one where none is given."""
    for given, text in ((None, NEGATIVE_PROMPT), ("b", "b")):
        with_sound, without = generated(33, cfg_scale=2.0, negative_prompt=given).passes
        pipe = generated(33).pipe
        assert torch.equal(with_sound["context"], pipe.encode_prompt("a")) and with_sound["omni_audio"].any()
        assert torch.equal(without["context"], pipe.encode_prompt(text)) and not without["omni_audio"].any()
        assert torch.equal(with_sound["omni_y"], without["omni_y"])
    assert len(generated(33).passes) == 1


def test_the_shift_of_the_noise_schedule_has_its_effect(generated):
    """The second of two steps is at 1000 s / (1 + s) of a shift s; the first is at 1000 whatever it is."""
    for shift in (3.0, 7.0):
        steps = [inputs["timestep"].item() for inputs in generated(33, num_inference_steps=2, sigma_shift=shift).passes]
        assert steps == pytest.approx([1000, 1000 * shift / (1 + shift)], rel=1e-2)


def test_tea_cache_skips_steps(generated):
    """With a threshold that all changes stay below, the denoiser's blocks run in the first step and the last alone."""
    block = generated(33).pipe.dit.blocks[0]
    runs = []
    for threshold in (None, 1e9):
        counted = []
        hook = block.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        options = {"tea_cache_l1_thresh": threshold, "tea_cache_model_id": "Wan2.1-T2V-1.3B"}
        generated(33, num_inference_steps=4, **options)
        hook.remove()
        runs.append(len(counted))
    assert runs == [4, 2]
