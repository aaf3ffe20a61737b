"""The speech encoder equals the reference numbers, in any precision, from any file and at any length."""

import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe import keyed_randn, weight
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Model

from diffsynth_omniavatar.media.timeline import SAMPLES_PER_FRAME
from diffsynth_omniavatar.model import speech_encoder as audio
from diffsynth_omniavatar.model.speech_encoder import AudioEncoder, normalise

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


def tiny_encoder(**changes: Any) -> AudioEncoder:
    model = Wav2Vec2Model(Wav2Vec2Config(**TINY | changes))
    model.load_state_dict({name: weight(name, value.shape, 0) for name, value in model.state_dict().items()})
    return AudioEncoder(model)


def sound(samples: int) -> torch.Tensor:
    """Noise that grows louder, so that statistics of a part are not those of the whole."""
    return keyed_randn("sound", [samples], 0) * torch.linspace(0.01, 0.3, samples) + 0.02


def deviation(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """max|got - wanted| / max|wanted|; infinite for another shape."""
    if got.shape != wanted.shape:
        return math.inf
    return float((got - wanted).abs().max() / wanted.abs().max())


# Reference numbers


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def golden_encoder(goldens: Path, request: pytest.FixtureRequest) -> AudioEncoder:
    facts = json.loads((goldens / "wav2vec.json").read_text())
    seed = json.loads((goldens / "meta.json").read_text())["seed"]
    model = Wav2Vec2Model._from_config(Wav2Vec2Config(**facts["config"]), attn_implementation=request.param)
    assert model.config._attn_implementation == request.param
    model.load_state_dict({name: weight(name, shape, seed) for name, shape in facts["state_dict"].items()})
    return AudioEncoder(model)


@pytest.mark.parametrize("suffix", ["", ".padded"])
def test_equals_the_goldens(golden_encoder: AudioEncoder, goldens: Path, suffix: str) -> None:
    golden = load_file(goldens / "wav2vec.safetensors")
    rows = golden["out.embeddings" + suffix].shape[1]
    if not suffix and len(golden["in.waveform"]) != rows * SAMPLES_PER_FRAME:
        pytest.skip("this waveform was squeezed into its rows, which encode() does not do")
    heard = []
    handle = golden_encoder.wav2vec2.feature_projection.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    with handle:
        features = golden_encoder.encode(golden["in.waveform"], rows)
    assert deviation(normalise(golden["in.waveform"]), golden["in.normalised"]) < 1e-5
    assert deviation(heard[0], golden["mid.conv_interpolated" + suffix]) < 1e-5
    assert deviation(features, golden["out.embeddings" + suffix][0]) < 1e-5


def test_the_base_model_has_10752_features() -> None:
    with torch.device("meta"):
        assert AudioEncoder(Wav2Vec2Model(Wav2Vec2Config())).feature_dim == 10752


def test_other_frame_rates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"conv_stride .* a frame per 160 samples; wanted 320"):
        tiny_encoder(conv_stride=[5, 2, 2, 2, 2, 2, 1])


# Rows


def test_rows_cover_the_sound_by_default() -> None:
    encoder = tiny_encoder()
    for samples, rows in [(1, 1), (640, 1), (641, 2), (1280, 2), (6401, 11)]:
        assert encoder.encode(sound(samples)).shape == (rows, encoder.feature_dim)


def test_more_rows_are_zeros_after_normalising() -> None:
    encoder, waveform = tiny_encoder(), sound(3000)
    padded = torch.cat([normalise(waveform), torch.zeros(8 * 640 - 3000)])
    wanted = encoder._transform(encoder._convolve(padded))
    assert torch.equal(encoder.encode(waveform, 8), wanted)
    assert not torch.equal(encoder.encode(torch.cat([waveform, torch.zeros(8 * 640 - 3000)])), wanted)


def test_loudness_does_not_matter() -> None:
    encoder, waveform = tiny_encoder(), sound(6400)
    assert deviation(encoder.encode(waveform * 4), encoder.encode(waveform)) < 1e-3  # the norm's 1e-7


def test_silence_is_a_silent_waveform() -> None:
    encoder = tiny_encoder()
    silence = encoder.silence(5)
    assert silence.shape == (5, encoder.feature_dim)
    assert torch.equal(silence, encoder.encode(torch.zeros(1), 5))
    assert silence.isfinite().all() and silence.abs().max() > 0


