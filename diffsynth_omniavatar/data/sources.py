"""Where clips come from: video files, prepared directories, or a cache that `precompute` wrote.

    clips = read_clips("metadata.csv", "data")

A sample has some parts live (frames, sound, text), for the pipeline's units to encode, and some cached (latents,
features, embeddings), depending on what the clip offers. Cuts of cached parts are exact: the VAE is causal, so the
first latent frames of a clip are those of its first video frames, and the sound is encoded once for the whole clip.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import random
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..media.images import Size, fit_image, image_to_tensor, load_image, match_size, to_bytes
from ..media.sound import load_sound, speech_waveform
from ..media.timeline import MAX_TOKENS, SAMPLES_PER_FRAME, chunk_length, latent_frames, video_frames
from ..media.video import iter_frames, probe_video, read_frames
from ..model.config import LATENT_CHANNELS, Conventions

SIZE_STEP = 16
"""Height and width of samples are multiples of it: 8 by the VAE, 2 by the denoiser's patches."""

MISSING_SOUND = 5
"""A sound may end this many video frames before the picture: encoders cut the two streams at different places."""

CACHE_FORMAT = 2
CACHE_INDEX = "index.json"

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


class StaleCacheError(ValueError):
    """A cache does not belong to the clips or the settings of this run; the message says what differs."""


# ------------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The random choices in training, and the limits on the length of a sample.

    Source of the defaults: the authors' answers in the tracker of https://github.com/Omni-Avatar/OmniAvatar.

    Raises:
        ValueError: a value is out of its range.
    """

    prefix_frames: tuple[int, ...] = (1, 5, 9, 13)
    """Numbers of known frames at the start, drawn with equal chance among those shorter than the sample; empty for
    none."""
    text_drop_prob: float = 0.1
    """Part of the clips that get the empty prompt."""
    audio_drop_prob: float = 0.1
    """Part of the clips that get the features of silence."""
    prefix_drop_prob: float = 0.1
    """Part of the clips whose known latents are replaced by noise."""
    max_tokens: int = MAX_TOKENS
    """Most tokens of a sample: frames * height * width / 1024."""
    num_frames: int | None = None
    """Most video frames of a sample, 4n+1; None for no limit but max_tokens."""
    min_frames: int | None = None
    """Fewest video frames of a sample, 4n+1; None for one latent frame more than the longest prefix."""
    dynamic_length: bool = True
    """Draw the length of every sample; else each is as long as its clip and the limits allow."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_frames", tuple(self.prefix_frames))
        faults = [
            f"{name} is {getattr(self, name)}, wanted 0 to 1"
            for name in ("text_drop_prob", "audio_drop_prob", "prefix_drop_prob")
            if not 0 <= getattr(self, name) <= 1
        ]
        lengths = {
            "prefix_frames": self.prefix_frames,
            "num_frames": (self.num_frames,),
            "min_frames": (self.min_frames,),
        }
        for name, values in lengths.items():
            wrong = [value for value in values if value is not None and (value < 1 or value % 4 != 1)]
            faults += [f"{name} has {value}, wanted 4n+1 such as 1, 5, 9, 13" for value in wrong]
        if self.shortest < 5:
            faults.append(f"min_frames is {self.min_frames}, wanted 5 or more")
        if self.num_frames is not None and self.num_frames < self.shortest:
            faults.append(
                f"num_frames {self.num_frames} is below the shortest sample, {self.shortest}; lower min_frames"
            )
        if faults:
            raise ValueError(f"Recipe: {'; '.join(faults)}.")

    @property
    def shortest(self) -> int:
        """Fewest video frames of a sample."""
        return self.min_frames or max(self.prefix_frames, default=1) + 4

    def longest(self, frames: int, height: int, width: int) -> int:
        """Most frames, 4n+1, of a sample from a clip of `frames` frames.

        Raises:
            ValueError: that is less than `shortest`.
        """
        allowed = min(self.num_frames or frames, chunk_length(height, width, self.max_tokens))
        longest = (min(frames, allowed) - 1) // 4 * 4 + 1
        if longest < self.shortest:
            raise ValueError(
                f"too short: {frames} frames at 25 per second, of which {allowed} may be used at {height}x{width}; "
                f"wanted {self.shortest}: lower min_frames, or the longest of prefix_frames"
            )
        return longest

    def draw_length(self, longest: int) -> int:
        """A length between `shortest` and `longest`, each 4n+1 with equal chance."""
        lengths = range(self.shortest, longest + 1, 4)
        drawn = lengths[draw_below(len(lengths))]
        return drawn if self.dynamic_length else longest

    def draw_prefix(self, num_frames: int) -> int:
        """A prefix for a sample of `num_frames` frames; 0 if there is none to choose."""
        prefixes = [frames for frames in self.prefix_frames if frames < num_frames]
        return prefixes[draw_below(len(prefixes))] if prefixes else 0


