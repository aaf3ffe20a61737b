"""What validation videos are made from: a file with a line for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..generation.samples import Sample, read_samples
from ..media.images import load_image
from ..media.sound import load_sound, speech_waveform
from ..media.video import iter_frames, probe_video

SAME_SOUND = 0.9
"""Least correlation of two tracks of the same sound; coding them changes a little, other speech is near 0."""


@dataclass(frozen=True)
class ValidationSample:
    """What a validation video is made from."""

    prompt: str
    picture: Path
    """The portrait; V2V: the video whose mouth is changed."""
    sound: Path
    reference: Path | None = None
    """The real video that it should equal."""


def read_validation_samples(path: str | Path, *, is_v2v: bool) -> list[ValidationSample]:
    """The samples of a file with a line `prompt@@image@@audio` each (V2V: `prompt@@video@@audio`).

    A fourth field may name the real video, the reference of some figures. Without it, a V2V sample has its video as
    reference, where the sound is that of the video.

    All pictures and sounds are read, so that none of them can fail later, in the middle of training.

    Raises:
        ValueError: the file is missing or empty, or lines have faults; the message lists all of them.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"--validation_data {path} does not exist or is no file.")
    samples, faults = read_samples(path, may_have_reference=True)
    for number, sample in samples.items():
        found = [*_faults(sample, is_v2v)]
        if found:
            faults[number] = "; ".join(found)
    if faults:
        listed = "\n".join(f"  line {number}: {faults[number]}" for number in sorted(faults))
        raise ValueError(f"--validation_data {path} has lines that cannot be used:\n{listed}")
    if not samples:
        raise ValueError(f"--validation_data {path} is empty; wanted lines prompt@@image@@audio.")
    return [
        ValidationSample(
            sample.prompt, sample.source, sample.audio, _own_reference(sample) if is_v2v else sample.reference
        )
        for sample in samples.values()
    ]


def _faults(sample: Sample, is_v2v: bool) -> Iterator[str]:
    """The parts of a sample that cannot be read."""
    for read, path in (
        (_read_video if is_v2v else load_image, sample.source),
        (load_sound, sample.audio),
        (_read_video, sample.reference),
    ):
        try:
            if path is not None:
                read(path)
        except (ValueError, OSError) as error:
            yield str(error)


def _read_video(path: Path) -> None:
    for _ in iter_frames(path):
        pass


def _own_reference(sample: Sample) -> Path | None:
    """The reference of a V2V sample: the one given, or the source if it has the same sound."""
    if sample.reference is not None or not probe_video(sample.source).has_sound:
        return sample.reference
    if sample.source == sample.audio:
        return sample.source
    ours, theirs = (speech_waveform(load_sound(path, allow_silent=True)) for path in (sample.source, sample.audio))
    count = min(len(ours), len(theirs))
    likeness = torch.nn.functional.cosine_similarity(ours[:count], theirs[:count], dim=0)
    return sample.source if likeness >= SAME_SOUND else None
