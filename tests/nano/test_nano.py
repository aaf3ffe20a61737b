"""The small trained family: its training, its folders, and V2V as a LoRA on a full I2V checkpoint."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, Wav2Vec2Model

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation import loading, pipeline
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.model import files
from diffsynth_omniavatar.model.checkpoint import EXTRA_MODULES, load_checkpoint, save_omniavatar
from diffsynth_omniavatar.model.config import LATENT_CHANNELS, CheckpointConfig, LoRAConfig
from diffsynth_omniavatar.model.dit import wan_sizes
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.lora import adapted_layers
from diffsynth_omniavatar.model.small_family import NANO, build_wan
from diffsynth_omniavatar.model.speech_encoder import AudioEncoder, normalise
from diffsynth_omniavatar.model.upgrade import grow_model, initialise_on_wan
from diffsynth_omniavatar.nano import assemble, draw, train_speech, train_vae, vae_result
from diffsynth_omniavatar.nano.family import half
from diffsynth_omniavatar.nano.speaker.clips import draw_clip

PACKAGED = files.NANO_FOLDER
PROMPT = "A person with long grey hair in blue clothes, in front of a beige wall, talks and keeps the head still."


of_training = pytest.mark.one_host("how the small model's parts are made; what is shipped runs on both hosts")


def small_clips(clips: int, frames: int) -> torch.Tensor:
    """The drawn speaker at 32x32."""
    return torch.from_numpy(
        np.stack([draw_clip(seed, frames, split="train").frames[:, ::4, ::4] for seed in range(clips)])
    )


# -------------------------------------------------------------------------------------------------------------- the VAE


@of_training
def test_normalised_latents_decode_to_what_they_did_before():
    frames = small_clips(2, 5)
    vae = train_vae.fresh_vae(0)
    video = train_vae.to_video(frames)
    plain = [torch.zeros(16), torch.ones(16)]
    with torch.no_grad():
        wanted = vae.model.decode(vae.model.encode(video, plain), plain)
    vae_result.fold_statistics(vae, *vae_result.latent_statistics(vae.model, frames))
    latents = vae.encode(video, "cpu")
    # Tolerances: float32 in other orders of summation.
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4), correction=0), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(latents, "cpu"), wanted.clamp(-1, 1), atol=2e-5, rtol=0)


@of_training
@pytest.mark.slow
def test_vae_training_lowers_the_loss_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(train_vae, "STAGES", ((0.9, 1), (1.0, 5)))
    monkeypatch.setattr(train_vae, "WARMUP_STEPS", 1)
    frames = small_clips(2, 5)
    settings = train_vae.VAETraining(max_steps=30, frames_per_step=10, learning_rate=5e-4)
    trainer = train_vae.VAETrainer(frames, tmp_path, settings)
    losses = trainer.run()
    assert len(losses) == 30
    assert np.mean(losses[22:27]) < 0.9 * losses[0]
    again = train_vae.VAETrainer(frames, tmp_path, replace(settings, max_steps=31))
    again.resume()
    assert again.step == 30
    assert len(again.run()) == 1


# --------------------------------------------------------------------------------------------------------------- speech


@of_training
def test_features_in_training_are_those_of_the_encoder():
    torch.manual_seed(0)
    reader = train_speech.SpeechReader(Wav2Vec2Model(NANO.wav2vec2))
    waveforms, _ = (torch.from_numpy(part) for part in draw.draw_speech(range(2), 33, "train"))
    with torch.no_grad():
        features = reader.features(torch.stack([normalise(row) for row in waveforms]))
    encoder = AudioEncoder(reader.wav2vec2)
    for row, waveform in zip(features, waveforms, strict=True):
        # Tolerance: a batch of two is summed in another order than a single sound.
        torch.testing.assert_close(row, encoder.encode(waveform), atol=1e-5, rtol=1e-5)


@of_training
def test_speech_training_lowers_the_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(train_speech, "WARMUP_STEPS", 1)
    speech = [torch.from_numpy(part) for part in draw.draw_speech(range(4), 40, "train")]
    reader, losses = train_speech.train(*speech, steps=25, batch=4)
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:2])
    train_speech.save(reader.wav2vec2, tmp_path / "speech")
    encoder = AudioEncoder.from_pretrained(tmp_path / "speech")
    assert encoder.feature_dim == NANO.dit.audio_dim
    assert 0 <= train_speech.figures(reader, encoder, *speech)["phonemes_right"] <= 1


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def nano_folder(tmp_path_factory):
    """What `start` writes, with an untrained VAE and wav2vec2."""
    folder = tmp_path_factory.mktemp("nano")
    (folder / "vae").mkdir()
    save_file(half(train_vae.fresh_vae(0).state_dict()), folder / "vae" / FILES["vae"])
    torch.manual_seed(0)
    train_speech.save(Wav2Vec2Model(NANO.wav2vec2), folder / "speech")
    assemble.start(folder / "nano", folder / "vae", folder / "speech")
    return folder / "nano"


@pytest.fixture(scope="module")
def shipped(nano_folder, tmp_path_factory):
    """What `ship` writes of untrained checkpoints; the LoRA's B is not zero."""
    generator = torch.Generator().manual_seed(1)
    sizes = wan_sizes(NANO.dit, LATENT_CHANNELS)
    wan = build_wan(**sizes)
    options = {"dtype": torch.float32, "device": "cpu", "generator": generator, "audio_dim": NANO.dit.audio_dim}
    dit = initialise_on_wan(wan, 33, **options)
    folder = tmp_path_factory.mktemp("trained")
    config = CheckpointConfig(in_dim=33, model=dit.config, conventions=NANO.conventions)
    save_omniavatar(folder / "i2v", dit.state_dict(), config)

    lora = LoRAConfig(rank=16, alpha=8.0)
    tensors = {}
    for name, layer in adapted_layers(dit, lora.target_modules).items():
        for part, shape in (("A", (16, layer.in_features)), ("B", (layer.out_features, 16))):
            tensors[f"{name}.lora_{part}.weight"] = 0.1 * torch.randn(shape, generator=generator)
    grow_model(dit, 49)
    extras = {key: tensor for key, tensor in dit.state_dict().items() if key.startswith(EXTRA_MODULES)}
    tensors |= {key: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) for key, tensor in extras.items()}
    conventions = replace(NANO.conventions, prefix_frames=(1, 5))
    save_omniavatar(
        folder / "v2v", tensors, CheckpointConfig(in_dim=49, lora=lora, model=dit.config, conventions=conventions)
    )
    out = folder / "weights"
    assert assemble.ship(nano_folder, out, folder / "i2v", folder / "v2v") < 20e6
    return out


