"""What was cut out comes back; what the mask leaves out keeps its bits."""

from pathlib import Path

import pytest
import torch
from face_tracks import FRONTAL, moved, psnr, smooth_picture, track_of
from torch import Tensor

from diffsynth_omniavatar.media.faces.align import align, crop_transforms, warp
from diffsynth_omniavatar.media.faces.paste import FEATHER, paste, soft_mask
from diffsynth_omniavatar.media.video import read_frames

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def mouth_mask(size: int) -> Tensor:
    """A mask [size, size] over the lower face, 1 in it."""
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    return (((x - 0.5) / 0.45).square() + ((y - 0.65) / 0.3).square() < 1).float()


def masked_pixels(mask: Tensor, transform: Tensor, height: int, width: int) -> Tensor:
    """Which pixels of the picture lie in the mask: bool [height, width]."""
    unit = torch.cat([transform, torch.tensor([[0.0, 0, 1]])]).inverse()[:2]
    to_crop = unit * torch.tensor(mask.shape).flip(0)[:, None]
    return warp(mask[..., None], to_crop, (height, width), "bilinear", 0)[0] > 0


@pytest.mark.parametrize("size", [128, 192])
@pytest.mark.parametrize("degrees", [0, 17])
def test_the_round_trip_is_exact_inside_the_mask_and_bits_stay_outside(size, degrees):
    frames = smooth_picture(200, 260)[None]
    transforms = crop_transforms(track_of([moved(FRONTAL, 1, degrees, (10, -20))]))
    mask = mouth_mask(size)
    pasted = paste(frames, align(frames, transforms, (size, size)), transforms, mask)
    inside = masked_pixels(mask, transforms[0], 200, 260)
    assert inside.float().mean() > 0.05
    assert psnr(pasted[0][inside], frames[0][inside]) > 58
    white = paste(frames, torch.full((1, size, size, 3), 255.0), transforms, mask)
    assert torch.equal(white[0][~inside], frames[0][~inside])
    assert (white[0][inside] == 255).all(dim=-1).float().mean() > 0.7


@pytest.mark.parametrize(
    ("name", "anchors"),
    [
        ("demo1", [[561, 654], [658, 666], [595, 721]]),
        ("demo3", [[526, 595], [626, 586], [584, 650]]),
    ],
)
def test_the_round_trip_on_real_clips(shared_data: Path, name: str, anchors: list[list[int]]):
    frames = read_frames(shared_data / "talking_heads" / f"{name}_video.mp4", count=1)
    transforms = crop_transforms(track_of([torch.tensor(anchors)]))
    mask = mouth_mask(512)
    pasted = paste(frames, align(frames, transforms, (512, 512)), transforms, mask)
    inside = masked_pixels(mask, transforms[0], *frames.shape[1:3])
    assert psnr(pasted[0][inside], frames[0][inside]) >= 58
    assert torch.equal(pasted[0][~inside], frames[0][~inside])


def test_the_edge_fades_out_inside_the_mask():
    mask = mouth_mask(128)
    soft = soft_mask(mask)
    width = int(128 * FEATHER)
    assert (soft[mask == 0] == 0).all() and soft.max() == 1
    row = soft[83, : 128 // 2]
    edge = int((mask[83] > 0).nonzero()[0])
    assert (
        row[edge] == 0 and 0 < row[edge + 1] < 0.3 and row[edge + width + 1 :].eq(1).all() and (row.diff() >= 0).all()
    )
    assert (soft_mask(torch.ones(64, 64))[0] == 0).all()  # the crop's edge is one, too


def test_strength_fades_and_none_of_it_keeps_the_bits():
    frames = smooth_picture(120, 200).expand(3, -1, -1, -1)
    transforms = crop_transforms(track_of([FRONTAL - torch.tensor([50.0, 60])] * 3))
    crops = torch.full((3, 64, 64, 3), 255, dtype=torch.uint8)
    pasted = paste(frames, crops, transforms, torch.ones(64, 64), torch.tensor([0.0, 0.75, 1.0])).float()
    assert torch.equal(pasted[0], frames[0].float())
    whole = pasted[2] == 255
    assert whole.float().mean() > 0.2
    assert torch.allclose(pasted[1][whole], 0.25 * frames[1][whole].float() + 0.75 * 255, atol=1)
    assert torch.equal(frames[1], smooth_picture(120, 200))


def test_a_crop_half_outside_is_pasted_as_far_as_the_picture_goes():
    frames = smooth_picture(90, 120)[None]
    for shift in ([-140.0, -60.0], [-50.0, -10.0], [-140.0, -140.0], [900.0, 0.0]):
        transforms = crop_transforms(track_of([FRONTAL + torch.tensor(shift)]))
        mask = mouth_mask(128)
        pasted = paste(frames, align(frames, transforms, (128, 128)), transforms, mask)
        inside = masked_pixels(mask, transforms[0], 90, 120)
        assert pasted.shape == frames.shape and torch.equal(pasted[0][~inside], frames[0][~inside])
        inner = inside[3:-3, 3:-3]  # the crop shows the picture's last pixels mixed with the grey around it
        assert not inner.any() or psnr(pasted[0, 3:-3, 3:-3][inner], frames[0, 3:-3, 3:-3][inner]) > 58


def test_an_empty_mask_pastes_nothing():
    frames = smooth_picture(90, 120)[None]
    transforms = crop_transforms(track_of([FRONTAL - 60]))
    assert torch.equal(paste(frames, torch.zeros(1, 32, 32, 3), transforms, torch.zeros(32, 32)), frames)


def test_what_does_not_go_together_is_refused():
    frames, transforms = smooth_picture(90, 120)[None], crop_transforms(track_of([FRONTAL]))
    with pytest.raises(ValueError, match="1 frames, 2 crops, 1 transforms and 1 strengths"):
        paste(frames, torch.zeros(2, 32, 32, 3), transforms, torch.ones(32, 32))
    with pytest.raises(ValueError, match=r"mask is \[16, 32\], the crops are \[32, 32\]"):
        paste(frames, torch.zeros(1, 32, 32, 3), transforms, torch.ones(16, 32))