@pytest.mark.parametrize(
    ("waveform", "rows", "message"),
    [
        (torch.zeros(1, 640), None, r"waveform: got shape \[1, 640\]"),
        ([0.0] * 640, None, "waveform: got list"),
        (torch.zeros(640, dtype=torch.int16), None, "waveform: got torch.int16"),
        (torch.zeros(0), None, "waveform: got no samples"),
        (torch.zeros(0), 3, "waveform: got no samples"),
        (torch.tensor([0.0, math.nan]), None, "waveform: got NaN"),
        (torch.tensor([0.0, math.inf]), None, "waveform: got NaN or infinite"),
        (torch.zeros(1281), 2, "1281 samples need 3 rows, got rows=2.* cut the waveform to 1280 samples"),
        (torch.zeros(1), 0, "need 1 rows, got rows=0"),
    ],
)
def test_unusable_sound_is_named(waveform: Any, rows: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_encoder().encode(waveform, rows)


# Frozen, in float32


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_stays_in_float32_inside_a_module_that_is_cast(cast: str) -> None:
    pipeline = torch.nn.ModuleDict({"encoder": tiny_encoder(), "other": torch.nn.Linear(2, 2)})
    wanted = pipeline["encoder"].encode(sound(6400))
    getattr(pipeline, cast)()
    assert pipeline["other"].weight.dtype != torch.float32
    assert {value.dtype for value in pipeline["encoder"].state_dict().values()} == {torch.float32}
    assert torch.equal(pipeline["encoder"].encode(sound(6400)), wanted)


def test_moves_between_devices_without_a_cast() -> None:
    encoder = torch.nn.ModuleList([tiny_encoder()]).to("meta", torch.bfloat16)[0]
    assert {(value.device.type, value.dtype) for value in encoder.parameters()} == {("meta", torch.float32)}


def test_weights_of_another_precision_are_widened() -> None:
    model = tiny_encoder().wav2vec2.bfloat16()
    assert {value.dtype for value in AudioEncoder(model).parameters()} == {torch.float32}


def test_autocast_has_no_effect() -> None:
    encoder, waveform = tiny_encoder(), sound(6400)
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder.encode(waveform)
    assert features.dtype == torch.float32
    assert torch.equal(features, encoder.encode(waveform))


def test_training_mode_has_no_effect() -> None:
    pipeline, waveform = torch.nn.ModuleList([tiny_encoder(mask_time_prob=0.9, layerdrop=0.9)]), sound(6400)
    wanted = pipeline[0].encode(waveform)
    pipeline.train()
    assert not any(module.training for module in pipeline[0].modules())
    assert torch.equal(pipeline[0].encode(waveform), wanted)


def test_other_draws_stay_where_they_are() -> None:
    encoder = tiny_encoder()
    before = torch.get_rng_state()
    encoder.encode(sound(6400))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_requires_gradients() -> None:
    encoder = tiny_encoder()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.requires_grad_(True)
    assert not encoder.encode(sound(640).requires_grad_()).requires_grad


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as facebook/wav2vec2-base-960h is: the weights of the speech recogniser, pytorch_model.bin."""
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**TINY, vocab_size=32))
    names = model.state_dict()
    model.load_state_dict({name: weight(name.removeprefix("wav2vec2."), names[name].shape, 0) for name in names})
    model.config.save_pretrained(tmp_path)
    torch.save(old_spelling(model.state_dict()), tmp_path / "pytorch_model.bin")
    return tmp_path


SPELLINGS = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def old_spelling(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The keys of the positional convolution's weight norm as in files written with torch 1.x."""
    for new, old in SPELLINGS.items():
        weights = {name.replace(new, old): value for name, value in weights.items()}
    assert sum(name.endswith(("weight_g", "weight_v")) for name in weights) == 2
    return weights


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace weights (names with __ for the dots) in the folder's pytorch_model.bin, or drop those that are None."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights |= {name.replace("__", "."): value for name, value in changes.items()}
    torch.save({name: value for name, value in weights.items() if value is not None}, folder / "pytorch_model.bin")


def test_official_folder_loads_without_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    encoder = AudioEncoder.from_pretrained(str(folder))
    assert torch.equal(encoder.encode(sound(6400)), tiny_encoder().encode(sound(6400)))


def test_both_spellings_and_both_formats_load(folder: Path) -> None:
    old = torch.load(folder / "pytorch_model.bin", weights_only=True)
    new = {name.replace(o, n): value for name, value in old.items() for n, o in [_pair(name)]}
    features = []
    for weights in (old, new):
        torch.save(weights, folder / "pytorch_model.bin")
        features.append(AudioEncoder.from_pretrained(folder).encode(sound(6400)))
    (folder / "pytorch_model.bin").unlink()
    for weights in (old, new):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        features.append(AudioEncoder.from_pretrained(folder).encode(sound(6400)))
    for other in features:
        assert torch.equal(other, tiny_encoder().encode(sound(6400)))


def _pair(name: str) -> tuple[str, str]:
    return next(((new, old) for new, old in SPELLINGS.items() if name.endswith(old)), ("", ""))


def test_neither_config_nor_default_dtype_round_the_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "float16", "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    waveform = sound(6400)
    wanted = tiny_encoder().encode(waveform)
    torch.set_default_dtype(torch.bfloat16)
    try:
        features = AudioEncoder.from_pretrained(folder).encode(waveform)
    finally:
        torch.set_default_dtype(torch.float32)
    assert features.dtype == torch.float32
    assert torch.equal(features, wanted)


def test_mask_embedding_may_be_absent(folder: Path) -> None:
    rewrite(folder, wav2vec2__masked_spec_embed=None, lm_head__weight=None)
    encoder = AudioEncoder.from_pretrained(folder)
    assert torch.equal(encoder.encode(sound(6400)), tiny_encoder().encode(sound(6400)))


def test_faulty_weights_are_all_named(folder: Path) -> None:
    rewrite(
        folder,
        wav2vec2__encoder__layer_norm__weight=None,
        wav2vec2__encoder__pos_conv_embed__conv__weight_g=None,
        wav2vec2__feature_projection__projection__weight=torch.zeros(16, 9),
    )
    with pytest.raises(ValueError, match="does not fit its config") as caught:
        AudioEncoder.from_pretrained(folder)
    for part in [
        str(folder),
        "encoder.layer_norm.weight is missing",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0 is missing",
        "feature_projection.projection.weight is [16, 9], not [16, 8]",
    ]:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "pytorch_model.bin"])
