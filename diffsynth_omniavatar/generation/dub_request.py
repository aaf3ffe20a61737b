"""What is wanted of a dubbed video: one checked object, made before any model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..media.clip import Clip
from ..media.sound import SoundSource
from .request import RequestError, Settings, TalkRequest, file_fault

PROMPT = "A person speaks to the camera."
"""What is shown, where nobody says it."""

FACES = ("largest", "left", "right", "speaking")
EXTENSIONS = ("loop", "hold", "stop")
_DECIBELS = re.compile(r"((?:-\d+|\+?\d{1,2})(?:\.\d+)?) ?dB", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class DubRequest(Settings):
    """A video in which somebody says something else: the arguments of `dub`.

    Raises:
        RequestError: a value is out of its range, or the output cannot be written.
    """

    video: str | Path | Clip
    """The video, of any size, frame rate and codec; or a clip in memory."""
    audio: SoundSource | Sequence[SoundSource]
    """The new speech: a file, `Sound`, ...; a list of them for several faces."""
    prompt: str = PROMPT
    """Description of the video."""
    face: str | int | Sequence[str | int] = "largest"
    """Whose mouth is changed: "largest", "left" or "right" of each scene, "speaking" (the one who does so to the
    video's own sound), or a number as the log gives it; a list, one for each sound, for several faces."""
    extend: str = "loop"
    """What a video shows that is shorter than the speech: "loop" plays it backward, then forward, in turn, "hold" shows
    its last picture, "stop" ends with the video."""
    keep_audio: str = "no"
    """What is heard of the video's own sound: "no" nothing, "-20dB" all of it so much quieter, "gaps" sound and
    pictures wherever the new speech has no voice."""
    detections: str | Path | None = None
    """A file of faces as docs/faces.md describes, instead of those that are found."""
    debug_video: str | Path | None = None
    """Another video to write, which shows what was found and why frames were left as they are."""

    @property
    def sounds(self) -> list[SoundSource]:
        """The speeches, one for each face."""
        several = isinstance(self.audio, Sequence) and not isinstance(self.audio, str)
        return list(self.audio) if several else [self.audio]  # type: ignore[arg-type, list-item]

    @property
    def faces(self) -> list[str]:
        """Whose mouths are changed, one for each sound."""
        several = isinstance(self.face, Sequence) and not isinstance(self.face, str)
        return [str(face) for face in self.face] if several else [str(self.face)]  # type: ignore[union-attr]

    @property
    def original_gain(self) -> float:
        """What the video's own sound is multiplied with, where it is heard."""
        found = _DECIBELS.fullmatch(self.keep_audio)
        if found is not None:
            return 10 ** (float(found[1]) / 20)
        return 1.0 if self.keep_audio == "gaps" else 0.0

    @classmethod
    def of_talk(cls, request: TalkRequest) -> DubRequest:
        """What a request of `generate` for a video that is not aligned wants.

        Raises:
            RequestError: it has arguments that only aligned videos take.
        """
        assert request.video is not None
        if request.crop_portrait:
            raise RequestError("@crop_portrait is for a portrait, not for @video: leave it out.")
        if request.image is not None or not request.paste_source:
            name = "image" if request.image is not None else "paste_source"
            raise RequestError(
                f"@{name} is for a video that the model takes whole; the face of this one is cut out first: leave it "
                "out, or give @aligned."
            )
        return cls(video=request.video, audio=request.audio, **request.settings())

    def _faults(self) -> Iterator[str | None]:
        if not self.sounds:
            yield "@audio is empty, wanted at least one sound"
        elif len(self.sounds) != len(self.faces):
            yield f"@face is given {len(self.faces)} times and @audio {len(self.sounds)} times; wanted one for each"
        yield from filter(None, map(face_fault, self.faces))
        if self.extend not in EXTENSIONS:
            yield f"@extend is {self.extend!r}, wanted {', '.join(EXTENSIONS)}"
        if self.keep_audio not in ("no", "gaps") and _DECIBELS.fullmatch(self.keep_audio) is None:
            yield f"@keep_audio is {self.keep_audio!r}, wanted no, gaps, or a loudness like -20dB"
        yield from super()._faults()
        if self.out is None and not isinstance(self.video, Clip):
            yield "@out is missing: only what is made of a clip in memory can stay there"
        if self.out is None and self.debug_video is not None:
            yield "@debug_video needs @out"
        if self.debug_video is not None:
            yield file_fault("debug_video", Path(self.debug_video))
        yield from self._overwritten()

    def _overwritten(self) -> Iterator[str | None]:
        known: list[tuple[str, object]] = [("video", self.video), *(("audio", sound) for sound in self.sounds)]
        for name, file in (("out", self.out), ("debug_video", self.debug_video)):
            for other, source in known:
                if file is not None and isinstance(source, (str, Path)) and _is_same(file, source):
                    yield f"@{name} {file} is the file of @{other} too"
            known.append((name, file))


def _is_same(one: str | Path, other: str | Path) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def face_fault(face: str) -> str | None:
    """What is wrong with the name of a face."""
    if face in FACES or (face.isdecimal() and int(face) > 0):
        return None
    return f"@face is {face!r}, wanted {', '.join(FACES)} or a number from 1 on"