def draw_below(count: int) -> int:
    """A whole number below `count` from exactly one draw of the global generator, so that other draws stay in place."""
    return int(random.random() * count)


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
    sound: bool = False
    """Samples bring the sound itself too, for the lip-sync loss, where its features are cached."""
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
        off_grid = [size for size in sizes if size[0] % SIZE_STEP or size[1] % SIZE_STEP]
        faults += [f"a size of {height}x{width}; wanted multiples of {SIZE_STEP}" for height, width in off_grid]
        if self.mouth_mask is not None and not self.mouth_mask.is_file():
            faults.append(f"mouth_mask {self.mouth_mask} is missing")
        if faults:
            raise ValueError(f"ClipSettings: {'; '.join(faults)}.")

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
        """What of a clip a sample has."""
        return frozenset([LATENTS, AUDIO, TEXT] + [REFERENCE_SEQUENCE] * (self.in_dim == 65))

    def size_for(self, height: int, width: int) -> Size:
        """Height and width of the samples from a clip of this size."""
        return self.size or match_size(height, width, self.conventions.image_sizes)


# ---------------------------------------------------------------------------------------------------------------- clips


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

    @property
    def bucket(self) -> tuple[Any, ...]:
        """Clips of equal buckets can be one batch."""
        return (self.height, self.width, tuple(sorted(self.live)), self.group)


