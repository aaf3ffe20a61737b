"""What a clip of the list is: what the model takes of it, what is known of it, how it is read, what is wrong with it.

A sample has some parts live (frames, sound, text), for the pipeline's units to encode, and some cached (latents,
features, embeddings), depending on what the clip offers. Cuts of cached parts are exact: the VAE is causal, so the
first latent frames of a clip are those of its first video frames, and the sound is encoded once for the whole clip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..media.images import Size, match_size
from ..model.config import Conventions, size_fault
from .clip_faces import FaceMode
from .recipe import Recipe

LATENTS, REFERENCE_SEQUENCE, AUDIO, TEXT = "latents", "reference sequence", "audio", "text"
SILENCE, EMPTY_TEXT = "silence", "empty prompt"
NETWORKS = {
    LATENTS: "vae",
    REFERENCE_SEQUENCE: "vae",
    AUDIO: "speech_encoder",
    SILENCE: "speech_encoder",
    TEXT: "text_encoder",
    EMPTY_TEXT: "text_encoder",
}
"""Part of a sample -> the network of the pipeline that makes it; each part is live, for its network, or cached."""


class BadSampleError(ValueError):
    """A clip cannot be used.

    Attributes:
        clip: its name in the list of clips.
        reasons: all that is wrong with it.
    """

    def __init__(self, clip: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(clip, reasons)
        self.clip = clip
        self.reasons = tuple(reasons)

    def __str__(self) -> str:
        # A loader makes a worker's error again from its message alone, which then stands for the clip.
        return f"{self.clip}: {'; '.join(self.reasons)}" if self.reasons else self.clip


def reason_of(error: Exception) -> str:
    """What is wrong with a clip whose reading raised `error`.

    Damaged files break the libraries that read them anywhere (KeyError, RecursionError, MemoryError, ...), so any error
    is a fault of the clip. Those that nobody worded for users come with their kind.
    """
    is_worded = isinstance(error, (ValueError, OSError)) and str(error)
    return str(error) if is_worded else f"{type(error).__name__}: {error}"


class Faults:
    """Collects reasons against a clip; leaving the context raises them."""

    def __init__(self, clip: str) -> None:
        self.clip = clip
        self.reasons: list[str] = []

    def add(self, reason: str) -> None:
        self.reasons.append(reason)

    def collect(self, read: Callable[[], Any]) -> Any:
        """What `read` returns, or None if it fails."""
        try:
            return read()
        except Exception as error:
            self.add(reason_of(error))
            return None

    def stop(self) -> NoReturn:
        raise BadSampleError(self.clip, self.reasons)

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None and self.reasons:
            self.stop()


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """What the model takes of a clip.

    Raises:
        ValueError: a value does not fit; the message lists every fault.
    """

    in_dim: int = 33
    """Input channels of the denoiser: 33 I2V, 49 V2V, 65 V2V with a reference sequence."""
    conventions: Conventions = field(default_factory=Conventions)
    """`first_frame` and `image_sizes` are used."""
    height: int | None = None
    """Height of all samples, with `width`; None for the one of the conventions' sizes that is nearest in shape."""
    width: int | None = None
    mouth_mask: Path | None = None
    """V2V: image of the mask for clips that name none; None for the built-in one."""
    faces: FaceMode = "any"
    """V2V: what `check` and `precompute` do with the face of a clip; training takes clips as they are."""
    sound: bool = False
    """Samples bring the sound itself too, for the lip-sync loss, where its features are cached."""
    portraits: bool = False
    """Clips may be portraits without a video: of the target only the first frame is used."""
    audio_dim: int | None = None
    """Width of the model's audio features; cached ones of another width are refused."""
    text_dim: int | None = None
    """Width of the model's text embeddings; cached ones of another width are refused."""

    def __post_init__(self) -> None:
        faults = []
        if self.in_dim not in (33, 49, 65):
            faults.append(f"in_dim is {self.in_dim}, wanted 33, 49 or 65")
        if (self.height is None) != (self.width is None):
            faults.append(f"height is {self.height} and width {self.width}; give both or neither")
        sizes = self.conventions.image_sizes if self.size is None else (self.size,)
        faults += [f"a size of {fault}" for fault in (size_fault(*size) for size in sizes) if fault is not None]
        if self.faces != "any" and not self.masked_video:
            faults.append(f"faces is {self.faces!r}, which needs a V2V model, and in_dim is {self.in_dim}")
        if self.mouth_mask is not None and not self.mouth_mask.is_file():
            faults.append(f"mouth_mask {self.mouth_mask} is missing")
        if faults:
            raise ValueError(f"{'; '.join(faults)}.")

    @property
    def size(self) -> Size | None:
        """The fixed height and width, if there is one."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    @property
    def masked_video(self) -> bool:
        """Whether the model is V2V."""
        return self.in_dim >= 49

    @property
    def parts(self) -> frozenset[str]:
        """The part of a clip that a sample takes."""
        return frozenset([LATENTS, AUDIO, TEXT] + [REFERENCE_SEQUENCE] * (self.in_dim == 65))

    def size_for(self, height: int, width: int) -> Size:
        """Height and width of the samples from a clip of this size; of faces that are cut out, the squarest one."""
        if self.faces == "aligned":
            return self.size or match_size(1, 1, self.conventions.image_sizes)
        return self.size or match_size(height, width, self.conventions.image_sizes)


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What is known of a usable clip before it is loaded."""

    height: int
    """Of its samples."""
    width: int
    frames: int
    """Video frames of the whole clip at 25 per second."""
    longest: int
    """Most frames of a sample."""
    live: frozenset[str]
    """The parts that networks have to encode."""
    group: tuple[Any, ...]
    """What else the clips of one batch must have in common."""
    is_still: bool = False
    """It has no video but a portrait, of which a model may know the first frame and no more."""

    @property
    def bucket(self) -> tuple[Any, ...]:
        """Clips of equal buckets can be one batch."""
        return (self.height, self.width, tuple(sorted(self.live)), self.group, self.is_still)


@dataclass(frozen=True)
class Footage:
    """The file that a clip's pictures come from."""

    path: Path
    size: int | None
    """Bytes; None for a file that is not there."""
    sha256: str | None = None
    """None where it would have to be read for it."""

    @classmethod
    def of(cls, path: Path) -> Footage:
        """Of a file that may not be there."""
        return cls(path, path.stat().st_size if path.is_file() else None)


class ClipSource(ABC):
    """A clip of the list: where its parts lie, and how they are read."""

    name: str

    def footage(self) -> Footage:
        """Where its pictures come from."""
        return Footage(Path(self.name), None)

    @abstractmethod
    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        """Look at the clip.

        Args:
            settings, recipe: of the samples.
            deep: decode and read everything instead of headers alone.

        Raises:
            BadSampleError: with all reasons why it cannot be used.
        """

    @abstractmethod
    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        """The clip's part of the fields of a `TrainingSample`, without the batch dimension.

        Args:
            facts: from `inspect`.
            settings: of the samples.
            num_frames: length of the sample.
            reference: 0 <= r < 1, which frame becomes the reference.

        Raises:
            ValueError, OSError: the clip cannot be read.
        """


@dataclass(frozen=True, kw_only=True)
class UnreadableClip(ClipSource):
    """A clip of which it is known already that it cannot be used."""

    name: str
    reason: str

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        raise BadSampleError(self.name, [self.reason])

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        raise BadSampleError(self.name, [self.reason])
