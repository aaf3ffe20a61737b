"""What watches a clip window by window gives what the whole clip gives at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_faces import face_at
from test_syncnet import Brightness, clip

from diffsynth_omniavatar.losses.mel import mel_spectrogram, mel_window
from diffsynth_omniavatar.losses.sync import SyncLoss
from diffsynth_omniavatar.metrics import groups, syncnet
from diffsynth_omniavatar.metrics.clip import Window
from diffsynth_omniavatar.metrics.crops import cut_squares, sync_boxes

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def watch(group: groups.Group, frames: torch.Tensor, length: int) -> groups.Measured:
    for start in range(0, len(frames), length):
        group.watch(Window(start=start, frames=frames[start : start + length], reference=None))
    return group.result()


@pytest.mark.parametrize("length", [3, 25])
def test_syncnet_in_windows_equals_one_call(length: int, monkeypatch: pytest.MonkeyPatch):
    for module in (groups, syncnet):
        monkeypatch.setattr(module, "PICTURE_SIZE", 8)
    monkeypatch.setattr(syncnet, "FEATURES", 5)
    frames, waveform = clip(late=2)
    boxes = np.tile([4.0, 4.0, 3.0], (len(frames), 1))
    network = syncnet.SyncNet(Brightness())
    seen = SimpleNamespace(boxes=boxes, waveform=waveform, frames=len(frames))
    found = watch(groups.SyncGroup(seen, SimpleNamespace(syncnet=network)), frames, length)
    whole = network.measure(cut_squares(frames, sync_boxes(boxes), 8, 110), waveform)
    assert found.values["sync_offset"] == whole.offset == 2
    assert found.values["sync_c"] == pytest.approx(whole.confidence, abs=1e-5)
    assert found.values["sync_d"] == pytest.approx(whole.distance, abs=1e-5)
    curve = found.curves["sync_distance"]
    assert len(curve) == len(frames) and np.isnan(curve[-5:]).all()
    assert np.nanmean(curve) == pytest.approx(whole.distance, abs=1e-5)


class Judge:
    """Vectors of what is seen and heard, of length 1."""

    def __call__(self, mouths: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = mouths.flatten(2).mean(dim=2)[:, ::3].abs() + 0.1
        heard = mel[:, 0, :16, ::3].abs().mean(dim=2) + 0.1
        return torch.nn.functional.normalize(seen), torch.nn.functional.normalize(heard)


@pytest.mark.parametrize("length", [7, 25])
def test_stable_syncnet_in_windows_equals_one_call(length: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(groups, "align", lambda frames, transforms, size: frames.float())
    draws = np.random.default_rng(0)
    frames = torch.from_numpy(draws.integers(0, 255, (40, 16, 16, 3), np.uint8))
    waveform = draws.normal(0, 0.1, 40 * 640).astype(np.float32)
    seen = SimpleNamespace(waveform=waveform, transforms=torch.zeros(40, 2, 3), frames=40)
    networks = SimpleNamespace(stable_syncnet=Judge(), device="cpu")
    curve = watch(groups.StableSyncGroup(seen, networks), frames, length).curves["stable_sync"]
    loss, mel = SyncLoss(Judge()), mel_spectrogram(torch.from_numpy(waveform))
    for start in (0, 16):
        video = frames[start : start + 16].permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        cosine = float(loss.window_cosine(video, mel_window(mel, start)[None]))
        assert curve[start : start + 16] == pytest.approx([cosine] * 16)
    assert len(set(curve[:32])) == 2 and np.isnan(curve[32:]).all()


def test_identity_looks_at_every_fifth_frame_in_windows_too():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8))
    seen = SimpleNamespace(faces=[face_at(4, 4)] * 12, frames=12, portrait=(frames[0].numpy(), face_at(4, 4)))
    networks = SimpleNamespace(embedder=lambda frame, face: frame[0, 0] / np.linalg.norm(frame[0, 0].astype(float)))
    curves = [watch(groups.IdentityGroup(seen, networks), frames, length).curves["csim"] for length in (4, 25)]
    np.testing.assert_array_equal(*curves)
    assert np.flatnonzero(np.isfinite(curves[0])).tolist() == [0, 5, 10] and curves[0][0] == pytest.approx(1)