class ClipSource(ABC):
    """A clip of the list: where its parts lie, and how they are read."""

    name: str

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
class VideoClip(ClipSource):
    """A video file and what goes with it; all parts are live."""

    name: str
    video: Path
    prompt: str
    audio: Path | None = None
    """None for the video's own sound track."""
    reference: Path | None = None
    """The identity image; None for a random frame of the video."""
    mask: Path | None = None
    """None for the mask of the settings."""

    def files(self) -> dict[str, Path]:
        """The files that make the clip, by what they are."""
        named = {"video": self.video, "audio": self.audio, "reference": self.reference, "mask": self.mask}
        return {part: path for part, path in named.items() if path is not None}

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        parts, longest = settings.parts, 0
        with _Faults(self.name) as faults:
            frames, size = self.inspect_parts(settings, parts, deep, faults)
            if size is not None:
                longest = faults.collect(lambda: recipe.longest(target_frames(frames, parts), *size)) or 0
            if deep:
                self.inspect_sound(parts, longest, faults)
            if size is None:
                faults.stop()
        return ClipFacts(
            height=size[0], width=size[1], frames=frames, longest=longest, live=parts, group=(self.used_mask(settings),)
        )

    def inspect_parts(
        self, settings: ClipSettings, parts: Collection[str], deep: bool, faults: _Faults
    ) -> tuple[int, Size | None]:
        """Collect the faults in what the given parts are made of, but for the content of the sound.

        Returns:
            Frames of the video, and height and width of samples; 0 and None if no part needs the video or it is bad.
        """
        uses = {"video": {LATENTS, REFERENCE_SEQUENCE}, "audio": {AUDIO}, "reference": {LATENTS}, "mask": {LATENTS}}
        if self.audio is None:
            uses["video"].add(AUDIO)
        used = {name: path for name, path in self.files().items() if not uses[name].isdisjoint(parts)}
        missing = [name for name, path in used.items() if not path.is_file()]
        for name in missing:
            faults.add(f"{name} {used[name]} is missing")
        if TEXT in parts and not self.prompt.strip():
            faults.add("the prompt is empty")
        for image in [path for name, path in used.items() if name in ("reference", "mask") and name not in missing]:
            faults.collect(functools.partial(load_image, image))
        if "video" not in used or "video" in missing:
            return 0, None
        info = faults.collect(lambda: probe_video(self.video))
        if info is None:
            return 0, None
        if AUDIO in parts and self.audio is None and not info.has_sound:
            faults.add(f"{self.video} has no sound track, and no audio file is given")
        size = settings.size_for(info.height, info.width)
        if deep:
            faults.collect(lambda: sum(1 for _ in iter_frames(self.video, size=size)))
        return info.frames, size

    def inspect_sound(self, parts: Collection[str], needed: int, faults: _Faults) -> None:
        """Collect the faults in the sound itself, for samples of up to `needed` frames, unless its file has some."""
        source = str(self.audio or self.video)
        if AUDIO in parts and not any(source in reason for reason in faults.reasons):
            faults.collect(lambda: self.waveform(None, needed))

    def used_mask(self, settings: ClipSettings) -> Path | None:
        """The image of the mouth mask; None for the built-in one, and for models that take none."""
        return self.mask or settings.mouth_mask if settings.masked_video else None

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        return self.load_parts(facts, settings, facts.live, num_frames, reference)

    def load_parts(
        self, facts: ClipFacts, settings: ClipSettings, parts: Collection[str], num_frames: int, reference: float
    ) -> dict[str, Any]:
        """`load` for some of the parts."""
        size, loaded = (facts.height, facts.width), dict[str, Any]()
        if LATENTS in parts:
            target = read_frames(self.video, 0, num_frames, size)
            loaded["target_video"] = target
            loaded["reference_image"] = self.reference_image(target, int(reference * facts.frames), size)
            loaded["mouth_mask"] = self.used_mask(settings)
        if REFERENCE_SEQUENCE in parts:
            loaded["reference_video"] = read_frames(self.video, reference_start(facts), num_frames, size)
        if AUDIO in parts:
            loaded["waveforms"] = self.waveform(facts.frames if LATENTS in parts else None, facts.longest)
        if TEXT in parts:
            loaded["prompts"] = self.prompt
        return loaded

    def reference_image(self, target: Tensor, frame: int, size: Size) -> Tensor:
        """The identity image uint8 [H, W, 3]: the given one, or a frame of the video, whose start is `target`."""
        if self.reference is not None:
            return to_bytes(fit_image(image_to_tensor(load_image(self.reference)), size)).permute(1, 2, 0).contiguous()
        if frame < len(target):
            return target[frame].clone()
        return read_frames(self.video, frame, 1, size)[0]

    def waveform(self, frames: int | None, needed: int) -> Tensor:
        """The sound [n] up to the end of the video's `frames` frames, or all of it.

        Raises:
            ValueError: it is unreadable, silent, or ends well before frame `needed`.
        """
        source = self.audio or self.video
        waveform = speech_waveform(load_sound(source))
        rows = -(-len(waveform) // SAMPLES_PER_FRAME)
        if rows + MISSING_SOUND < needed:
            raise ValueError(
                f"{source}: the sound lasts {rows} video frames, a sample up to {needed}; cut the video to the sound"
            )
        return waveform if frames is None else waveform[: frames * SAMPLES_PER_FRAME]


def target_frames(frames: int, parts: Collection[str]) -> int:
    """How many of a clip's frames samples may have: half of them where the others serve as the reference sequence."""
    return frames // 2 if REFERENCE_SEQUENCE in parts else frames


def reference_start(facts: ClipFacts) -> int:
    """Where the reference sequence starts in the video: so far from the end that the longest sample's one fits."""
    return facts.frames - facts.longest


class _Faults:
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
        except (ValueError, OSError) as error:
            self.add(str(error))
            return None

    def stop(self) -> NoReturn:
        raise BadSampleError(self.clip, self.reasons)

    def __enter__(self) -> _Faults:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None and self.reasons:
            self.stop()


# ------------------------------------------------------------------------------------------------- prepared directories


@dataclass(frozen=True, kw_only=True)
class PreparedClip(ClipSource):
    """A directory with `sub_clip.mp4`, `audio.wav`, `prompt.txt` and tensors made of them, which are used as they are.

    The reference is frame 0 of the clip: the first latent frame equals that frame's own encoding bit for bit, and the
    directory has no other frame's.
    """

    name: str
    folder: Path
    prompt: str | None = None
    """None for what `prompt.txt` says."""
    empty_text: Path | None = None
    """The `neg_text_emb.pt` of the data."""

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        with _Faults(self.name) as faults:
            if not self.folder.is_dir():
                faults.add(f"{self.folder} is no directory")
                faults.stop()
            cached, clip, longest = self.tensors(settings, faults), self.live_clip(), 0
            live = settings.parts - set(cached)
            frames, size = clip.inspect_parts(settings, live, deep, faults)
            if LATENTS in cached:
                size = self._latent_size(cached[LATENTS][0], settings, faults)
                frames = frames if REFERENCE_SEQUENCE in live else video_frames(cached[LATENTS][0].shape[1])
            if size is not None and not faults.reasons:
                limit = self._limit(frames, cached, live)
                longest = faults.collect(lambda: recipe.longest(limit, *size)) or 0
            if deep:
                self._inspect_values(cached, faults)
                clip.inspect_sound({AUDIO} if settings.sound else live, longest, faults)
            if settings.sound and AUDIO in cached and not (self.folder / "audio.wav").is_file():
                faults.add("the lip-sync loss needs audio.wav")
            if size is None:
                faults.stop()
        shapes = [tuple(tensor.shape[1:]) for part in (AUDIO, TEXT) for tensor in cached.get(part, ())]
        group = (clip.used_mask(settings), *shapes)
        if AUDIO in cached and recipe.audio_drop_prob:
            live |= {SILENCE}
        if TEXT in cached and recipe.text_drop_prob and self.empty_text is None:
            live |= {EMPTY_TEXT}
        return ClipFacts(height=size[0], width=size[1], frames=frames, longest=longest, live=live, group=group)

    def _latent_size(self, latents: Tensor, settings: ClipSettings, faults: _Faults) -> Size:
        """Height and width in pixels of latents [16, T, h, w]."""
        size = 8 * latents.shape[2], 8 * latents.shape[3]
        if settings.size not in (None, size):
            faults.add(f"latents of {size[0]}x{size[1]} pixels, wanted {settings.height}x{settings.width}")
        elif size[0] % SIZE_STEP or size[1] % SIZE_STEP:
            faults.add(f"latents of {size[0]}x{size[1]} pixels, wanted multiples of {SIZE_STEP}")
        return size

    def _limit(self, frames: int, cached: Mapping[str, Sequence[Tensor]], live: Collection[str]) -> int:
        """Frames that samples may have: as far as every tensor goes."""
        limits = [target_frames(frames, live)]
        if LATENTS in cached:
            limits.append(video_frames(cached[LATENTS][0].shape[1]))
        if AUDIO in cached:
            limits.append(len(cached[AUDIO][0]))
        if REFERENCE_SEQUENCE in cached:
            limits.append(video_frames(cached[REFERENCE_SEQUENCE][0].shape[1]))
            start = self._reference_start()
            limits += [] if start is None else [start]
        return min(limits)

    def _reference_start(self) -> int | None:
        """The frame at which the prepared reference sequence starts, if its file says so; samples end before."""
        metadata = _load_pt(self.folder / "ref_latents.pt").get("metadata")
        start = metadata.get("ref_start") if isinstance(metadata, dict) else None
        return start if isinstance(start, int) else None

    def _inspect_values(self, cached: Mapping[str, Sequence[Tensor]], faults: _Faults) -> None:
        for part, tensors in cached.items():
            if not all(tensor.isfinite().all() for tensor in tensors):
                faults.add(f"the {part} has NaN or infinite values")

    def live_clip(self) -> VideoClip:
        """What the parts without tensors are made of."""
        audio, text = self.folder / "audio.wav", self.folder / "prompt.txt"
        prompt = self.prompt
        if prompt is None:
            prompt = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
        video = self.folder / "sub_clip.mp4"
        return VideoClip(name=self.name, video=video, prompt=prompt, audio=audio if audio.is_file() else None)

    def tensors(self, settings: ClipSettings, faults: _Faults) -> dict[str, tuple[Tensor, ...]]:
        """The parts that are prepared, mapped from their files; the faults of unreadable ones are collected.

        Latents: input [16, T, h, w] and, for V2V, masked. Audio: [rows, C]. Text: [1, L, D], and that of the empty
        prompt if it is there. Reference sequence: [16, T, h, w].
        """
        readers: dict[str, Callable[[ClipSettings], tuple[Tensor, ...] | None]] = {
            LATENTS: self._read_latents,
            AUDIO: self._read_audio,
            TEXT: self._read_text,
            REFERENCE_SEQUENCE: self._read_reference_sequence,
        }
        read = {part: faults.collect(functools.partial(readers[part], settings)) for part in sorted(settings.parts)}
        return {part: tensors for part, tensors in read.items() if tensors is not None}

    def _read_latents(self, settings: ClipSettings) -> tuple[Tensor, ...] | None:
        known, masked = self.folder / "vae_latents.pt", self.folder / "vae_latents_mask_all.pt"
        wanted, other = (masked, known) if settings.conventions.first_frame == "masked" else (known, masked)
        if not settings.masked_video and not wanted.is_file():
            wanted = other  # the input latents of both are the same
        if not wanted.is_file():
            if other.is_file():
                raise ValueError(
                    f"{other} is there, but first_frame is {settings.conventions.first_frame!r}, which needs "
                    f"{wanted.name}: change --first_frame, or make that file"
                )
            return None
        names = ["input_latents", "masked_latents"] if settings.masked_video else ["input_latents"]
        tensors = tuple(_latents_of(wanted, name) for name in names)
        if tensors[0].shape != tensors[-1].shape:
            raise ValueError(
                f"{wanted}: masked_latents are {list(tensors[1].shape)}, input_latents {list(tensors[0].shape)}"
            )
        return tensors

    def _read_reference_sequence(self, settings: ClipSettings) -> tuple[Tensor, ...] | None:
        path = self.folder / "ref_latents.pt"
        if not path.is_file():
            return None
        sequence = _latents_of(path, "ref_sequence_latents")
        latents = self._read_latents(settings)
        if latents is not None and sequence.shape[2:] != latents[0].shape[2:]:
            raise ValueError(f"{path}: {list(sequence.shape)} does not fit latents of {list(latents[0].shape)}")
        return (sequence,)

    def _read_audio(self, settings: ClipSettings) -> tuple[Tensor, ...] | None:
        path = self.folder / "audio_emb_omniavatar.pt"
        if not path.is_file():
            return None
        features = _load_pt(path).get("audio_emb")
        return (_checked(path, "audio_emb", features, ("rows", settings.audio_dim)),)

    def _read_text(self, settings: ClipSettings) -> tuple[Tensor, ...] | None:
        path = self.folder / "text_emb.pt"
        if not path.is_file():
            return None
        files = [path] if self.empty_text is None else [path, self.empty_text]
        return tuple(_text_of(file, settings.text_dim) for file in files)

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        with _Faults(self.name) as faults:
            cached = self.tensors(settings, faults)
        count = latent_frames(num_frames)
        loaded = self.live_clip().load_parts(facts, settings, facts.live, num_frames, reference)
        if LATENTS in cached:
            loaded["input_latents"] = cached[LATENTS][0][:, :count].clone()
            loaded["reference_latents"] = cached[LATENTS][0][:, :1].clone()
        if LATENTS in cached and settings.masked_video:
            loaded["masked_latents"] = cached[LATENTS][1][:, :count].clone()
            loaded["mouth_mask"] = settings.mouth_mask
        if REFERENCE_SEQUENCE in cached:
            loaded["reference_sequence_latents"] = cached[REFERENCE_SEQUENCE][0][:, :count].clone()
        if AUDIO in cached:
            loaded["audio_features"] = cached[AUDIO][0][:num_frames].clone()
        if AUDIO in cached and settings.sound:
            loaded["waveforms"] = self.live_clip().waveform(None, facts.longest)
        if TEXT in cached:
            loaded["context"] = cached[TEXT][0][0].clone()
            loaded["empty_context"] = cached[TEXT][1].clone() if len(cached[TEXT]) > 1 else None
        return loaded


def _load_pt(path: Path) -> dict[str, Any]:
    """The dict in a .pt file, its tensors mapped from the file; a lone tensor comes under the name "tensor"."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no readable file of tensors, and nothing of it was executed: {error}") from error
    if isinstance(content, Tensor):
        return {"tensor": content}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, wanted a dict of tensors")
    return content


def _checked(path: Path, name: str, tensor: Any, shape: Sequence[int | str | None]) -> Tensor:
    """`tensor` if it is one of the given shape, in which only whole numbers count."""
    got = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
    fits = isinstance(got, list) and len(got) == len(shape)
    if not fits or any(isinstance(want, int) and want != have for want, have in zip(shape, got, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{path}: {name} is {got}, wanted [{wanted}]")
    return tensor


def _latents_of(path: Path, name: str) -> Tensor:
    return _checked(path, name, _load_pt(path).get(name), (LATENT_CHANNELS, "T", "h", "w"))


def _text_of(path: Path, text_dim: int | None) -> Tensor:
    """The text embedding [1, L, D] of a file that holds it as [1, L, D], [L, D], or first in a dict."""
    tensor = next((value for value in _load_pt(path).values() if isinstance(value, Tensor)), None)
    if tensor is not None and tensor.dim() == 2:
        tensor = tensor[None]
    return _checked(path, "the text embedding", tensor, (1, "tokens", text_dim))


# ---------------------------------------------------------------------------------------------------------------- cache


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def mask_key(mask: Path | None) -> str:
    """What identifies a mouth mask: "built-in", or the hash of its image."""
    return "built-in" if mask is None else file_sha256(mask)


class Cache:
    """A folder that `precompute` wrote.

        index.json              settings, clips in their order, prompts
        clips/KEY.safetensors   what a clip was encoded to; see `CachedClip`
        PROCESS/N.pth           the same, where DiffSynth's own loop wrote it
        text/KEY.safetensors    context [l, D] of a prompt, without the padding up to L
        silence.safetensors     "F": features [F, C] of silence, for every number F of frames that a sample can have

    Raises:
        StaleCacheError: there is no index, it is not finished, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        if index is None or not index["complete"]:
            raise StaleCacheError(
                f"{self.folder} is no complete cache: run `omniavatar precompute` with the same arguments, it goes on"
            )
        self.settings: dict[str, Any] = index["settings"]
        self.texts: dict[str, list[int]] = index["texts"]
        self.clips = [CachedClip(cache=self, name=entry["name"], entry=entry) for entry in index["clips"]]

    def check(self, settings: ClipSettings) -> None:
        """Compare with what a run needs.

        Raises:
            StaleCacheError: something is missing or was made otherwise.
        """
        wanted: dict[str, Any] = {"audio_dim": settings.audio_dim, "text_dim": settings.text_dim}
        wanted["size"] = None if settings.size is None else list(settings.size)
        if settings.masked_video:
            wanted["first_frame"] = settings.conventions.first_frame
            wanted["mouth_mask"] = mask_key(settings.mouth_mask)
        faults = [
            f"{name} is {self.settings[name]!r}, this run has {value!r}"
            for name, value in wanted.items()
            if value is not None and self.settings[name] != value
        ]
        if settings.in_dim > self.settings["in_dim"]:
            faults.append(f"it is for {self.settings['in_dim']} channels, the model takes {settings.in_dim}")
        if faults:
            raise StaleCacheError(
                f"{self.folder}: {'; '.join(faults)}. Make a cache with `omniavatar precompute` and these settings."
            )

    def context(self, text: str) -> Tensor:
        """The embedding [L, D] of a prompt by its key, padded with zeros as the text encoder's output is."""
        rows = _read_safetensor(self.folder / "text" / f"{text}.safetensors", "context")
        return torch.nn.functional.pad(rows, (0, 0, 0, self.texts[text][0] - len(rows)))


def read_index(folder: Path) -> dict[str, Any] | None:
    """The content of a cache's index.json; None if there is none.

    Raises:
        StaleCacheError: it is damaged or of another format.
    """
    path = folder / CACHE_INDEX
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StaleCacheError(f"{path} is not valid JSON: {error}; remove the folder and make it again") from error
    found = index.get("format") if isinstance(index, dict) else None
    if found != CACHE_FORMAT:
        raise StaleCacheError(f"{path} has format {found}, this version reads {CACHE_FORMAT}; make the cache again")
    return index


def text_key(prompt: str) -> str:
    """The name of a prompt's embedding in a cache."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


@contextmanager
def _open_tensors(path: Path) -> Iterator[Callable[[str], Any]]:
    """Gives a function from a tensor's name to what slices it out of the file, .safetensors or .pth."""
    if path.suffix == ".pth":
        yield _load_pt(path)["tensors"].__getitem__
        return
    try:
        with safe_open(path, framework="pt") as content:
            yield content.get_slice
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} cannot be read: {error}; remove it and run `omniavatar precompute` again") from error


