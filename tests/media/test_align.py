"""Crops follow the faces exactly, smoothly and without delay, and can be put back."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from face_tracks import FRONTAL, face_at, moved, similarity, smooth_picture, track_of
from torch import Tensor

from diffsynth_omniavatar.media.faces.align import (
    FILL,
    LONGEST_GAP,
    align,
    crop_transforms,
    inside_share,
)
from diffsynth_omniavatar.media.faces.face import Track
from diffsynth_omniavatar.media.faces.template import HEAD, LATENTSYNC, Template

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

UNIT = torch.tensor([[0.0, 1.0, 0.0, 0.3], [0.0, 0.0, 1.0, 0.6], [1.0, 1.0, 1.0, 1.0]])
"""Points of the unit square, as columns."""


def placed(transforms: Tensor) -> Tensor:
    """Where some points of the crops lie in the picture: [n, 4, 2]."""
    return (transforms @ UNIT).mT


def scales(transforms: Tensor) -> Tensor:
    return transforms[:, :, 0].norm(dim=1)


def angles(transforms: Tensor) -> Tensor:
    return torch.atan2(transforms[:, 1, 0], transforms[:, 0, 0]).rad2deg()


def test_a_face_as_in_the_template_lands_where_latentsync_puts_it():
    drawn = torch.tensor([LATENTSYNC.left_brow, LATENTSYNC.right_brow, LATENTSYNC.nose])
    transform = crop_transforms(track_of([moved(drawn, 0.4, 20, (50, 30))]))[0]
    back = torch.linalg.inv(torch.cat([transform, torch.tensor([[0.0, 0, 1]])]))
    anchors = torch.cat([moved(drawn, 0.4, 20, (50, 30)), torch.ones(3, 1)], dim=1)
    crop = (anchors @ back.mT)[:, :2] * 512
    assert torch.allclose(crop, torch.tensor([[116.05, 102.4], [395.95, 102.4], [256.0, 204.8]]), atol=0.1)


@pytest.mark.parametrize("template", [LATENTSYNC, HEAD])
def test_the_crop_is_a_similarity_of_the_canvas(template: Template):
    transform = crop_transforms(track_of([FRONTAL]), template)[0]
    canvas = transform[:, :2] / torch.tensor(template.canvas)
    gram = canvas.mT @ canvas
    assert torch.allclose(gram, gram[0, 0] * torch.eye(2), atol=1e-6)


@pytest.mark.parametrize(("scale", "degrees", "shift"), [(1, 0, (40, -25)), (2.5, 0, (0, 0)), (0.7, 130, (300, 200))])
def test_crops_follow_a_picture_that_is_moved_scaled_and_turned(scale, degrees, shift):
    generator = torch.Generator().manual_seed(0)
    path = [FRONTAL + torch.randn(3, 2, generator=generator) + torch.tensor([3.0 * index, 0]) for index in range(20)]
    own = placed(crop_transforms(track_of(path)))
    followed = placed(crop_transforms(track_of([moved(anchors, scale, degrees, shift) for anchors in path])))
    assert torch.allclose(followed, own @ similarity(scale, degrees).mT + torch.tensor(shift), atol=2e-3)


def test_scale_and_rotation_are_smoothed_and_places_are_not():
    still = track_of([FRONTAL] * 21)
    jumped = [FRONTAL] * 21
    middle = FRONTAL.mean(dim=0)
    jumped[10] = middle + moved(FRONTAL - middle, 1.2, 10) + torch.tensor([9.0, 4.0])
    before, after = crop_transforms(still), crop_transforms(track_of(jumped))
    peaks = [1 / np.exp(-0.5 * (np.arange(-8, 9) / sigma) ** 2).sum() for sigma in (2, 0.6)]
    assert float((scales(after) / scales(before)).log().max()) == pytest.approx(np.log(1.2) * peaks[0], rel=0.01)
    assert float((angles(after) - angles(before)).max()) == pytest.approx(10 * peaks[1], rel=0.01)
    assert torch.allclose(scales(after), scales(after).flip(0)) and torch.allclose(angles(after), angles(after).flip(0))
    assert scales(after).argmax() == 10
    moves = (face_place(after) - face_place(before)).round(decimals=2)
    assert moves[10].tolist() == [9, 4] and not moves[:10].any() and not moves[11:].any()


def face_place(transforms: Tensor, template: Template = LATENTSYNC) -> Tensor:
    """Where the mean of the template's anchors lies in the picture: [n, 2]."""
    mean = torch.tensor([template.left_brow, template.right_brow, template.nose]).mean(dim=0)
    return transforms @ torch.cat([mean / torch.tensor(template.canvas), torch.ones(1)])


def test_a_face_that_turns_past_half_a_turn_keeps_turning():
    path = [moved(FRONTAL, 1, 170 + 2.0 * index) for index in range(12)]
    turns = angles(crop_transforms(track_of(path)))
    steps = (turns.diff() + 180) % 360 - 180
    assert steps.min() > 0.5 and steps.max() < 2.5


def test_the_smoothing_is_as_long_at_every_frame_rate():
    def spread(rate: int) -> float:
        path = [FRONTAL] * (4 * rate + 1)
        path[2 * rate] = moved(FRONTAL, 1.5)
        rise = np.log(scales(crop_transforms(track_of(path), frame_rate=rate)).numpy())
        rise -= rise[0]
        seconds = np.arange(len(rise)) / rate - 2
        return float(np.sqrt((rise * seconds**2).sum() / rise.sum()))

    assert spread(25) == pytest.approx(spread(60), rel=0.02) == pytest.approx(0.08, rel=0.02)


