"""Video frames, latent frames, audio samples and feature rows, and the plan of a long video; plain integers only.

Three clocks meet here. Pictures run at 25 frames a second; the VAE makes a latent frame of the first frame alone and
then of each four (F = 4 T - 3); the speech encoder gives one feature row per video frame, which is 640 samples at
16 kHz. A video that is longer than one window is made in chunks that overlap: each chunk after the first starts from
the last frames of the chunk before, encoded again.

The rules reproduce those of OmniAvatar's inference script (https://github.com/Omni-Avatar/OmniAvatar).
"""

import math
from dataclasses import dataclass

FRAME_RATE = 25
"""Video frames, and audio feature rows, per second."""

SAMPLE_RATE = 16000
"""Audio samples per second at the speech encoder's input."""

SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
"""Audio samples beside one video frame."""

MAX_TOKENS = 30000
"""Default limit on the tokens of a chunk, frames * height * width / 1024; see `chunk_length`."""

DEFAULT_OVERLAP = 13
"""Default number of frames that a chunk repeats from the one before (four latent frames)."""

PIXELS_PER_TOKEN = 1024
"""Video pixels that count as one token: 16 x 16 in space, 4 in time."""


def latent_frames(video_frames: int) -> int:
    """Number of latent frames T of `video_frames` = 4 T - 3 video frames; ValueError for other numbers."""
    if video_frames < 1 or video_frames % 4 != 1:
        raise ValueError(f"{video_frames} video frames; the VAE takes 4n+1 of them: use clip_length() to round up")
    return (video_frames + 3) // 4


def video_frames(latent_frames: int) -> int:
    """Number of video frames 4 T - 3 that `latent_frames` = T decode to; ValueError below one."""
    if latent_frames < 1:
        raise ValueError(f"{latent_frames} latent frames; at least 1 is needed")
    return 4 * latent_frames - 3


