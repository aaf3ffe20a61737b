"""Pictures keep their own times, whichever way they are read, and are written back at them."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from media_files import GREY_STEP, greys, write_greys

from diffsynth_omniavatar.media import pictures as pictures_
from diffsynth_omniavatar.media.pictures import PictureReader, PictureScan
from diffsynth_omniavatar.media.writer import VideoWriter

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

UNEVEN = [0, 40, 80, 95, 110, 180, 200, 240, 333, 367, 400, 480, 520, 560, 600, 613]


def numbers(frames: list[torch.Tensor]) -> list[int]:
    return [round(float(frame[8:24, 8:40].float().mean()) / GREY_STEP) for frame in frames]


def test_each_picture_comes_once_with_its_time(tmp_path: Path) -> None:
    write_greys(tmp_path / "uneven.mkv", [time + 500 for time in UNEVEN])
    scan = PictureScan(tmp_path / "uneven.mkv")
    assert numbers(list(scan)) == list(range(len(UNEVEN))) and scan.size == (32, 48)
    times = scan.times()
    assert [round(start * times.tick * 1000) for start in times.starts] == UNEVEN
    assert times.first == Fraction(1, 2)


def test_pictures_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_greys(tmp_path / "uneven.mp4", UNEVEN)
    scan = PictureScan(tmp_path / "uneven.mp4")
    frames = list(scan)
    monkeypatch.setattr(pictures_, "BACKWARD_BYTES", 10 * frames[0].nbytes)
    monkeypatch.setattr(pictures_, "_LONGEST_SKIP", 8)
    reader = PictureReader(tmp_path / "uneven.mp4", scan.times())
    last = len(UNEVEN) - 1
    order = [*range(last + 1), *range(last - 1, -1, -1), *range(1, 6), 9, 9, 3, 4, 2, 15, 0, 14]
    most = 0
    for number in order:
        assert numbers([reader.read(number)]) == [number]
        most = max(most, len(reader._window))
    assert 0 < most < 10


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov"])
def test_frames_are_written_at_their_times(tmp_path: Path, ending: str) -> None:
    ends = [*UNEVEN[1:], 700]
    out = tmp_path / f"out.{ending}"
    with VideoWriter(out, 32, 48, frame_rate=25, tick=Fraction(1, 1000)) as writer:
        for part in (slice(0, 5), slice(5, None)):
            times = list(zip(UNEVEN, ends, strict=True))[part]
            writer.write(greys(len(UNEVEN))[part], times)
        with pytest.raises(ValueError, match="from tick 710 to 720, wanted it to start at 700"):
            writer.write(greys(1), [(710, 720)])
    assert writer.seconds_written == 0.7
    scan = PictureScan(out)
    assert numbers(list(scan)) == list(range(len(UNEVEN)))
    times = scan.times()
    assert [float(start * times.tick * 1000) for start in times.starts] == pytest.approx(UNEVEN, abs=1)
    assert times.duration == pytest.approx(0.7, abs=0.001)


@pytest.mark.parametrize("rate", [25, 30, Fraction(30000, 1001), Fraction(24000, 1001)])
def test_written_back_times_are_those_of_the_source(tmp_path: Path, rate: Fraction) -> None:
    with VideoWriter(tmp_path / "source.mp4", 32, 48, frame_rate=rate) as writer:
        writer.write(greys(9))
    source = PictureScan(tmp_path / "source.mp4")
    frames = list(source)
    times = source.times()
    assert times.duration == pytest.approx(9 / rate, abs=1e-3) and times.frame_rate == pytest.approx(rate, rel=1e-3)
    stops = [*times.starts[1:], times.stop]
    with VideoWriter(tmp_path / "back.mp4", 32, 48, frame_rate=times.frame_rate, tick=times.tick) as writer:
        writer.write(torch.stack(frames), list(zip(times.starts, stops, strict=True)))
    back = PictureScan(tmp_path / "back.mp4")
    list(back)
    wanted = [float(start * times.tick) for start in [*times.starts, times.stop]]
    again = back.times()
    assert [float(start * again.tick) for start in [*again.starts, again.stop]] == pytest.approx(wanted, abs=1e-6)
