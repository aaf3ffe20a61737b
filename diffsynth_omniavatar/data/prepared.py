"""Clips that are directories of prepared tensors, and their .pt files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..media.images import Size
from ..media.timeline import latent_frames, video_frames
from ..model.config import LATENT_CHANNELS, size_fault
from ..system.tensor_files import read_pickle
from ..system.text_files import read_text
from .clips import (
    AUDIO,
    EMPTY_TEXT,
    LATENTS,
    REFERENCE_SEQUENCE,
    SILENCE,
    TEXT,
    ClipFacts,
    ClipSettings,
    ClipSource,
    Faults,
    Footage,
)
from .recipe import Recipe
from .video_clip import VideoClip, target_frames


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

    def footage(self) -> Footage:
        return Footage.of(self.folder / "sub_clip.mp4")

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        with Faults(self.name) as faults:
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

    def _latent_size(self, latents: Tensor, settings: ClipSettings, faults: Faults) -> Size:
        """Height and width in pixels of latents [16, T, h, w]."""
        size = 8 * latents.shape[2], 8 * latents.shape[3]
        if settings.size not in (None, size):
            faults.add(f"latents of {size[0]}x{size[1]} pixels, wanted {settings.height}x{settings.width}")
        elif size_fault(*size) is not None:
            faults.add(f"latents of {size_fault(*size)} pixels")
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
        metadata = load_pt(self.folder / "ref_latents.pt").get("metadata")
        start = metadata.get("ref_start") if isinstance(metadata, dict) else None
        return start if isinstance(start, int) else None

    def _inspect_values(self, cached: Mapping[str, Sequence[Tensor]], faults: Faults) -> None:
        for part, tensors in cached.items():
            if not all(tensor.isfinite().all() for tensor in tensors):
                faults.add(f"the {part} has NaN or infinite values")

    def live_clip(self) -> VideoClip:
        """What the parts without tensors are made of."""
        audio, text = self.folder / "audio.wav", self.folder / "prompt.txt"
        prompt = self.prompt
        if prompt is None:
            prompt = read_text(text).strip() if text.is_file() else ""
        video = self.folder / "sub_clip.mp4"
        return VideoClip(name=self.name, video=video, prompt=prompt, audio=audio if audio.is_file() else None)

    def tensors(self, settings: ClipSettings, faults: Faults) -> dict[str, tuple[Tensor, ...]]:
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
        features = load_pt(path).get("audio_emb")
        return (_checked(path, "audio_emb", features, ("rows", settings.audio_dim)),)

    def _read_text(self, settings: ClipSettings) -> tuple[Tensor, ...] | None:
        path = self.folder / "text_emb.pt"
        if not path.is_file():
            return None
        files = [path] if self.empty_text is None else [path, self.empty_text]
        return tuple(_text_of(file, settings.text_dim) for file in files)

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        with Faults(self.name) as faults:
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


def load_pt(path: Path) -> dict[str, Any]:
    """The dict in a .pt file, its tensors mapped from the file; a lone tensor comes under the name "tensor"."""
    content = read_pickle(path)
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
    return _checked(path, name, load_pt(path).get(name), (LATENT_CHANNELS, "T", "h", "w"))


def _text_of(path: Path, text_dim: int | None) -> Tensor:
    """The text embedding [1, L, D] of a file that holds it as [1, L, D], [L, D], or first in a dict."""
    tensor = next((value for value in load_pt(path).values() if isinstance(value, Tensor)), None)
    if tensor is not None and tensor.dim() == 2:
        tensor = tensor[None]
    return _checked(path, "the text embedding", tensor, (1, "tokens", text_dim))