def _read_safetensor(path: Path, name: str) -> Tensor:
    with _open_tensors(path) as tensors:
        return tensors(name)[:]


@dataclass(frozen=True, kw_only=True)
class CachedClip(ClipSource):
    """A clip of a cache; all parts are cached. R references of its whole length, T latent and F video frames in all.

    input_latents [16, T, h, w]     reference_latents [R, 16, 1, h, w]      audio_features [F, C]     waveform [n]
    masked_latents [16, T, h, w]    mouth_mask_latents [1, 1, 1, h, w]      reference_sequence_latents [16, T, h, w]
    """

    cache: Cache = field(repr=False)
    name: str
    entry: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The clip's tensors."""
        return self.cache.folder / self.entry.get("file", f"clips/{self.entry['key']}.safetensors")

    def check_sources(self) -> None:
        """See whether the files that the entry was made of are still the same, as far as they are there.

        Raises:
            StaleCacheError: one has changed.
        """
        for source in self.entry["sources"]:
            path = Path(source["path"])
            if not path.is_file():
                continue  # a cache serves without them
            status = path.stat()
            untouched = (status.st_size, status.st_mtime_ns) == (source["size"], source["mtime_ns"])
            if not untouched and (status.st_size != source["size"] or file_sha256(path) != source["sha256"]):
                raise StaleCacheError(f"{path} has changed since it was encoded: run `omniavatar precompute` again")

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        self.check_sources()
        entry, longest = self.entry, 0
        size = entry["height"], entry["width"]
        with _Faults(self.name) as faults:
            if not self.path.is_file():
                faults.add(f"{self.path} is missing")
            longest = faults.collect(lambda: recipe.longest(entry["num_frames"], *size)) or 0
            if deep and not faults.reasons:
                loaded = faults.collect(lambda: self._read(settings, longest, 0.0)) or {}
                bad = [name for name, tensor in loaded.items() if not tensor.isfinite().all()]
                if bad:
                    faults.add(f"{self.path} has NaN or infinite values in {', '.join(bad)}")
        group = (entry["mask"] if settings.masked_video else None,)
        return ClipFacts(
            height=size[0], width=size[1], frames=entry["frames"], longest=longest, live=frozenset(), group=group
        )

    def _read(self, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Tensor]:
        """The clip's own tensors, cut to the sample."""
        count = latent_frames(num_frames)
        names = ["input_latents"] + ["masked_latents"] * settings.masked_video
        names += ["reference_sequence_latents"] * (REFERENCE_SEQUENCE in settings.parts)
        with _open_tensors(self.path) as tensors:
            loaded = {name: tensors(name)[:, :count] for name in names}
            loaded["reference_latents"] = tensors("reference_latents")[int(reference * self.entry["references"])]
            loaded["audio_features"] = tensors("audio_features")[:num_frames]
            if settings.sound:
                loaded["waveforms"] = tensors("waveform")[:]
            if settings.masked_video:
                loaded["mouth_mask_latents"] = tensors("mouth_mask_latents")[:].expand(-1, -1, count, -1, -1)
        return {name: tensor.clone() for name, tensor in loaded.items()}

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        loaded = self._read(settings, num_frames, reference)
        return {
            **loaded,
            "silent_features": _read_safetensor(self.cache.folder / "silence.safetensors", str(num_frames)),
            "context": self.cache.context(self.entry["text"]),
            "empty_context": self.cache.context(text_key(""))[None],
        }


