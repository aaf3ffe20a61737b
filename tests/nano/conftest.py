"""What the tests of the small model's figures share: clips of speakers that keep still, and random weights."""

import pytest
from stand_in import write_nano_like_family

from diffsynth_omniavatar.nano.speaker.clips import draw_clip
from diffsynth_omniavatar.nano.stage import load_family


@pytest.fixture(scope="package")
def clips():
    return [draw_clip(seed, 40, split="evaluation", sways=False) for seed in range(4)]


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return write_nano_like_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="package")
def pipe(folder):
    return load_family(folder, "i2v", "cpu")
