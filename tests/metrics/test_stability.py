"""What should not change in a video is measured where it changes in a known way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffsynth_omniavatar.metrics import stability
from diffsynth_omniavatar.metrics.clip import Window
from diffsynth_omniavatar.metrics.groups import StabilityGroup
from diffsynth_omniavatar.metrics.networks import Networks

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def noise(frames, size=48):
    return torch.from_numpy(np.random.default_rng(0).integers(60, 200, (frames, size, size, 3), np.uint8))


def test_blur_lowers_sharpness_step_by_step():
    frames = noise(2).float()
    found = []
    for reach in (0, 1, 2, 4):
        blurred = F.avg_pool2d(frames.permute(0, 3, 1, 2), 2 * reach + 1, 1, reach).permute(0, 2, 3, 1)
        found.append(float(stability.sharpness(stability.luma(blurred)).mean()))
    assert found == sorted(found, reverse=True) and found[-1] < found[0] / 10
    assert float(stability.sharpness(torch.full((1, 9, 9), 80.0))) == 0


def test_the_laplacian_of_one_bright_pixel():
    picture = torch.zeros(1, 5, 5)
    picture[0, 2, 2] = 1.0
    assert float(stability.sharpness(picture)) == pytest.approx(np.std([0, 1, 0, 1, -4, 1, 0, 1, 0], ddof=1))


def test_frames_that_repeat_are_counted_across_windows():
    frames = noise(6)[[0, 1, 1, 2, 3, 3]]
    whole = stability.change(frames, None)
    parts = torch.cat([stability.change(frames[:4], None), stability.change(frames[4:], frames[3])])
    assert torch.equal(whole[1:], parts[1:]) and torch.isnan(whole[0])
    assert stability.frozen_share(whole.numpy()) == pytest.approx(2 / 5)
    assert np.isnan(stability.frozen_share(np.array([np.nan])))


def test_even_light_does_not_flicker_and_jumps_do():
    assert stability.flicker(100 + 0.5 * np.arange(50)) == pytest.approx(0)
    assert stability.flicker(100 + 2.0 * (np.arange(50) % 2)) == pytest.approx(4)
    assert np.isnan(stability.flicker(np.ones(2)))


def test_the_end_is_compared_with_the_beginning():
    curve = np.concatenate([np.full(25, 3.0), np.full(10, 9.0), np.full(25, 5.0)])
    curve[[0, -1]] = np.nan
    assert stability.late_change(curve, 25) == pytest.approx(2)


def test_only_the_upper_corners_count_as_background():
    frames = noise(1)
    frames[:, 8:] = 0
    frames[:, :, 8:-8] = 0
    corners = torch.cat([frames[:, :8, :8], frames[:, :8, -8:]], dim=2).float().mean(dim=(1, 2))
    torch.testing.assert_close(stability.border_colours(frames), corners)


def test_colours_drift_from_the_first_second_to_the_last():
    """Frame t has the grey level t, so the last second's mean is 50 above the first's."""
    frames = torch.arange(75, dtype=torch.uint8)[:, None, None, None].expand(-1, 12, 12, 3)
    group = StabilityGroup(None, Networks())
    for start in range(0, 75, 20):
        group.watch(Window(start=start, frames=frames[start : start + 20], reference=None))
    found = group.result()
    assert found.values["colour_drift"] == pytest.approx(50) and found.values["frozen_share"] == 0
    assert found.values["flicker"] == found.values["sharpness_late"] == 0
    assert found.curves["colour_drift"][12] == 0 and len(found.curves["change"]) == 75