# ---------------------------------------------------------------------------------------------------- the list of clips


def read_clips(path: str | Path, base_path: str | Path | None = None) -> list[ClipSource]:
    """The clips that a file or folder names, in its order.

    Args:
        path: one of
            a cache, the folder that `precompute` wrote;
            a table .csv, .json (a list of objects) or .jsonl with `video` and `prompt`, and optionally `audio`,
            `reference` (identity image) and `mask`; where `video` is a directory, it is a prepared one and needs no
            `prompt`;
            any other file: a list of prepared directories, one a line.
        base_path: folder that the paths start from; None or "" for the folder of the file.

    Raises:
        ValueError: the file is missing, unreadable or names no clip.
        StaleCacheError: the cache is not usable.
    """
    path = Path(path)
    if path.is_dir():
        return list(Cache(path).clips)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a table of clips, a list of directories or a cache")
    base = Path(base_path) if base_path else path.parent
    is_table = path.suffix.lower() in _TABLE_READERS
    rows = _read_table(path) if is_table else [{"video": line} for line in _lines(path)]
    if not rows:
        raise ValueError(f"{path} names no clip")
    empty_text = functools.lru_cache(maxsize=None)(lambda folder: _find_empty_text(base, folder))
    return [_clip_of(row, base, not is_table, empty_text) for row in rows]


