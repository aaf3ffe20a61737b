"""Noise and drift of colours are found where they are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffsynth_omniavatar.metrics.picture import colour_drift, drift_at_end, frame_psnr, frame_ssim, psnr

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_psnr_is_that_of_known_noise():
    reference = np.full((2, 8, 8, 3), 100, np.uint8)
    everywhere = np.ones((8, 8), bool)
    assert psnr(reference + 5, reference, everywhere) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(reference + 5, reference[0], everywhere) == pytest.approx(20 * np.log10(255 / 5))


def test_the_drift_of_a_constant_is_found():
    frames = np.full((100, 8, 8, 3), 50, np.uint8)
    frames[..., 1] += (np.arange(100) // 10).astype(np.uint8)[:, None, None]
    frames[:, :4] = np.random.default_rng(0).integers(0, 255, (100, 4, 8, 3))
    where = np.zeros((8, 8), bool)
    where[4:] = True
    drift = colour_drift(frames, where)
    assert np.allclose(drift[:, [0, 2]], 0) and drift[-1, 1] == pytest.approx(9 - 0.8, abs=0.2)
    assert drift_at_end(frames, where) == pytest.approx(drift[-25:, 1].mean())


def pictures(frames=2, size=40):
    """Smooth patterns, uint8 [frames, size, size, 3]."""
    coarse = torch.rand(frames, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, (size, size), mode="bicubic")
    return (fine.permute(0, 2, 3, 1) * 255).clamp(0, 255).to(torch.uint8)


def test_equal_frames_have_the_best_figures():
    same = pictures()
    assert frame_psnr(same, same).tolist() == [[100, 100]]
    torch.testing.assert_close(frame_ssim(same, same), torch.ones(1, 2))


def test_the_psnr_of_an_even_change():
    dark = torch.full((3, 16, 16, 3), 100, dtype=torch.uint8)
    assert frame_psnr(dark + 5, dark).tolist() == [pytest.approx([20 * np.log10(255 / 5)] * 3)]


def test_ssim_is_its_formula_in_each_window():
    ours = pictures()
    theirs = (ours.float() + 20 * torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    theirs = theirs.to(torch.uint8)
    along = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(along, along) / along.sum() ** 2
    # [2, H - 10, W - 10, 3, 11, 11] of each: every window's pixels
    a, b = (np.lib.stride_tricks.sliding_window_view(v.numpy().astype(float), (11, 11), (1, 2)) for v in (ours, theirs))
    mean_a, mean_b = ((v * weights).sum((-1, -2), keepdims=True) for v in (a, b))
    spread_a, spread_b, together = (
        (product * weights).sum((-1, -2))
        for product in ((a - mean_a) ** 2, (b - mean_b) ** 2, (a - mean_a) * (b - mean_b))
    )
    mean_a, mean_b, first, second = mean_a[..., 0, 0], mean_b[..., 0, 0], 2.55**2, 7.65**2
    similar = (2 * mean_a * mean_b + first) * (2 * together + second)
    similar /= (mean_a**2 + mean_b**2 + first) * (spread_a + spread_b + second)
    np.testing.assert_allclose(frame_ssim(ours, theirs)[0], similar.mean((1, 2, 3)), atol=1e-5)


def test_the_more_blur_the_worse_ssim_and_psnr():
    sharp = pictures()
    wide = [F.avg_pool2d(sharp.permute(0, 3, 1, 2).float(), 2 * n + 1, 1, n).permute(0, 2, 3, 1) for n in (0, 1, 3, 6)]
    for figure in (frame_ssim, frame_psnr):
        found = [float(figure(blurred.round().to(torch.uint8), sharp).mean()) for blurred in wide]
        assert found == sorted(found, reverse=True) and found[0] > found[-1] + 0.05


def test_what_a_weight_leaves_out_does_not_count():
    ours, theirs = pictures(), pictures()
    theirs[:, :20] = 255 - theirs[:, :20]
    lower = torch.zeros(2, 40, 40)
    lower[:, 26:] = 1  # the window of SSIM reaches five pixels further
    for figure in (frame_psnr, frame_ssim):
        whole, part = figure(ours, theirs, (None, lower))
        assert (whole < 0.95 * part).all()
        torch.testing.assert_close(part, figure(ours, ours)[0])
