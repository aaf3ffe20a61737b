"""Cuts are found where they are, and nothing else is taken for one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffsynth_omniavatar.media.scenes import LOOKAHEAD, CutFinder, find_cuts
from diffsynth_omniavatar.media.video import read_frames

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def scene(seed: int, count: int, noise: float = 2.0, drift: int = 0) -> list[Tensor]:
    """A random soft picture of 64x96 with noise in each frame, that moves `drift` pixels a frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 40, generator=generator) * 255
    wide = torch.nn.functional.interpolate(coarse, (64, 480), mode="bicubic")[0].permute(1, 2, 0)
    frames = [wide[:, drift * index : drift * index + 96] for index in range(count)]
    noisy = [frame + noise * torch.randn(frame.shape, generator=generator) for frame in frames]
    return [frame.round().clamp(0, 255).to(torch.uint8) for frame in noisy]


def mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    return (first.float() + share * (second.float() - first.float())).round().to(torch.uint8)


def test_cuts_are_found_at_their_frames():
    assert find_cuts(scene(0, 12) + scene(1, 9) + scene(2, 20) + scene(3, 5)) == [12, 21, 41]


@pytest.mark.parametrize("noise", [0, 2, 12])
@pytest.mark.parametrize("drift", [0, 2])
def test_noise_and_camera_moves_are_no_cuts(noise, drift):
    assert find_cuts(scene(0, 25, noise, drift)) == []
    assert find_cuts(scene(0, 25, noise, drift) + scene(1, 25, noise, drift)) == [25]


def test_a_camera_that_starts_and_stops_makes_no_cut():
    still, moving = scene(0, 1, 0), scene(0, 25, 0, 12)
    assert find_cuts(still * 12 + moving + moving[-1:] * 12) == []


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("place", [1, 6, 15])
def test_a_flash_is_no_cut(length, place):
    frames = scene(0, 30)
    for index in range(place, place + length):
        frames[index] = mixed(frames[index], torch.tensor(255), 0.8)
    assert find_cuts(frames) == []


def test_fades_are_no_cuts():
    frames = scene(0, 40)
    black = torch.zeros_like(frames[0])
    for index in range(10):
        frames[10 + index] = mixed(frames[10 + index], black, (index + 1) / 10)
        frames[20 + index] = mixed(black, frames[20 + index], index / 10)
    assert find_cuts(frames) == []


def test_a_cut_with_a_mixed_frame_is_one_cut():
    first, second = scene(0, 12), scene(1, 12)
    assert find_cuts([*first, mixed(first[0], second[0], 0.4), *second]) in ([12], [13])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_short_first_and_last_scenes_count(count):
    assert find_cuts(scene(0, count) + scene(1, 12)) == [count]
    assert find_cuts(scene(0, 12) + scene(1, count)) == [12]


def test_a_still_picture_is_one_scene_of_duplicates():
    finder = CutFinder()
    for frame in scene(0, 1) * 30:
        finder.add(frame)
    finder.finish()
    assert finder.cuts == [] and finder.duplicates == set(range(1, 30))


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 6])
def test_few_frames_are_all_judged(count):
    finder = CutFinder()
    for frame in scene(0, 1) * count:
        finder.add(frame)
    finder.finish()
    assert finder.duplicates == set(range(1, count)) and finder.decided == count


def test_frames_that_repeat_are_duplicates():
    frames = scene(0, 40, 1, 3)
    order = [place for place in range(40) for _ in range(1 + (place % 4 == 1))]  # 20 frames a second shown at 25
    finder = CutFinder()
    generator = torch.Generator().manual_seed(1)
    for place in order:
        grain = torch.randint(0, 2, frames[place].shape, generator=generator, dtype=torch.uint8)
        finder.add(frames[place].clamp(max=254) + grain)
    finder.finish()
    assert finder.cuts == []
    assert finder.duplicates == {index for index in range(1, 50) if order[index] == order[index - 1]}


def test_a_cut_is_told_a_few_frames_later():
    finder = CutFinder()
    told = []
    for index, frame in enumerate(scene(0, 12) + scene(1, 12)):
        finder.add(frame)
        told += [index] * bool(finder.cuts and not told)
        assert finder.decided == max(0, index + 1 - LOOKAHEAD)
    assert told == [12 + LOOKAHEAD] and finder.cuts == [12]


def test_real_clips_that_are_joined(shared_data: Path):
    folder = shared_data / "talking_heads"
    first, second = (read_frames(folder / f"{name}_video.mp4", count=6, size=(240, 135)) for name in ("demo1", "demo3"))
    finder = CutFinder()
    for frame in torch.cat([first, second, first]):
        finder.add(frame)
    finder.finish()
    assert finder.cuts == [6, 12] and not finder.duplicates