def test_duplicates_get_the_transform_of_the_frame_they_repeat():
    generator = torch.Generator().manual_seed(0)
    shown = [FRONTAL + torch.randn(3, 2, generator=generator) for _ in range(8)]
    distinct = crop_transforms(track_of(shown))
    order = [0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7]
    noise = torch.randn(12, 3, 2, generator=generator)
    again = [shown[place] + noise[index] * (index in {2, 5, 6, 11}) for index, place in enumerate(order)]
    transforms = crop_transforms(track_of(again, start=100), duplicates={100, 102, 105, 106, 111, 112})
    assert torch.equal(transforms, distinct[order])


def test_over_a_short_gap_the_crop_moves_on_evenly():
    path = [moved(FRONTAL, 1 + 0.01 * index, 0, (2.0 * index, 0)) for index in range(30)]
    whole = crop_transforms(track_of(path))
    gaps = crop_transforms(track_of([None if 12 <= index < 18 else anchors for index, anchors in enumerate(path)]))
    assert torch.allclose(face_place(gaps), face_place(whole), atol=0.5)
    assert torch.allclose(scales(gaps), scales(whole), rtol=1e-3)


def test_what_lies_behind_a_long_gap_does_not_reach_before_it():
    long = int(LONGEST_GAP * 25) + 1
    before, after = [FRONTAL] * 6, [moved(FRONTAL, 2)] * 6
    broken = scales(crop_transforms(track_of(before + [None] * long + after)))
    assert torch.equal(broken[:6], broken[:1].expand(6)) and torch.equal(broken[-6:], broken[-1:].expand(6))
    assert (broken[5:-5].diff() > 0).all()
    near = scales(crop_transforms(track_of(before + [None] * 2 + after)))
    assert near[5] > near[0]


def test_unsure_faces_count_only_where_no_face_is_sure():
    wrong = face_at(moved(FRONTAL, 3), score=0.5)
    mixed = Track(start=0, faces=(face_at(FRONTAL), wrong, face_at(FRONTAL)))
    assert torch.equal(crop_transforms(mixed), crop_transforms(track_of([FRONTAL] * 3)))
    unsure = crop_transforms(Track(start=0, faces=(wrong, wrong)))
    assert torch.equal(unsure, crop_transforms(track_of([moved(FRONTAL, 3)] * 2)))


def test_anchors_in_one_place_are_refused():
    with pytest.raises(ValueError, match="anchors all lie in one place"):
        crop_transforms(track_of([FRONTAL, torch.zeros(3, 2)]))


def test_a_template_is_plain_numbers():
    values = json.loads(json.dumps(dataclasses.asdict(HEAD)))
    assert Template(**values) == HEAD
    with pytest.raises(ValueError, match=r"canvas is \(0.0, 5.0\), wanted two numbers above 0"):
        Template(**values | {"canvas": [0, 5]})
    with pytest.raises(ValueError, match="nose is 'ab', wanted two numbers"):
        Template(**values | {"nose": "ab"})
    with pytest.raises(ValueError, match="points all lie at"):
        Template(**values | dict.fromkeys(["left_brow", "right_brow", "nose"], (1, 2)))


def test_a_whole_number_of_pixels_copies_them():
    frame = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    square = torch.tensor([[[20.0, 0, 7], [0, 16.0, 5]]])
    crop = align(frame[None], square, (16, 20))
    assert crop.dtype == torch.float32 and torch.equal(crop[0].round().byte(), frame[5:21, 7:27])


def test_outside_the_picture_is_grey_and_counted():
    frame = torch.full((1, 40, 60, 3), 200, dtype=torch.uint8)
    half = torch.tensor([[[32.0, 0, -16], [0, 32.0, 4]]])
    crop = align(frame, half, (32, 32))
    assert (crop[0, :, :14] == FILL).all() and crop[0, :, 18:].round().eq(200).all()
    away = torch.tensor([[[32.0, 0, 600], [0, 32.0, 4]]])
    assert (align(frame, away, (8, 8)) == FILL).all()
    assert inside_share(torch.cat([half, away, half + torch.tensor([[0, 0, 20.0], [0, 0, 0]])]), 40, 60).tolist() == [
        0.5,
        0,
        1,
    ]


def test_fine_patterns_do_not_flicker_when_shrunk():
    stripes = (torch.arange(512) % 2 * 255).to(torch.uint8)[None, :, None].expand(512, 512, 3)
    transforms = torch.tensor([[[480.0, 0, 5 + shift], [0, 480.0, 5]] for shift in (0.0, 0.3, 0.6)])
    crops = align(stripes.expand(3, -1, -1, -1), transforms, (60, 60))
    assert crops.sub(127.5).abs().max() < 40  # a single sample for each pixel gives 0 to 255


def test_one_frame_for_each_transform():
    with pytest.raises(ValueError, match="2 frames and 1 transforms"):
        align(smooth_picture(20, 20).expand(2, -1, -1, -1), torch.eye(3)[None, :2], (8, 8))


def test_how_long_a_gap_is_counts_in_seconds() -> None:
    near = [FRONTAL] * 6 + [None] * 20 + [moved(FRONTAL, 2)] * 6
    assert scales(crop_transforms(track_of(near), frame_rate=60))[5] > scales(crop_transforms(track_of(near)))[5]