def test_absent_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder}: .*{name}"):
        AudioEncoder.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        AudioEncoder.from_pretrained(folder / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"model_type": "wav'),
        ("config.json", "[" * 100_000),
        ("config.json", '{"model_type": "bert"}'),
        ("config.json", "[]"),
        ("model.safetensors", "cut"),
        ("pytorch_model.bin", "cut"),
    ],
)
def test_damaged_and_foreign_files_are_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{folder / name} is "):
        AudioEncoder.from_pretrained(folder)


# Long sound


@pytest.mark.parametrize(("window", "context"), [(5, 2), (10, 0), (10, 3), (25, 8)])
def test_windows_cover_each_row_once_with_context(window: int, context: int) -> None:
    for rows in range(1, 120):
        taken = []
        for start, end, first, last in audio._windows(rows, window, context):
            assert 0 <= start <= first < last <= end <= rows
            assert end - start == min(rows, window)
            assert start == 0 or first - start >= context
            assert end == rows or end - last >= context
            taken += range(first, last)
        assert taken == list(range(rows))


@pytest.mark.parametrize("changes", [{}, {"conv_bias": True}, {"feat_extract_norm": "layer", "conv_bias": True}])
def test_blocks_of_the_convolutions_have_no_influence(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, samples = tiny_encoder(**changes), normalise(sound(640 * 90))
    whole = encoder._convolve(samples)
    monkeypatch.setattr(audio, "BLOCK_SECONDS", 1)
    blocks = encoder._convolve(samples)
    assert whole.shape == (1, 8, 90)
    assert deviation(blocks, whole) < 1e-5  # statistics in float64, not the norm's own
    monkeypatch.undo()
    assert torch.equal(encoder._convolve(samples), whole)  # the norm uses its own statistics again


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 75 rows with 25 rows of context, convolutions in blocks of 25."""
    for name, seconds in [("ONE_PASS_SECONDS", 3), ("CONTEXT_SECONDS", 1), ("BLOCK_SECONDS", 1)]:
        monkeypatch.setattr(audio, name, seconds)


LONG = 203  # rows: several windows, the last of which is moved back


@pytest.mark.parametrize("changes", [{}, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}])
def test_windows_equal_one_pass_where_they_hear_enough(
    changes: dict[str, Any], short_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, waveform = tiny_encoder(**changes), sound(640 * LONG - 100)
    for layer in encoder.wav2vec2.encoder.layers:  # then a row hears no further than the positional convolution
        layer.attention.out_proj.weight.zero_()
    windowed = encoder.encode(waveform)
    monkeypatch.undo()
    assert deviation(windowed, encoder.encode(waveform)) < 1e-5


def test_only_attention_is_windowed(short_windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, waveform = tiny_encoder(), sound(640 * LONG)
    windowed = encoder.encode(waveform)
    monkeypatch.undo()
    one_pass = encoder.encode(waveform)
    width = encoder.wav2vec2.config.hidden_size
    inputs = slice(width, 2 * width)  # the transformer's input, behind the last hidden state
    assert deviation(windowed[:, inputs], one_pass[:, inputs]) < 1e-5
    assert deviation(windowed, one_pass) > 1e-5


def test_no_forward_is_longer_than_its_window(short_windows: None) -> None:
    encoder, samples, rows = tiny_encoder(), [], []
    encoder.wav2vec2.feature_extractor.register_forward_pre_hook(lambda _, args: samples.append(args[0].shape[1]))
    encoder.wav2vec2.encoder.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    encoder.encode(sound(640 * 75))
    assert rows == [75]
    encoder.encode(sound(640 * LONG))
    assert set(rows) == {75} and len(rows) > 3
    assert max(samples) == 25 * 640
