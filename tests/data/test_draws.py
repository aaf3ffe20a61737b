"""Lengths, prefixes and dropouts are drawn as the recipe says; impossible recipes and settings are refused."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_clips import RECIPE, draw, fakes, make, near

from diffsynth_omniavatar.data.clips import ClipSettings
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.training.loader import seed_cpu_generators

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_lengths_prefixes_and_dropouts_are_drawn_as_the_recipe_says() -> None:
    recipe = Recipe(max_tokens=33, text_drop_prob=0.1, audio_drop_prob=0.3, prefix_drop_prob=0.5)
    dataset = make(fakes(1), recipe)
    seed_cpu_generators(7)
    samples = [dataset[0] for _ in range(4000)]
    lengths = Counter(sample.num_frames for sample in samples)
    assert sorted(lengths) == [17, 21, 25, 29, 33]  # 41 frames, of which max_tokens allows 33
    assert all(near(count, 4000, 1 / 5) for count in lengths.values())
    prefixes = Counter(sample.prefix_frames for sample in samples)
    assert sorted(prefixes) == [1, 5, 9, 13] and all(near(count, 4000, 1 / 4) for count in prefixes.values())
    references = Counter(int(sample.reference_latents) for sample in samples)
    assert sorted(references) == [*range(41)] and all(near(count, 4000, 1 / 41) for count in references.values())
    for name in ("text", "audio", "prefix"):
        dropped = sum(int(getattr(sample, f"drop_{name}").sum()) for sample in samples)
        assert near(dropped, 4000, getattr(recipe, f"{name}_drop_prob")), name
    both = sum(bool(sample.drop_audio & sample.drop_prefix) for sample in samples)
    assert near(both, 4000, 0.15)  # independent


def test_a_prefix_is_shorter_than_its_sample() -> None:
    dataset = make(fakes(1, frames=14), Recipe(min_frames=5, max_tokens=200))
    seed_cpu_generators(0)
    drawn = {(sample.num_frames, sample.prefix_frames) for sample in (dataset[0] for _ in range(300))}
    assert drawn == {(5, 1), (9, 1), (9, 5), (13, 1), (13, 5), (13, 9)}
    assert draw(make(fakes(1), replace(RECIPE, prefix_frames=()))).prefix_frames == 0


def test_limits_of_the_length() -> None:
    full = Recipe(dynamic_length=False, max_tokens=200)
    assert draw(make(fakes(1), full)).num_frames == 41
    assert draw(make(fakes(1, frames=40), full)).num_frames == 37
    assert draw(make(fakes(1), replace(full, num_frames=21))).num_frames == 21
    assert draw(make(fakes(1), replace(full, max_tokens=30))).num_frames == 29
    assert Recipe(prefix_frames=(1,)).shortest == 5 and Recipe().shortest == 17


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"text_drop_prob": 1.5}, "text_drop_prob is 1.5, wanted 0 to 1"),
        ({"prefix_frames": (1, 4)}, "prefix_frames has 4, wanted 4n"),
        ({"num_frames": 80}, "num_frames has 80"),
        ({"num_frames": 13}, "num_frames 13 is below the shortest sample, 17"),
        ({"min_frames": 1}, "wanted 5 or more"),
    ],
)
def test_impossible_recipes_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(**wrong)


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"in_dim is 16.*height is 32 and width None.*mouth_mask .*none\.png is missing"
    ):
        ClipSettings(in_dim=16, height=32, mouth_mask=tmp_path / "none.png")
    with pytest.raises(ValueError, match="a size of 40x32, wanted multiples of 16, such as 32x32"):
        ClipSettings(height=40, width=32)
