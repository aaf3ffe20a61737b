"""What `dub` reads: the video's faces, the speeches and the plan, checked before any model is loaded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..media.clip import Clip
from ..media.faces.face import Track
from ..media.images import Size, match_size
from ..media.mix import Spans, mix_speech
from ..media.pictures import PictureTimes
from ..media.sound import Sound, add_silence, load_sound, speech_waveform
from ..media.timeline import chunk_length
from ..media.video import probe_video
from ..media.voice import speech_spans
from ..model.config import Conventions, has_masked_video, has_reference_sequence
from ..system.messages import counted
from .dub_faces import choose_tracks
from .dub_plan import NO_SPEECH, FacePlan, PlacedTrack, place_track, plan_face
from .dub_request import DubRequest
from .footage import Footage, OnPicture, find_footage
from .inputs import known_overlap
from .masks import load_mouth_mask
from .playback import Playback, plan_playback
from .request import RequestError, faults_of

logger = logging.getLogger(__name__)

_EXTENDED = {"loop": "it goes on backward, then forward", "hold": "its last picture stays"}


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceClip:
    """65 channels: crops of the same face from elsewhere."""

    source: Path | Clip
    times: PictureTimes
    face: PlacedTrack
    pictures: tuple[int, ...]
    """One for each of the model's frames."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceInputs:
    """A face and what it says."""

    plan: FacePlan
    waveform: Tensor
    """Float32 [n], mono at 16 kHz, from the start of the video on."""
    reference: ReferenceClip | None
    """65 channels: the second clip."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DubInputs:
    """The inputs of a dubbed video, read and checked."""

    footage: Footage
    playback: Playback
    faces: tuple[FaceInputs, ...]
    sound: Sound
    """As long as the video."""
    size: Size
    """Height and width of the crops."""
    mouth: Tensor
    """Float32 [H, W] of a crop: 1 where the new mouth is shown."""
    overlap: int
    """Frames that chunks share."""
    frame_size: Size
    """Height and width of the finished video; of a file they are even numbers."""

    @property
    def chunks(self) -> int:
        """Chunks of all faces."""
        return sum(face.plan.chunks for face in self.faces)

    @property
    def dubbed(self) -> int:
        """Frames of the finished video with a new mouth."""
        return int(torch.stack([face.plan.strengths > 0 for face in self.faces]).any(dim=0).sum())

    def untouched(self) -> dict[str, int]:
        """How many of the other frames there are, by the reason; of several faces the first one's counts."""
        reasons = zip(*(face.plan.reasons for face in self.faces), strict=True)
        return dict(Counter(place[0] or "" for place in reasons if all(reason is not None for reason in place)))

    def told(self) -> str:
        """What was found, in a line."""
        height, width = self.footage.size
        rate = float(self.footage.times.frame_rate)
        cut = "" if self.frame_size == self.footage.size else " (odd sides lose a pixel)"
        others = "".join(f", {count}: {reason}" for reason, count in self.untouched().items())
        return (
            f"{self.footage.source}: {width}x{height}{cut}, {rate:.4g} frames/s, {self.footage.times.duration:.2f} s, "
            f"{counted(len(self.footage.cuts) + 1, 'scene')}, {counted(len(self.footage.tracks), 'face')}: "
            f"{self.footage.faces()}. {self.dubbed} of {counted(len(self.playback.pictures), 'frame')} get a new "
            f"mouth{others}; {counted(self.chunks, 'chunk')}."
        )


