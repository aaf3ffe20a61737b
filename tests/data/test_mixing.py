"""Tables come into an epoch by their weights, and samples get longer by the step that takes them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from data_clips import fakes, make

from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.training.loader import LoopLoader, SampleKey, SeededSamples

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

RECIPE = Recipe(max_tokens=200)
TABLES = [(2.0, 3), (0.5, 8), (1.3, 10)]


def loop(dataset, end=10_000, **more):
    """The order of a run on the dataset."""
    host_loader = torch.utils.data.DataLoader(dataset, collate_fn=lambda batch: batch[0])
    options = {"seed": 1, "process": 0, "processes": 1, "device": torch.device("cpu"), "on_pass": lambda: None}
    return LoopLoader(host_loader, end=end, **options | more)


def test_an_epoch_has_each_table_by_its_weight():
    dataset = make(fakes(21), RECIPE, tables=TABLES)
    assert len(dataset) == 6 + 4 + 13 and dataset.mixture == "2 0.5 1.3"
    orders = [loop(dataset).order(epoch) for epoch in range(40)]
    total = Counter(index % 21 for order in orders for index in order)
    for order in orders:
        assert len({*order}) == len(order) == len(dataset)  # a repeated item is another index, with draws of its own
        taken = Counter(index % 21 for index in order)
        assert [taken[item] for item in range(3)] == [2, 2, 2]
        assert sum(taken[item] for item in range(3, 11)) == 4 and max(taken[item] for item in range(3, 11)) == 1
        assert sum(taken[item] for item in range(11, 21)) == 13 and {taken[n] for n in range(11, 21)} == {1, 2}
        assert all(dataset.describe(index) == dataset.describe(index % 21) for index in order)
    # 40 draws of a half: five standard deviations of a binomial
    assert all(abs(total[item] - 20) < 5 * 10**0.5 for item in range(3, 11))
    assert all(before != after for before, after in pairwise(orders))


def test_without_weights_the_order_is_as_ever():
    dataset = make(fakes(5), RECIPE, repeat=3)
    assert dataset.epoch_indices(torch.Generator()) == [*range(15)] and dataset.mixture == ""
    assert len(make(fakes(21), RECIPE, tables=TABLES, repeat=2)) == 12 + 8 + 26


def test_a_batch_is_of_one_table_and_a_table_that_would_never_come_is_refused():
    dataset = make(fakes(6), RECIPE, batch_size=2, tables=[(1.0, 3), (4.0, 3)])
    assert all(len({index < 3 for index in item}) == 1 for item in dataset.items) and len(dataset) == 2 + 8
    with pytest.raises(ValueError, match=r"a table of 2 samples has none in an epoch with weight 0\.1"):
        make(fakes(3), RECIPE, tables=[(1.0, 1), (0.1, 2)])


def test_the_order_goes_on_from_any_position_on_any_number_of_processes():
    dataset = make(fakes(21), RECIPE, tables=TABLES)
    alone, shared = loop(dataset), [loop(dataset, process=process, processes=2) for process in range(2)]
    wanted = [alone._key(position)[:2] for position in range(60)]
    assert [shared[position % 2]._key(position // 2)[:2] for position in range(60)] == wanted
    assert [loop(dataset)._key(position)[:2] for position in range(25, 60)] == wanted[25:]


@pytest.mark.parametrize("dynamic", [True, False])
def test_samples_are_as_long_as_the_step_that_takes_them_allows(dynamic):
    recipe = Recipe(curriculum_frames=((0, 21), (3, 29), (5, 81)), dynamic_length=dynamic, max_tokens=200)
    dataset = make(fakes(4, frames=41), recipe)
    keys = [loop(dataset, accumulation=2)._key(position) for position in range(200)]
    assert [key.step for key in keys[:5]] == [0, 0, 1, 1, 2]
    samples = SeededSamples(dataset, 0)
    found: dict[int, set[int]] = {}
    for key in keys:
        found.setdefault([21, 29, 41][(key.step >= 3) + (key.step >= 5)], set()).add(samples[key].num_frames)
    assert {most: max(lengths) for most, lengths in found.items()} == {21: 21, 29: 29, 41: 41}
    assert dynamic == any(len(lengths) > 1 for lengths in found.values())
    plain = SeededSamples(make(fakes(4, frames=41), Recipe(dynamic_length=dynamic, max_tokens=200)), 0)
    late = SampleKey(3, 1, step=77)
    assert samples[late].num_frames == plain[late].num_frames  # behind it, everything is as without it


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        (((1, 21),), r"steps \[1\], wanted 0 first"),
        (((0, 21), (0, 81)), "wanted 0 first and each above the one before"),
        (((0, 20),), r"curriculum_frames has 20, wanted 4n\+1"),
        (((0, 13),), "curriculum_frames has 13 frames, below the shortest sample, 17"),
    ],
)
def test_a_curriculum_is_checked(curriculum, message):
    with pytest.raises(ValueError, match=message):
        Recipe(curriculum_frames=curriculum)
