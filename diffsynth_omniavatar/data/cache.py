"""Caches that `precompute` wrote: their index, their clips, what identifies their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..media.timeline import latent_frames
from ..tensor_files import DamagedFileError, open_safetensors
from .clips import REFERENCE_SEQUENCE, ClipFacts, ClipSettings, ClipSource, Faults
from .prepared import load_pt
from .recipe import Recipe

CACHE_FORMAT = 2
CACHE_INDEX = "index.json"


class StaleCacheError(ValueError):
    """A cache does not belong to the clips or the settings of this run; the message says what differs."""


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
        yield load_pt(path)["tensors"].__getitem__
        return
    try:
        with open_safetensors(path) as content:
            yield content.get_slice
    except (DamagedFileError, FileNotFoundError) as error:
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
        with Faults(self.name) as faults:
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
