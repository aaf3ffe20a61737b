"""Clips in memory: what they may be, and that they are read as files are."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from diffsynth_omniavatar.media.clip import Clip, ClipWriter
from diffsynth_omniavatar.media.pictures import PictureScan, picture_reader
from diffsynth_omniavatar.media.sound import Sound

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_a_clip_is_read_as_a_file_is():
    frames = torch.randint(0, 256, (7, 4, 6, 3), dtype=torch.uint8)
    clip = Clip(frames, Fraction(30000, 1001))
    scan = PictureScan(clip)
    assert torch.equal(torch.stack(list(scan)), frames) and scan.size == (4, 6)
    times = scan.times()
    assert list(times.starts) == list(range(7)) and times.stop == 7 and times.frame_rate == clip.frame_rate
    read = picture_reader(clip, times)
    assert all(torch.equal(read(number), frames[number]) for number in (3, 6, 0))


def test_frames_that_stay_are_repeated_and_sound_is_cut():
    sound = Sound(np.ones((2, 1000), np.float32), 100)
    writer = ClipWriter(4, 2, 2, Fraction(25), sound, sound_delay=0.04)
    writer.write(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 2, 2, 3), [(0, 1), (1, 4)])
    clip = writer.clip()
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 255, 255, 255] and clip.duration == 0.16
    assert clip.sound.samples.shape == (2, 16) and clip.sound.samples[0].tolist() == [0] * 4 + [1] * 12


@pytest.mark.parametrize(
    ("frames", "rate", "text"),
    [
        (torch.zeros(2, 4, 4, 3), 25, r"torch.float32 \[2, 4, 4, 3\], wanted uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 25, r"wanted uint8 \[F, H, W, 3\]"),
        (torch.zeros(0, 4, 4, 3, dtype=torch.uint8), 25, "0 frames of 4x4, wanted at least one"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), 0, "0 frames a second, wanted 1 to 1000"),
    ],
)
def test_what_is_no_clip_is_named(frames, rate, text):
    with pytest.raises(ValueError, match=text):
        Clip(frames, Fraction(rate))