def v2v_pipeline(shipped, order, lora):
    """The host's own loading of both checkpoints and the speech model."""
    paths = [
        shipped / files.NANO_I2V.relative_to(files.NANO_FOLDER),
        shipped / files.NANO_V2V.relative_to(files.NANO_FOLDER),
        shipped / FILES["wav2vec2"],
    ]
    return OmniAvatarPipeline.from_pretrained(
        model_configs=[host.ModelConfig(path=str(paths[place])) for place in order],
        tokenizer_config=host.ModelConfig(path=str(shipped / FILES["tokenizer"])),
        torch_dtype=torch.float32,
        device="cpu",
        omniavatar_lora=lora,
    )


def predict(dit):
    generator = torch.Generator().manual_seed(2)
    sizes = {"x": (1, 16, 2, 4, 4), "y": (1, dit.in_dim - 16, 2, 4, 4), "context": (1, 3, 64), "audio_emb": (1, 5, 480)}
    inputs = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    with torch.no_grad():
        return dit(timestep=torch.tensor([500.0]), **inputs)


def test_a_lora_goes_on_a_full_checkpoint_in_any_order(shipped):
    adapters = v2v_pipeline(shipped, (0, 1, 2), "adapters")
    fused = v2v_pipeline(shipped, (1, 2, 0), "fused")
    assert adapters.dit.in_dim == fused.dit.in_dim == 49
    assert adapters.conventions.prefix_frames == fused.conventions.prefix_frames == (1, 5)
    base = load_checkpoint(shipped / "omniavatar")
    name = "blocks.3.ffn.0.weight"
    assert torch.equal(adapters.dit.get_parameter("blocks.3.ffn.0.base_layer.weight"), base.tensors[name].float())
    assert not torch.equal(fused.dit.get_parameter(name), base.tensors[name].float())
    # Tolerance: W + BA once, or two products summed at each call.
    torch.testing.assert_close(predict(adapters.dit), predict(fused.dit), atol=2e-5, rtol=1e-4)


