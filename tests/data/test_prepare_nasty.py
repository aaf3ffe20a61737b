"""Whatever lies in a folder of footage, each file becomes clips or has its reason, and nothing stops at it."""

import re
from pathlib import Path

import numpy as np
import pytest
from nasty import drawn_people, encode, write_nasty

from diffsynth_omniavatar.data.prepare import look
from diffsynth_omniavatar.data.prepare.captions import Captions
from diffsynth_omniavatar.data.prepare.records import OTHER_REASONS
from diffsynth_omniavatar.data.prepare.run import prepare
from diffsynth_omniavatar.data.prepare.settings import PrepareSettings
from diffsynth_omniavatar.data.prepare.sources import find_sources
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.media.timeline import SAMPLE_RATE

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

LIKE_OTHERS = (
    *("120fps.mp4", "surround.mp4", "late.mkv", "languages.mp4", "mirrored.mov", "anamorphic.mp4", "hdr.mp4", "4k.mp4"),
    *("odd.mkv", "-i.mp4", "short sound.mp4", "hiss.mp4", "truncated.mkv", "rotated.mp4"),
)
"""Files that are only read otherwise, which is a matter of media/."""

LOOSE = {
    **{"min_seconds": 0.2, "min_face_size": 20, "max_enlargement": 9, "min_speech_share": 0.1, "min_sharpness": 0},
    **{"max_frozen_share": 0.9, "min_mouth_motion": 0, "min_inside_share": 0.5, "min_speaker_lead": 0},
}


def test_nasty_files_become_clips_or_have_their_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Half a second of a drawn person's voice is no speech for those who know speech.
    monkeypatch.setattr(look, "speech_spans", lambda waveform: [(0.0, len(waveform) / SAMPLE_RATE)])
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    files = write_nasty(raw, drawn_people(12, 64))
    assert len(find_sources([raw, raw / "video.txt"], out)) == len(files) == 40
    for name in LIKE_OTHERS:
        (raw / name).unlink()
    sources = find_sources([raw, raw / "video.txt"], out)
    settings = PrepareSettings(mode="i2v", sizes=((64, 64),), bounds=LOOSE)
    report = prepare(sources, out, settings, captions=Captions(template="{stem} talks."))
    records = {Path(record.path).name: record for record in report.sources}
    for file in (file for file in files if file.name in records):
        record = records[file.name]
        assert record.clips or record.reasons, file.name
        if file.fault:
            (reason,) = record.reasons.values()
            assert file.name in reason and re.search(file.fault, reason, re.IGNORECASE)
        for clip in record.clips:
            assert clip.strip is not None and (out / clip.strip).is_file()
    assert [set(clip.reasons) for clip in records["nobody.mp4"].clips] == [{"no_face"}]
    assert len(records["scenes.mp4"].clips) == 3 and len(records["good.mp4"].clips) == 1
    clips = [clip for table in ("metadata.csv", "validation.csv") for clip in read_clips(out / table)]
    assert len(clips) == report.kept > 1


def test_a_file_on_its_side_is_told_how_to_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "speech_spans", lambda waveform: [(0.0, 0.1)])
    people = drawn_people(2, 128)
    encode(tmp_path / "side.mp4", np.rot90(people.first, 1, (1, 2)), people.speech)
    with pytest.raises(
        look.SourceFault, match=r"side.mp4: the face lies on its side: .* to the right, as `ffmpeg"
    ) as told:
        look.look_at(tmp_path / "side.mp4")
    assert told.value.reason in OTHER_REASONS