def _clip_of(
    row: Mapping[str, Any], base: Path, is_directory: bool, empty_text: Callable[[Path], Path | None]
) -> ClipSource:
    name = str(row["video"])
    video = base / name
    if is_directory or video.is_dir():
        prompt = row.get("prompt") or None
        return PreparedClip(name=name, folder=video, prompt=prompt, empty_text=empty_text(video.parent))
    other = {part: base / row[part] if row.get(part) else None for part in ("audio", "reference", "mask")}
    return VideoClip(name=name, video=video, prompt=row.get("prompt") or "", **other)


def _find_empty_text(base: Path, folder: Path) -> Path | None:
    """`neg_text_emb.pt` in the root of prepared directories: the base folder, or the one they are in."""
    found = (root / "neg_text_emb.pt" for root in (base, folder) if (root / "neg_text_emb.pt").is_file())
    return next(found, None)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _read_csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8-sig", newline="") as content:
        return list(csv.DictReader(content))


_TABLE_READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _read_csv,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8-sig")),
    ".jsonl": lambda path: [json.loads(line) for line in _lines(path)],
}


def _read_table(path: Path) -> list[dict[str, Any]]:
    try:
        rows = _TABLE_READERS[path.suffix.lower()](path)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.get("video") for row in rows):
        raise ValueError(f"{path}: every row needs a `video`; wanted the columns video, prompt, audio, reference, mask")
    return rows