def test_a_full_checkpoint_of_more_channels_takes_no_smaller_lora(shipped):
    v2v = v2v_pipeline(shipped, (0, 1, 2), "fused")
    i2v_lora = replace(load_checkpoint(shipped / "omniavatar_v2v" / "model.safetensors"), tensors={})
    weight = torch.zeros(192, 33, 1, 2, 2)
    loaded = replace(i2v_lora, tensors={"patch_embedding.weight": weight})
    with pytest.raises(ValueError, match="49 input channels"):
        pipeline._apply_lora_checkpoint(v2v, loaded, "fused", None, [], "cpu")


@pytest.mark.parametrize(("mode", "channels"), [("i2v", 33), ("v2v", 49)])
def test_one_call_gives_the_small_model(shipped, monkeypatch, mode, channels):
    monkeypatch.setattr(files, "NANO_FOLDER", shipped)
    for name in ("NANO_I2V", "NANO_V2V"):
        monkeypatch.setattr(files, name, shipped / getattr(files, name).relative_to(PACKAGED))
    pipe = loading.nano_pipeline(mode, device="cpu")
    assert isinstance(pipe, OmniAvatarPipeline)
    assert pipe.dit.in_dim == channels
    assert pipe.conventions.image_sizes == ((128, 128),)
    assert pipe.encode_speech(torch.zeros(640 * 3), 3).shape == (3, 480)
    other = pipe.encode_prompt(PROMPT.replace("grey", "black"))
    assert (pipe.encode_prompt(PROMPT) - other).norm() > 0.1 * other.norm()


def test_words_of_the_prompts_are_tokens_and_others_are_kept(nano_folder):
    written = json.loads((nano_folder / "tokenizer" / "tokenizer_config.json").read_text())
    # What transformers 4 needs to make the same tokens as transformers 5.
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and written["add_prefix_space"] is True
    tokenizer = AutoTokenizer.from_pretrained(nano_folder / "tokenizer")
    assert len(tokenizer) <= NANO.text_encoder["vocab"]
    ids = tokenizer(PROMPT).input_ids
    assert len(ids) <= 1.5 * len(PROMPT.split())
    for text in (PROMPT, "Überraschung: zebras!"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_the_shipped_tokenizer_is_the_same_on_both_generations_of_transformers():
    """transformers 4 leaves out the space before the first word unless the tokenizer's config asks for it."""
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED / "tokenizer")
    assert tokenizer("A woman speaks.").input_ids == [284, 261, 314, 370, 260, 81, 70, 66, 280, 15, 1]


def test_errors_at_the_mouth_weigh_more_and_those_at_eyes_if_they_are_lively():
    for lively in (False, True):
        weights = train_vae.pixel_weights(128, torch.device("cpu"), lively)
        mouth, eyes, wall = weights[82, 64], weights[54, 47], weights[20, 5]
        assert weights.mean() == pytest.approx(1, abs=1e-5)
        assert mouth > 1.5 * eyes and (eyes > 3 * wall if lively else eyes == wall)
