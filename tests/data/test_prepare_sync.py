"""Whether lips and sound fit is measured at the right place of both, and sound that is late is put earlier."""

from pathlib import Path

import pytest
import torch
from media_files import tone
from prepare_looks import track
from torch import Tensor

from diffsynth_omniavatar.data.prepare import sync
from diffsynth_omniavatar.data.prepare.cut import clip_sound
from diffsynth_omniavatar.data.prepare.sync import Sync, measure_sync
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.writer import VideoWriter

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


class FlashesAndBeeps:
    """Sees which of 16 frames are white, and hears in which there is a tone."""

    def __call__(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        seen = frames.unflatten(1, (16, 3)).mean((2, 3, 4))
        heard = torch.nn.functional.adaptive_avg_pool1d(mel[:, 0].amax(dim=1, keepdim=True)[..., :51], 16)[:, 0]
        return _unit(seen), _unit(heard)


def _unit(values: Tensor) -> Tensor:
    centred = values - values.mean(dim=1, keepdim=True)
    return torch.nn.functional.normalize(centred, dim=1)


@pytest.mark.parametrize("late", [5, -3])
def test_the_offset_of_the_sound_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    flashes = torch.rand(90, generator=torch.Generator().manual_seed(2)) < 0.4
    beeps = torch.from_numpy(tone(90 / 25, 16000, 1000)).view(90, 640) * flashes[:, None]
    sound = beeps.roll(late, dims=0).flatten()
    with VideoWriter(tmp_path / "a.mp4", 64, 64, sound=Sound(sound[None].numpy(), 16000)) as writer:
        writer.write((flashes * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 64, 64, 3))
    monkeypatch.setattr(sync, "_loaded", lambda path, device: FlashesAndBeeps())
    person = track(range(10, 85), 32, 32, 30)
    places = {"good": (person, range(10, 80)), "short": (person, range(80, 85))}
    found = measure_sync(tmp_path / "a.mp4", sound, places, (), Sync(tmp_path))
    assert list(found) == ["good"]
    confidence, offset = found["good"]
    assert offset == late and confidence > 0.4
    assert torch.equal(clip_sound(sound, range(10, 80), offset), beeps[10:80].flatten())


def test_a_clip_has_silence_where_its_source_has_no_sound() -> None:
    sound = torch.arange(1, 640 * 4 + 1).float()
    assert torch.equal(clip_sound(sound, range(2, 6)), torch.cat([sound[1280:], torch.zeros(1280)]))
    assert torch.equal(clip_sound(sound, range(0, 3), -1), torch.cat([torch.zeros(640), sound[:1280]]))
    assert not clip_sound(sound, range(9, 11)).any() and clip_sound(sound, range(9, 11)).shape == (1280,)
