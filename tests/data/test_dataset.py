"""Items are clips of one bucket; bad clips are left out or replaced, in a loader's workers too."""

import logging
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_clips import RECIPE, FakeClip, draw, fakes, make
from torch.utils.data import DataLoader

from diffsynth_omniavatar.data.clips import BadSampleError, ClipSource
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.data.tables import read_clips

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_items_are_clips_of_one_bucket_and_an_epoch_has_all(tmp_path: Path) -> None:
    clips: list[ClipSource] = [
        FakeClip(name=f"{height}-{index}", height=height, frames=frames)
        for height, count in ((32, 7), (64, 4), (96, 1))
        for index, frames in enumerate([90, 30, 61, 44, 30, 77, 25][:count])
    ]
    random.Random(1).shuffle(clips)
    dataset = make(clips, Recipe(max_tokens=500), batch_size=3)
    assert len(dataset) == 3 + 2 + 1 and dataset.items == make(clips, Recipe(max_tokens=500), batch_size=3).items
    assert sorted(index for item in dataset.items for index in item) == [*range(12)]
    fillers = Counter[str]()
    for seed in range(50):
        for index in range(len(dataset)):
            sample = draw(dataset, index, seed)
            heights = {name.split("-")[0] for name in sample.sources}
            assert len(sample.sources) == 3 and heights == {str(sample.height)}
            shortest = min(clip.frames for clip in clips if clip.name in sample.sources)
            assert sample.num_frames <= shortest and sample.reference_latents.shape == (3, 1)
            assert sample.drop_text.shape == sample.drop_audio.shape == sample.drop_prefix.shape == (3,)
            own = [clips[member].name for member in dataset.items[index]]
            assert sample.sources[: len(own)] == own
            fillers.update(name for name in sample.sources[len(own) :] if name.startswith("32"))
            if sample.height != 96:
                assert len(set(sample.sources)) == 3
    assert len(fillers) == 6 and max(fillers.values()) < 3 * min(fillers.values())  # all but the rest itself, evenly


def test_repeat_and_bounds() -> None:
    dataset = make(fakes(3), repeat=4)
    assert len(dataset) == 12 and draw(dataset, 7).sources == ["clip1"] and dataset.describe(7) == "clip1"
    with pytest.raises(IndexError):
        dataset[12]
    with pytest.raises(ValueError, match="batch_size 0 and repeat 1"):
        make(fakes(1), batch_size=0)


def test_clips_with_faults_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    clips = [*fakes(2), FakeClip(name="bad", faults=("no sound", "no prompt")), FakeClip(name="last")]
    with caplog.at_level(logging.WARNING):
        dataset = make(clips)
    assert [draw(dataset, index).sources for index in range(len(dataset))] == [["clip0"], ["clip1"], ["last"]]
    assert "left out: bad: no sound" in caplog.text and "1 of 4 clips are left out" in caplog.text
    with pytest.raises(BadSampleError, match="bad: no sound; no prompt"):
        make(clips, strict=True)
    with pytest.raises(ValueError, match="none of 1 clips can be used: bad: no sound"):
        make([clips[2]])


def test_a_clip_that_breaks_later_is_replaced_by_the_next(caplog: pytest.LogCaptureFixture) -> None:
    clips: list[ClipSource] = [FakeClip(name=f"clip{index}", broken=index in (1, 2, 4)) for index in range(5)]
    dataset = make(clips)
    with caplog.at_level(logging.WARNING):
        taken = [draw(dataset, index).sources[0] for index in range(5)]
    assert taken == ["clip0", "clip3", "clip3", "clip3", "clip0"]
    assert taken == [draw(make(clips), index).sources[0] for index in range(5)]  # as on every other process
    assert "clip1: broken in the middle; the next sample takes its place (number 1 so far)" in caplog.text
    assert dataset.skipped == 4
    with pytest.raises(BadSampleError, match="clip4: broken in the middle"):
        make(clips, strict=True)[4]
    with pytest.raises(BadSampleError, match="clip0: neither it nor any other clip can be read"):
        make(fakes(2, broken=True))[0]


def one(batch: list[Any]) -> Any:
    return batch[0]


def test_samples_and_errors_come_out_of_a_loaders_workers(levels: Path) -> None:
    live = make(read_clips(levels / "clips.csv"), replace(RECIPE, dynamic_length=False))
    (loaded,) = DataLoader(live, num_workers=1, collate_fn=one)
    assert torch.equal(loaded.target_video, live[0].target_video)
    broken = DataLoader(make(fakes(1, broken=True), strict=True), num_workers=1, collate_fn=one)
    with pytest.raises(BadSampleError, match="clip0: broken in the middle"):
        next(iter(broken))
