"""What a config.json says of a model comes back as it was, and wrong values are refused by name."""

import json

import pytest

from diffsynth_omniavatar.model.config import CheckpointConfig, Conventions, Sampling
from diffsynth_omniavatar.model.files import NANO_I2V, NANO_V2V

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


def test_only_what_is_given_takes_the_place() -> None:
    own = Sampling(steps=10, cfg_scale=1.0)
    assert own.with_given(steps=None, cfg_scale=3.0, audio_cfg_scale=None) == Sampling(steps=10, cfg_scale=3.0)
