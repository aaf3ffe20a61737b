"""What a config.json says of a model comes back as it was, and wrong values are refused by name."""

import json

import pytest

from diffsynth_omniavatar.model.config import CheckpointConfig, Conventions
from diffsynth_omniavatar.model.files import NANO_I2V, NANO_V2V
from diffsynth_omniavatar.model.sampling import Sampling

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_sampling_comes_back_from_json() -> None:
    sampling = Sampling(
        steps=7, cfg_scale=2.5, audio_cfg_scale=3.0, sigma_shift=4.0, match_colours=True, negative_prompt="a hat"
    )
    config = CheckpointConfig(in_dim=33, conventions=Conventions(sampling=sampling))
    assert CheckpointConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_released_checkpoints_are_sampled_as_upstream_does() -> None:
    released = {"model_config": {"in_dim": 33}, "train_architecture": "lora", "lora_rank": 128, "lora_alpha": 64}
    sampling = CheckpointConfig.from_dict(released).conventions.sampling
    assert (sampling.steps, sampling.cfg_scale, sampling.audio_cfg_scale, sampling.sigma_shift) == (50, 4.5, None, 5.0)
    assert not sampling.match_colours and "Vivid color tones" in sampling.negative_prompt


@pytest.mark.parametrize("path", [NANO_I2V, NANO_V2V], ids=["i2v", "v2v"])
def test_the_shipped_model_says_how_it_is_sampled(path) -> None:
    from diffsynth_omniavatar.model.checkpoint import read_config

    sampling = read_config([path]).conventions.sampling
    assert (sampling.steps, sampling.cfg_scale, sampling.match_colours, sampling.negative_prompt) == (10, 1.0, True, "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": -3},
        {"steps": 2.5},
        {"steps": True},
        {"cfg_scale": "high"},
        {"cfg_scale": float("nan")},
        {"audio_cfg_scale": float("inf")},
        {"sigma_shift": 0},
        *({"timesteps": value} for value in ("a", 5, [1001], [500, 500], [0], [250, 500], [True], ["nan"])),
        {"solver": "heun"},
        {"apg_eta": -0.1},
        {"guidance_rescale": 1.5},
        {"guidance_from": 1.0},
        {"guidance_to": 0},
        {"match_colours": "no"},
        {"negative_prompt": 5},
    ],
)
def test_wrong_sampling_is_refused_by_name(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
    content = {"omniavatar": {"conventions": {"sampling": wrong}}}
    with pytest.raises(ValueError, match=rf"here\.json: .*{next(iter(wrong))}"):
        CheckpointConfig.from_dict(content, "here.json")


SIZES = {"dim": 48, "ffn_dim": 96, "num_heads": 4, "num_layers": 4}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        *(("conventions", "sampling", value) for value in (5, [], None)),
        ("conventions", "template", 5),
        *(("conventions", "max_tokens", value) for value in ("x", 0, -5, 1e300, None, True)),
        *(("conventions", "image_sizes", value) for value in ([], [[0, 0]], [["a", "b"]], [[400]], [[401, 720]], 5)),
        *(("conventions", "prefix_frames", value) for value in (["a"], [1.0], [True], [2], 5)),
        *(("conventions", "leading_audio_rows", value) for value in (True, 1.0, "1", 2)),
        *(("model", "num_heads", value) for value in (0, -4, "4")),
        *(("model", "num_layers", value) for value in (10**9, 4.5, 3)),
        *(("model", "patch_size", value) for value in (5, [1, 2], [0, 2, 2])),
        *(("model", name, value) for name in ("dim", "ffn_dim", "text_dim") for value in (0, -1, "48", 2**70)),
        ("model", "eps", "x"),
        ("model", "unknown", 1),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(section: str, name: str, value: object) -> None:
    content = {"omniavatar": {section: {**(SIZES if section == "model" else {}), name: value}}}
    with pytest.raises(ValueError, match=rf"^here\.json: .*({name}|int|unpack)"):
        CheckpointConfig.parse(json.dumps(content), "here.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"lora_rank": 1e400}', "lora_rank is inf"),
        ('{"lora_rank": 3.7}', "lora_rank is 3.7"),
        ('{"lora_rank": 4, "lora_alpha": NaN}', "lora_alpha is nan"),
        ('{"lora_rank": 4, "lora_rank": 8}', "lora_rank stands there twice"),
        ('{"lora_rank": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"model_config": {"in_dim": 34}}', "in_dim is 34, wanted one of"),
        ('{"model_config": {"in_dim": "33"}}', "in_dim is '33'"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_impossible_texts_are_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^here\.json.*{words}"):
        CheckpointConfig.parse(text, "here.json")


def test_a_byte_order_mark_is_no_content(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"lora_rank": 4}', encoding="utf-8-sig")
    config = CheckpointConfig.load(tmp_path / "config.json")
    assert config.lora is not None and config.lora.rank == 4


@pytest.mark.parametrize(("stated", "lengths"), [(True, (1, 5, 9, 13)), (False, (1,))])
def test_released_checkpoints_say_whether_they_know_longer_prefixes(stated: bool, lengths: tuple[int, ...]) -> None:
    assert CheckpointConfig.from_dict({"random_prefix_frames": stated}).conventions.prefix_frames == lengths


def test_only_what_is_given_takes_the_place() -> None:
    own = Sampling(steps=10, cfg_scale=1.0)
    assert own.with_given(steps=None, cfg_scale=3.0, audio_cfg_scale=None) == Sampling(steps=10, cfg_scale=3.0)


def test_timesteps_set_the_number_of_steps_and_steps_never_contradict_them() -> None:
    own = Sampling().with_given(timesteps="1000, 500,20.5")
    assert (own.steps, own.timesteps) == (3, (1000.0, 500.0, 20.5))
    assert own.with_given(timesteps="", steps=7) == Sampling(steps=7)
    assert own.with_given(timesteps=[900]).steps == 1
    with pytest.raises(ValueError, match="timesteps has 3 values for 7 steps"):
        own.with_given(steps=7)


def test_a_config_may_name_a_preset_and_override_it() -> None:
    stated = {"sampler": "fastwan", "audio_cfg_scale": 2.0}
    config = CheckpointConfig.from_dict({"omniavatar": {"conventions": {"sampling": stated}}})
    sampling = config.conventions.sampling
    assert (sampling.timesteps, sampling.solver, sampling.audio_scale) == ((1000, 757, 522), "renoise", 2.0)
    assert CheckpointConfig.from_dict(json.loads(json.dumps(config.to_dict()))).conventions == config.conventions
