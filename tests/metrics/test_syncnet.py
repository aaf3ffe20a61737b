"""The coefficients and the arithmetic of SyncNet's protocol equal those of its authors' code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffsynth_omniavatar.metrics import syncnet
from diffsynth_omniavatar.metrics.mfcc import mfcc
from diffsynth_omniavatar.metrics.syncnet import SyncNet, SyncNetModel

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_the_coefficients_are_those_of_python_speech_features():
    """Recorded from its version 0.6 for a sum of two tones of 16-bit integers."""
    n = np.arange(3200)
    tones = np.round(8000 * np.sin(2 * np.pi * 220 * n / 16000) + 4000 * np.sin(2 * np.pi * 1810 * n / 16000))
    found = mfcc(tones / 32768)
    assert found.shape == (19, 13)
    first = [20.503436, 6.357953, -19.615253, 14.645179, 38.204078, -6.256567, -42.614273]
    last = [20.271451, 8.605248, -19.288081, 14.358506, 38.397883, -3.83853, -38.360442]
    np.testing.assert_allclose(found[0, :7], first, atol=1e-6)
    np.testing.assert_allclose(found[-1, :7], last, atol=1e-6)


@pytest.mark.parametrize(("samples", "windows"), [(1, 1), (400, 1), (401, 2), (560, 2), (561, 3), (16000, 99)])
def test_every_sample_is_in_a_window(samples, windows):
    assert len(mfcc(np.zeros(samples))) == windows


def test_silence_has_finite_coefficients():
    assert np.isfinite(mfcc(np.zeros(1000))).all()


def test_the_networks_take_what_the_protocol_gives():
    with torch.device("meta"):
        network = SyncNetModel().eval()
    network.to_empty(device="cpu")
    assert network.lips(torch.zeros(1, 3, 5, 224, 224)).shape == (1, 1024)
    assert network.sound(torch.zeros(1, 1, 13, 20)).shape == (1, 1024)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # Some names and shapes of the authors' syncnet_v2.model, by which their file loads.
    assert shapes["netcnnlip.0.weight"] == (96, 3, 5, 7, 7) and shapes["netcnnlip.18.weight"] == (512, 256, 1, 6, 6)
    assert shapes["netcnnaud.18.weight"] == (512, 256, 5, 4) and shapes["netfclip.3.weight"] == (1024, 512)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(syncnet, "PICTURE_SIZE", 8)


class Brightness(nn.Module):
    """Takes for features what can be seen and heard plainly: brightness of each frame, loudness of each."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def lips(self, frames):
        return frames.mean(dim=(1, 3, 4)) / 255

    def sound(self, coefficients):
        return coefficients[:, 0, 0].unfold(1, 2, 4).mean(dim=-1) / 20


def clip(late=0, frames=60):
    """Frames whose brightness is the loudness of their sound, by `late` frames later than it."""
    levels = 10 ** np.random.default_rng(0).uniform(-4, -1.5, frames)
    waveform = np.repeat(levels, 640) * np.sign(np.sin(np.arange(frames * 640)))
    heard = mfcc(waveform)[:, 0]
    shown = np.roll([heard[4 * k : 4 * k + 2].mean() / 20 for k in range(frames)], late)
    pictures = torch.tensor(shown * 255).round().to(torch.uint8)
    return pictures[:, None, None, None].expand(-1, 8, 8, 3).contiguous(), waveform


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_a_late_picture_has_an_offset_above_zero(late):
    found = SyncNet(Brightness()).measure(*clip(late))
    assert found.offset == late and found.confidence > 0.1


def test_figures_are_those_of_the_authors_loop():
    crops, waveform = clip(2)
    network = Brightness()
    found = SyncNet(network).measure(crops, waveform)
    count = min(len(crops), len(waveform) // 640) - 5
    bgr = crops.flip(-1).permute(0, 3, 1, 2).float()
    coefficients = torch.from_numpy(mfcc(waveform).T).float()
    lips = torch.cat([network.lips(bgr[k : k + 5].transpose(0, 1)[None]) for k in range(count)])
    sound = torch.cat([network.sound(coefficients[None, None, :, 4 * k : 4 * k + 20]) for k in range(count)])
    padded = F.pad(sound, (0, 0, 15, 15))
    distances = torch.stack([F.pairwise_distance(lips[k : k + 1], padded[k : k + 31]) for k in range(count)])
    means = distances.mean(dim=0)
    torch.testing.assert_close(torch.from_numpy(found.distances), distances)
    assert found.distance == pytest.approx(float(means.min())) and found.offset == 15 - int(means.argmin())
    assert found.confidence == pytest.approx(float(means.median() - means.min()))


def test_parts_that_share_four_frames_give_the_lips_of_the_whole():
    crops, _ = clip()
    sync = SyncNet(Brightness())
    parts = torch.cat([sync.lips(crops[:30]), sync.lips(crops[26:])])
    torch.testing.assert_close(parts, sync.lips(crops))


def test_too_little_and_wrong_crops_are_refused():
    crops, waveform = clip()
    with pytest.raises(ValueError, match="6 frames"):
        SyncNet(Brightness()).measure(crops[:5], waveform)
    with pytest.raises(ValueError, match="wanted"):
        SyncNet(Brightness()).measure(crops[:, :4], waveform)


def test_a_file_from_before_batches_were_counted_loads(tmp_path, monkeypatch):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

    monkeypatch.setattr(syncnet, "SyncNetModel", Small)
    weights = {name: value + 1 for name, value in Small().state_dict().items() if "batches" not in name}
    torch.save(weights, tmp_path / "old.model")
    loaded = SyncNet.load(tmp_path / "old.model")
    assert torch.equal(loaded.network.norm.weight, weights["norm.weight"])
    torch.save({"other": torch.ones(1)}, tmp_path / "wrong.model")
    with pytest.raises(ValueError, match="another network"):
        SyncNet.load(tmp_path / "wrong.model")
