"""One call from any video and speech to the same video in which somebody says that."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..media.clip import ClipWriter
from ..media.faces.align import align
from ..media.faces.paste import paste
from ..media.images import Size
from ..media.pictures import picture_reader
from ..media.sound import SoundSource
from ..media.timeline import SAMPLES_PER_FRAME
from ..media.writer import VideoWriter
from .chunks import ChunkMaker
from .dub_debug import DebugVideo
from .dub_inputs import DubInputs, FaceInputs, ReferenceClip, read_dub_inputs
from .dub_plan import Chunk, PlacedTrack, Span
from .dub_request import DubRequest
from .footage import OnPicture
from .pipeline import OmniAvatarPipeline
from .preview import OnPreview
from .progress import ChunkProgress, progress
from .result import DubbedVideo
from .speech import encode_speech

logger = logging.getLogger(__name__)

PICTURES_AT_ONCE = 8
"""Pictures that are pasted and written at a time."""


def dub(
    pipe: OmniAvatarPipeline,
    request: DubRequest | None = None,
    *,
    inputs: DubInputs | None = None,
    show_progress: bool = True,
    on_preview: OnPreview | None = None,
    on_picture: OnPicture | None = None,
    **arguments: Any,
) -> DubbedVideo:
    """Make somebody in a video say something else, and write it while it is made.

    The face is found, cut out as the model was trained on it, given a new mouth chunk by chunk, and put back into the
    full picture, whose other pixels stay. Size, frame rate and times of the pictures are the source's. Memory does not
    grow with the length, but for the sound and its features, unless the result stays there (`DubRequest.out`). An
    interrupt leaves a playable file of what is done. Of several processes that make it together (`use_usp`), the first
    writes it.

    Args:
        pipe: from `load_pipeline` or `from_pretrained`, of a V2V checkpoint.
        request: what is wanted; or its fields as arguments: video, audio, out and more (`DubRequest` lists them all).
        inputs: of this request, where they were read before.
        show_progress: draw a bar with chunk, step, speed and remaining time.
        on_preview: as for `generate`.
        on_picture: called while faces are looked for, see `footage.OnPicture`.

    Raises:
        RequestError: an input is missing, unreadable or does not fit the checkpoint, or there is no face to dub; the
            message names it.
    """
    started = time.monotonic()
    if request is None:
        request = DubRequest(**arguments)
    elif arguments:
        raise TypeError(f"dub() got a request and {', '.join(arguments)}: give the request alone")
    if inputs is None:
        shows = show_progress and pipe.is_first_process
        in_dim, conventions = pipe.dit.config.in_dim, pipe.conventions
        inputs = read_dub_inputs(request, in_dim, conventions, show_progress=shows, on_picture=on_picture)
        logger.info("%s", inputs.told())
    maker = ChunkMaker(pipe, request, inputs.size, inputs.chunks, on_preview)
    steps = maker.sampling.steps
    writes = pipe.is_first_process
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(progress(inputs.chunks, steps, show_progress and writes))
        mouths = [
            _Mouth(face, sound, inputs, maker, shown) for face, sound in zip(inputs.faces, request.sounds, strict=True)
        ]
        writer: VideoWriter | ClipWriter | None = None
        debug = None
        if writes:
            writer = stack.enter_context(_writer(inputs, request))
            if request.debug_video is not None:
                debug = DebugVideo(
                    stack.enter_context(_file_writer(Path(request.debug_video), inputs, request)), inputs
                )
        for places, pictures in _pictures(inputs):
            for mouth in mouths:
                pictures = mouth.put_into(pictures, places, writes)
            if writer is not None:
                height, width = inputs.frame_size
                times = [inputs.playback.times(place) for place in places]
                writer.write(pictures[:, :height, :width], times)
                shown.wrote(len(pictures))
                if debug is not None:
                    debug.write(pictures, places, times)
    return DubbedVideo(
        None if request.out is None else Path(request.out),
        len(inputs.playback.pictures),
        *inputs.frame_size,
        inputs.chunks,
        steps * inputs.chunks,
        time.monotonic() - started,
        writer.clip() if isinstance(writer, ClipWriter) else None,
        inputs.dubbed,
        inputs.untouched(),
    )


def _writer(inputs: DubInputs, request: DubRequest) -> contextlib.AbstractContextManager[VideoWriter | ClipWriter]:
    if request.out is not None:
        return _file_writer(Path(request.out), inputs, request)
    playback = inputs.playback  # whose tick is a frame of the clip
    return ClipWriter(playback.stop, *inputs.frame_size, 1 / playback.tick, inputs.sound)


def _file_writer(path: Path, inputs: DubInputs, request: DubRequest) -> VideoWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = inputs.footage.times
    return VideoWriter(
        path,
        *inputs.frame_size,
        frame_rate=times.frame_rate,
        sound=inputs.sound,
        crf=request.crf,
        tick=times.tick,
    )


def _pictures(inputs: DubInputs) -> Iterator[tuple[range, Tensor]]:
    """The source's pictures in the order of the finished video, some at a time: their places, uint8 [n, H, W, 3]."""
    read = picture_reader(inputs.footage.source, inputs.footage.times)
    order = inputs.playback.pictures
    for start in range(0, len(order), PICTURES_AT_ONCE):
        places = range(start, min(start + PICTURES_AT_ONCE, len(order)))
        yield places, torch.stack([read(order[place]) for place in places])


