"""What the recipe draws for each clip of a batch: independently of the other clips, and of the other choices."""

import itertools

import pytest
import torch
from data_clips import fakes, make, near

from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.training.loader import seed_cpu_generators

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

CLIPS, DRAWS, FRAMES = 4, 3000, 41
CHANCE = {"drop_text": 0.3, "drop_audio": 0.4, "drop_prefix": 0.6, "late_reference": 20 / FRAMES}
"""Choice -> how probable it is; a late reference is one of the last 20 frames."""


def choices(sample) -> dict[str, torch.Tensor]:
    """Choice -> what each clip of a sample was given, bool [B]."""
    late = sample.reference_latents[:, 0] >= FRAMES - 20
    return {name: getattr(sample, name) for name in CHANCE if name != "late_reference"} | {"late_reference": late}


def test_choices_for_a_clip_do_not_depend_on_other_clips_or_other_choices() -> None:
    drops = {f"{name.removeprefix('drop_')}_drop_prob": chance for name, chance in CHANCE.items() if "drop" in name}
    dataset = make(fakes(CLIPS, frames=FRAMES), Recipe(max_tokens=200, **drops), batch_size=CLIPS)
    seed_cpu_generators(3)
    samples = [choices(dataset[0]) for _ in range(DRAWS)]
    drawn = {name: torch.stack([sample[name] for sample in samples]) for name in CHANCE}
    columns = {(name, clip): drawn[name][:, clip] for name in CHANCE for clip in range(CLIPS)}
    for (name, clip), column in columns.items():
        assert near(int(column.sum()), DRAWS, CHANCE[name]), (name, clip)
    for first, second in itertools.combinations(columns, 2):
        both = int((columns[first] & columns[second]).sum())
        assert near(both, DRAWS, CHANCE[first[0]] * CHANCE[second[0]]), (first, second)