def read_dub_inputs(
    request: DubRequest,
    in_dim: int,
    conventions: Conventions,
    *,
    footage: Footage | None = None,
    show_progress: bool = False,
    on_picture: OnPicture | None = None,
) -> DubInputs:
    """Read and check what a request names; look for the faces of the video.

    Args:
        request: what is wanted.
        in_dim: input channels of the checkpoint, 33, 49 or 65.
        conventions: of the checkpoint.
        footage: of the request's video, where it was looked at before.
        show_progress: show how far the search for faces is.
        on_picture: as for `find_footage`.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint, or there is no face to dub; the
            message names it.
    """
    if not has_masked_video(in_dim):
        raise RequestError(
            f"This checkpoint animates a portrait ({in_dim} channels); @video needs a V2V checkpoint (49 or 65 "
            "channels). `omniavatar convert --in_dim 49` makes the start of one to train from; `generate` with @image "
            "makes a portrait talk."
        )
    request.sampling(conventions.sampling)
    with faults_of("audio"):
        speeches = [sound if isinstance(sound, Sound) else load_sound(sound) for sound in request.sounds]
    speeches = [add_silence(speech, request.silence or 0.0) for speech in speeches]
    size = _crop_size(request, conventions)
    with faults_of("mouth_mask"):
        masks = load_mouth_mask(request.mouth_mask, *size)
        if len(masks) > 1:
            raise ValueError(f"has {len(masks)} pictures, wanted one")
    length = chunk_length(*size, request.max_tokens or conventions.max_tokens)
    overlap = known_overlap(request.overlap, conventions)
    if overlap >= length:
        raise RequestError(f"@overlap is {overlap} in chunks of {length} frames: lower it, or raise @max_tokens.")
    if not isinstance(request.video, Clip):
        with faults_of("video"):
            probe_video(request.video)
    if footage is None:
        with faults_of("detections" if request.detections is not None else "video"):
            footage = find_footage(
                request.video, request.detections, show_progress=show_progress, on_picture=on_picture
            )
    chosen = choose_tracks(footage, request.faces)
    waveforms = [speech_waveform(speech) for speech in speeches]
    spans = [speech_spans(waveform) for waveform in waveforms] if request.keep_audio == "gaps" else None
    playback = _playback(request, footage, max(speech.duration for speech in speeches))
    faces = []
    for number, (tracks, waveform) in enumerate(zip(chosen, waveforms, strict=True)):
        placed = [place_track(track, footage, conventions.template) for track in tracks]
        speech = None if spans is None else spans[number]
        plan = plan_face(footage, playback, placed, length=length, overlap=overlap, speech=speech)
        if not plan.spans:
            raise RequestError(_nothing_to_dub(request, footage, request.faces[number], plan))
        reference = None
        if has_reference_sequence(in_dim):
            reference = _reference(request, footage, playback, plan, conventions)
        faces.append(FaceInputs(plan=plan, waveform=waveform, reference=reference))
    return DubInputs(
        footage=footage,
        playback=playback,
        faces=tuple(faces),
        sound=_sound(request, footage, speeches, playback, spans),
        size=size,
        mouth=1 - masks[0],
        overlap=overlap,
        frame_size=footage.size if request.out is None else (footage.size[0] // 2 * 2, footage.size[1] // 2 * 2),
    )


def _crop_size(request: DubRequest, conventions: Conventions) -> Size:
    """The given size, or of those that the model knows the one that is nearest to a square."""
    if request.height is not None and request.width is not None:
        return request.height, request.width
    side = max(min(size) for size in conventions.image_sizes)
    return match_size(side, side, conventions.image_sizes)


def _playback(request: DubRequest, footage: Footage, seconds: float) -> Playback:
    duration = footage.times.duration
    if seconds > duration:
        done = _EXTENDED.get(request.extend, "the speech is cut")
        logger.info("The speech lasts %.2f s, the video %.2f s: %s.", seconds, duration, done)
    return plan_playback(footage.times, seconds, request.extend)


def _nothing_to_dub(request: DubRequest, footage: Footage, face: str, plan: FacePlan) -> str:
    if set(plan.reasons) == {NO_SPEECH}:
        return f"@audio has no voice in it for @face {face}, so @keep_audio gaps would change nothing."
    counts = Counter(reason for reason in plan.reasons if reason is not None)
    reasons = ", ".join(f"{reason} in {counted(count, 'frame')}" for reason, count in counts.most_common())
    return f"@face {face} cannot be dubbed in {request.video}: {reasons}. The faces are {footage.faces()}."


def _sound(
    request: DubRequest, footage: Footage, speeches: Sequence[Sound], playback: Playback, spans: Sequence[Spans] | None
) -> Sound:
    original = None
    if request.original_gain > 0:
        if isinstance(request.video, Clip):
            original = request.video.sound
        elif probe_video(request.video).has_sound:
            with faults_of("video"):
                original = load_sound(request.video, allow_silent=True)
        if original is None:
            logger.info("%s has no sound of its own to keep.", footage.source)
    replaced = None if spans is None else sorted(span for face in spans for span in face)
    return mix_speech(speeches, playback.duration, original, request.original_gain, replaced)


def _reference(
    request: DubRequest, footage: Footage, playback: Playback, plan: FacePlan, conventions: Conventions
) -> ReferenceClip:
    """The second clip of a 65-channel model: of its own file, or the last frames of the face's longest span."""
    length = max(len(chunk.frames) for span in plan.spans for chunk in span.chunks)
    if request.reference_video is not None:
        with faults_of("reference_video"):
            footage = find_footage(request.reference_video)
        tracks: list[Track] = choose_tracks(footage, ["largest"])[0]
        playback = plan_playback(footage.times, 0, "stop")
        placed = [place_track(track, footage, conventions.template) for track in tracks]
        plan = plan_face(footage, playback, placed, length=length, overlap=1)
    longest = max(plan.spans, key=lambda span: len(span.frames), default=None)
    needed = length if request.reference_video is not None else 2 * length
    if longest is None or len(longest.frames) < needed:
        raise RequestError(
            f"{footage.source} shows the face for {0 if longest is None else len(longest.frames)} frames without a "
            f"break, too few for a reference sequence of {length} frames apart from the first chunk: give "
            "@reference_video with another clip of the person, or lower @max_tokens."
        )
    return ReferenceClip(
        source=footage.source,
        times=footage.times,
        face=longest.face,
        pictures=tuple(longest.picture(frame, playback) for frame in longest.frames[-length:]),
    )
