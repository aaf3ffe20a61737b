"""Facts of files whose sound starts elsewhere, and whose header says something else."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import grey_frame

from diffsynth_omniavatar.metrics.container import file_facts

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def write(path: Path, frames: int, rate: int, sound_start: float | None, loudness: int = 8000) -> None:
    """`frames` pictures, and a second of sound that starts `sound_start` seconds behind the first one."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        sound = None if sound_start is None else container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for place in range(frames):
            frame = av.VideoFrame.from_ndarray(grey_frame(4 * place), format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            tone = (loudness * np.sin(np.arange(16000) / 5)).astype(np.int16)[None]
            block = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16000, round(16000 * sound_start), Fraction(1, 16000)
            container.mux(sound.encode(block))
            container.mux(sound.encode(None))


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_a_sound_that_starts_late_is_told(tmp_path: Path, late: float):
    write(tmp_path / "a.mkv", 10, 20, late)
    found = file_facts(tmp_path / "a.mkv")
    assert found["frame_rate"] == pytest.approx(20) and found["picture_duration"] == pytest.approx(0.5, abs=0.002)
    assert found["sound_offset"] == pytest.approx(late, abs=0.002)
    assert found["sound_duration"] == pytest.approx(1 + late, abs=0.002)
    assert found["container_duration"] == pytest.approx(1 + late, abs=0.01)


def test_a_silent_video_and_one_without_sound_have_facts(tmp_path: Path):
    write(tmp_path / "silent.mkv", 10, 25, 0.0, loudness=0)
    assert file_facts(tmp_path / "silent.mkv")["sound_duration"] == pytest.approx(1, abs=0.002)
    write(tmp_path / "without.mkv", 10, 25, None)
    found = file_facts(tmp_path / "without.mkv")
    assert np.isnan([found["sound_offset"], found["sound_duration"]]).all() and found["picture_duration"] > 0.39