class _Crops:
    """Crops of a face out of a video."""

    def __init__(self, read: Callable[[int], Tensor], size: Size) -> None:
        self._read, self._size = read, size
        self._picture = -1
        self._crop = torch.empty(0)

    def crop(self, face: PlacedTrack, picture: int) -> Tensor:
        """Float32 [h, w, 3] in 0..255."""
        if picture != self._picture:
            pixels = self._read(picture)
            self._crop = align(pixels[None], face.transform(picture)[None], self._size)[0]
            self._picture = picture
        return self._crop


def _reference_sequence(clip: ReferenceClip | None, size: Size) -> Tensor | None:
    """The second clip, [3, F, h, w] in [-1, 1]."""
    if clip is None:
        return None
    crops = _Crops(picture_reader(clip.source, clip.times), size)
    return _to_video([crops.crop(clip.face, picture) for picture in clip.pictures])


def _to_video(crops: list[Tensor]) -> Tensor:
    """Crops [h, w, 3] in 0..255 as [3, F, h, w] in [-1, 1]."""
    return torch.stack(crops).permute(3, 0, 1, 2) / 127.5 - 1


class _Mouth:
    """One face's new mouth, made chunk by chunk as the video gets there."""

    def __init__(
        self, face: FaceInputs, sound: SoundSource, inputs: DubInputs, maker: ChunkMaker, shown: ChunkProgress
    ) -> None:
        self._plan, self._inputs, self._maker, self._shown = face.plan, inputs, maker, shown
        self._features = _features(maker.pipe, face, sound)
        self._reference = _reference_sequence(face.reference, inputs.size)
        self._crops = _Crops(picture_reader(inputs.footage.source, inputs.footage.times), inputs.size)
        self._coming = ((span, chunk) for span in self._plan.spans for chunk in span.chunks)
        self._span: Span | None = None
        self._frames = range(0)
        """The model's frames that are made, of the current chunk."""
        self._made = torch.empty(0)
        """Their crops, [n, h, w, 3] in 0..255."""
        self._source: list[Tensor] = []
        """The source's crops of the current chunk."""
        self._portrait: Image.Image | None = None
        self._carried: Tensor | None = None

    def put_into(self, pictures: Tensor, places: range, paste_it: bool) -> Tensor:
        """Pictures [n, H, W, 3] with the mouth; it is also made where it is not pasted."""
        strengths = self._plan.strengths[places.start : places.stop]
        shown = (strengths > 0).nonzero().flatten()
        if len(shown) == 0:
            return pictures
        crops, transforms = zip(*(self._at(places[place]) for place in shown.tolist()), strict=True)
        if not paste_it:
            return pictures
        result = pictures.clone()
        result[shown] = paste(
            pictures[shown], torch.stack(crops), torch.stack(transforms), self._inputs.mouth, strengths[shown]
        )
        return result

    def _at(self, place: int) -> tuple[Tensor, Tensor]:
        """The new crop at a place, [h, w, 3], and where it belongs in the picture, [2, 3]."""
        playback = self._inputs.playback
        while self._span is None or place not in self._span.places:
            self._next()
        wanted = playback.frame_at(place)
        while wanted >= self._frames.stop:
            self._next()
        return self._made[wanted - self._frames.start], self._span.face.transform(playback.pictures[place])

    def _next(self) -> None:
        self._span, chunk = next(self._coming)
        self._frames = range(chunk.frames.start + chunk.known, chunk.frames.stop)
        new = [
            self._crops.crop(self._span.face, self._span.picture(frame, self._inputs.playback))
            for frame in self._frames
        ]
        self._source = [*self._source[len(self._source) - chunk.known :], *new]
        video = _to_video(self._source)
        if not chunk.known:
            self._carried = None
            self._portrait = Image.fromarray(new[0].round().to(torch.uint8).numpy())
        frames = self._maker.make(
            chunk.index,
            self._rows(chunk),
            image=self._portrait,
            video=video,
            original=video,
            reference_sequence=self._reference,
            carried=self._carried,
            progress_bar_cmd=self._shown.chunk(),
        )
        self._carried = self._maker.carry(frames, self._inputs.overlap)
        made = frames[:, chunk.known :].clamp(-1, 1).cpu()
        self._made = (made.permute(1, 2, 3, 0) + 1) * 127.5

    def _rows(self, chunk: Chunk) -> Tensor:
        """The features beside a chunk's frames, [L, C]: each sounds while its frame is shown."""
        rows = self._features[chunk.frames.start : chunk.frames.stop]
        leading = 0 if chunk.known else self._maker.pipe.conventions.leading_audio_rows
        return torch.cat([rows.new_zeros(leading, rows.shape[1]), rows[leading:]])


def _features(pipe: OmniAvatarPipeline, face: FaceInputs, sound: SoundSource) -> Tensor:
    """The features of the speech, [row, C], silence behind it, for all frames of all chunks."""
    last = max(chunk.frames.stop for span in face.plan.spans for chunk in span.chunks)
    rows = max(last, math.ceil(len(face.waveform) / SAMPLES_PER_FRAME))
    return encode_speech(pipe, sound, face.waveform, rows)