def transformer_tokens(video_frames: int, height: int, width: int) -> int:
    """Tokens that the transformer has of a clip: 16 x 16 pixels of a latent frame each."""
    return latent_frames(video_frames) * (height // 16) * (width // 16)


def clip_length(frames: int) -> int:
    """Least 4n+1 that is not below `frames`, as DiffSynth rounds `num_frames`; ValueError below one frame."""
    if frames < 1:
        raise ValueError(f"{frames} video frames; at least 1 is needed")
    return (frames + 2) // 4 * 4 + 1


def ping_pong(place: int, count: int) -> int:
    """Which of a source's `count` frames is shown at a place: a short source plays forward, then backward, in turn.

    With four frames, places 0, 1, 2, ... show frames 0, 1, 2, 3, 2, 1, 0, 1, ...
    """
    turn = place % max(1, 2 * count - 2)
    return min(turn, 2 * count - 2 - turn)


def audio_rows(samples: int) -> int:
    """Number of feature rows, one per video frame, of `samples` samples at 16 kHz.

    The quotient is taken in doubles, as OmniAvatar does. So some whole numbers of frames, 7 * 640 samples being the
    first, get one row more than samples / 640; models were trained and are sampled with that row.
    """
    return math.ceil(samples / SAMPLE_RATE * FRAME_RATE)


def chunk_length(height: int, width: int, max_tokens: int = MAX_TOKENS) -> int:
    """Number of video frames L = 4n+1 of one chunk of `height` x `width` pixels within `max_tokens` tokens.

    A token stands for 16 x 16 pixels of four frames. ValueError if not even five frames fit, for a chunk must go on
    from at least one frame and add a latent frame to it.
    """
    fitting = int(max_tokens * PIXELS_PER_TOKEN / height / width)
    length = fitting // 4 * 4 + 1 if fitting % 4 else fitting - 3
    if length < 5:
        raise ValueError(
            f"{max_tokens} tokens hold {fitting} frames of {height}x{width}; a chunk needs at least 5: "
            "raise max_tokens or take a smaller picture"
        )
    return length


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One window of a long video. All ranges are half open; frames are counted from the start of the video."""

    index: int
    """Number of the chunk, from 0."""

    frames: range
    """Frames of the video that the chunk generates, its prefix included."""

    zero_rows: int
    """Rows of zeros that stand before all others (only in front of chunk 0)."""

    repeated_rows: range
    """Feature rows put in front because the chunk before ended with them; empty in chunk 0."""

    rows: range
    """Feature rows that the chunk takes next. With zero_rows and repeated_rows they are one per frame of the chunk."""

    prefix_frames: int
    """Frames at the start that are known: the image in chunk 0, the carried frames later."""

    carried: range | None
    """Frames **of the chunk before**, by their place in it, that are encoded again as the prefix; None in chunk 0."""

    kept: range
    """Frames of the chunk, by their place in it, that the finished video has."""

    @property
    def prefix_latents(self) -> int:
        """Latent frames at the start that are known and stay fixed."""
        return latent_frames(self.prefix_frames)

    @property
    def mask(self) -> tuple[int, ...]:
        """The mask channel by latent frame: 0 known, 1 to generate."""
        known = self.prefix_latents
        return (0,) * known + (1,) * (latent_frames(len(self.frames)) - known)

    @property
    def feature_rows(self) -> range:
        """The feature rows beside the chunk's frames, in order, behind `zero_rows` rows of zeros."""
        start = self.repeated_rows.start if self.repeated_rows else self.rows.start
        return range(start, self.rows.stop)


@dataclass(frozen=True, kw_only=True)
class ChunkPlan:
    """How a sound of any length is split into chunks; made by `plan_chunks`."""

    length: int
    """Video frames L of every chunk."""

    overlap: int
    """Frames f that a chunk after the first repeats from the one before."""

    leading_rows: int
    """Frames of the video before the first feature row: frame j hears row j - leading_rows."""

    audio_rows: int
    """Feature rows A of the sound itself."""

    padded_rows: int
    """Feature rows P that the chunks take in all: the speech encoder's output length."""

    chunks: tuple[Chunk, ...]
    """The chunks in order."""

    @property
    def latent_length(self) -> int:
        """Latent frames T of every chunk."""
        return latent_frames(self.length)

    @property
    def padded_samples(self) -> int:
        """Samples at 16 kHz to which the normalised waveform is padded with zeros."""
        return self.padded_rows * SAMPLES_PER_FRAME

    @property
    def generated_frames(self) -> int:
        """Frames of all chunks together, repeated ones counted once."""
        return self.chunks[-1].frames.stop

    @property
    def frames(self) -> int:
        """Frames of the finished video."""
        return self.audio_rows + self.leading_rows


def plan_chunks(samples: int, *, length: int, overlap: int = DEFAULT_OVERLAP, leading_rows: int = 1) -> ChunkPlan:
    """Plan the video to a sound of `samples` samples at 16 kHz in chunks of `length` frames.

    With L = length, f = overlap, A = audio_rows(samples) and z = leading_rows: chunk 0 takes rows 0 .. L-z-1 behind z
    rows of zeros, each later chunk takes the next L-f rows behind the f rows before them, and the video has A + z
    frames, of which frame j hears row j - z. OmniAvatar has z = 1: the first frame is the reference image, before the
    first sound. The rows are those of the padded sound: A raised to what whole chunks take.

    Raises ValueError if there are no samples, `length` or `overlap` is not 4n+1, `overlap` is not below `length`, or
    `leading_rows` is neither 0 nor 1.
    """
    _check_plan(samples, length, overlap, leading_rows)
    rows = audio_rows(samples)
    first, step = length - leading_rows, length - overlap
    chunk_count = 1 + max(0, math.ceil((rows - first) / step))
    frames = rows + leading_rows
    chunks = [
        Chunk(
            index=0,
            frames=range(length),
            zero_rows=leading_rows,
            repeated_rows=range(0),
            rows=range(first),
            prefix_frames=1,
            carried=None,
            kept=range(min(length, frames)),
        )
    ]
    for index in range(1, chunk_count):
        start = index * step
        taken = start + overlap - leading_rows
        chunks.append(
            Chunk(
                index=index,
                frames=range(start, start + length),
                zero_rows=0,
                repeated_rows=range(taken - overlap, taken),
                rows=range(taken, taken + step),
                prefix_frames=overlap,
                carried=range(step, length),
                kept=range(overlap, min(length, frames - start)),
            )
        )
    return ChunkPlan(
        length=length,
        overlap=overlap,
        leading_rows=leading_rows,
        audio_rows=rows,
        padded_rows=chunks[-1].rows.stop,
        chunks=tuple(chunks),
    )


def _check_plan(samples: int, length: int, overlap: int, leading_rows: int) -> None:
    if samples < 1:
        raise ValueError(f"{samples} audio samples; a video needs a sound of at least one")
    if length < 1 or length % 4 != 1:
        raise ValueError(f"length of {length} frames; a chunk has 4n+1: use chunk_length() or clip_length()")
    if overlap < 1 or overlap % 4 != 1:
        raise ValueError(f"overlap of {overlap} frames; it must be 1 + 4n, for example 1, 5, 9 or 13")
    if overlap >= length:
        raise ValueError(
            f"overlap of {overlap} frames in chunks of {length}; it must be shorter: "
            "lower the overlap, raise max_tokens or take a smaller picture"
        )
    if leading_rows not in (0, 1):
        raise ValueError(f"leading_rows is {leading_rows}; it must be 1 (OmniAvatar) or 0 (sound from the first frame)")
