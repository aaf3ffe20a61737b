"""Writes a cache: its files, the entries of its index, the share of one process."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.progress import Progress
from torch import Tensor

from .. import __version__
from ..atomic import write_text_atomically
from ..generation.pipeline import OmniAvatarPipeline
from ..media.timeline import SAMPLES_PER_FRAME
from ..tensor_files import open_safetensors, write_safetensors
from .cache import CACHE_FORMAT, CACHE_INDEX, StaleCacheError, file_sha256, mask_key, read_index, text_key
from .clips import ClipFacts, ClipSettings
from .encode import CacheOptions, RawClip, encode_clip, network_key, read_raw_clip
from .recipe import Recipe
from .video_clip import VideoClip

logger = logging.getLogger(__name__)

READERS = 2
"""Threads that read clips ahead of the encoding."""
SHAPE = "shape"
"""Metadata of a text's file: the shape [L, D] of the whole embedding."""


def cache_settings(
    pipe: OmniAvatarPipeline, settings: ClipSettings, recipe: Recipe, options: CacheOptions
) -> dict[str, Any]:
    """All on which the content of a cache depends besides the clips, as it stands in its index."""
    assert pipe.speech_encoder is not None
    sizes = settings.conventions.image_sizes
    return {
        "in_dim": settings.in_dim,
        "first_frame": settings.conventions.first_frame if settings.masked_video else None,
        "mouth_mask": mask_key(settings.mouth_mask) if settings.masked_video else None,
        "size": None if settings.size is None else list(settings.size),
        "image_sizes": None if settings.size is not None else [list(size) for size in sizes],
        "num_frames": recipe.num_frames,
        "max_tokens": recipe.max_tokens,
        "references": options.references,
        "tiled": options.tiled,
        "dtype": str(pipe.torch_dtype).removeprefix("torch."),
        "audio_dtype": str(options.audio_dtype).removeprefix("torch."),
        "audio_dim": pipe.speech_encoder.feature_dim,
        "vae": network_key(pipe.vae),
        "text_encoder": network_key(pipe.text_encoder),
        "speech_encoder": network_key(pipe.speech_encoder),
    }


def write_index(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps({"format": CACHE_FORMAT, "version": __version__, **content}, indent=1) + "\n"
    write_text_atomically(folder / CACHE_INDEX, text)


def _fingerprint(path: Path) -> dict[str, Any]:
    status = path.stat()
    size, time = status.st_size, status.st_mtime_ns
    return {"path": str(path.resolve()), "size": size, "mtime_ns": time, "sha256": file_sha256(path)}


def refuse_other_cache(folder: Path, settings: Mapping[str, Any]) -> None:
    """StaleCacheError if the folder holds a cache that was made otherwise."""
    index = read_index(folder)
    if index is None:
        return
    differences = [
        f"{name} is {index['settings'].get(name)!r}, this run has {value!r}"
        for name, value in settings.items()
        if index["settings"].get(name) != value
    ]
    if differences:
        raise StaleCacheError(
            f"{folder} holds a cache that was made otherwise: {'; '.join(differences)}; "
            "give another folder, or remove it"
        )


class CacheWriter:
    """One process's part in writing a cache."""

    def __init__(
        self,
        pipe: OmniAvatarPipeline,
        folder: Path,
        settings: ClipSettings,
        recipe: Recipe,
        options: CacheOptions,
        state: PartialState,
    ) -> None:
        self.pipe = pipe
        self.folder = folder
        self.settings = settings
        self.options = options
        self.state = state
        self.cache_settings = cache_settings(pipe, settings, recipe, options)
        self.encoded = self.kept = 0

    def share(self, things: Sequence[Any]) -> Sequence[Any]:
        """The part of things that this process does."""
        return things[self.state.process_index :: self.state.num_processes]

    def write_texts(self, prompts: Iterable[str], bar: Progress) -> dict[str, list[int]]:
        """Encode this process's share of the distinct prompts; gives the shape [L, D] of each by its key."""
        shapes = {}
        for prompt in bar.track(self.share(sorted({*prompts, ""})), description="texts"):
            path = self.folder / "text" / f"{text_key(prompt)}.safetensors"
            if not path.is_file():
                context = self.pipe.encode_prompt(prompt)[0].cpu()
                is_text = context.any(dim=1).nonzero()  # behind the text there are zeros up to L
                used = int(is_text[-1]) + 1 if len(is_text) else 0
                write_safetensors(
                    path, {"context": context[:used].contiguous()}, {SHAPE: json.dumps(list(context.shape))}
                )
            with open_safetensors(path) as content:
                shapes[text_key(prompt)] = json.loads(content.metadata()[SHAPE])
        return shapes

    def write_silence(self, longest: int) -> None:
        """Features of silence for every length of a sample."""
        path = self.folder / "silence.safetensors"
        if path.is_file():
            with open_safetensors(path) as content:
                if str(longest) in content.keys():  # noqa: SIM118
                    return
        silence = {}
        for frames in range(5, longest + 1, 4):
            rows = self.pipe.encode_speech(torch.zeros(frames * SAMPLES_PER_FRAME), frames)
            silence[str(frames)] = rows.to(self.options.audio_dtype).cpu()
        write_safetensors(path, silence)

    def entry(self, clip: VideoClip, facts: ClipFacts) -> dict[str, Any]:
        """The clip's entry of the index. Its key stands for the content of the files and the settings."""
        files = {part: path for part, path in clip.files().items() if part != "mask" or self.settings.masked_video}
        sources = {part: _fingerprint(path) for part, path in files.items()}
        content = {part: source["sha256"] for part, source in sources.items()}
        key = json.dumps([CACHE_FORMAT, self.cache_settings, content], sort_keys=True)
        mask = clip.used_mask(self.settings)
        return {
            "name": clip.name,
            "key": hashlib.sha256(key.encode()).hexdigest()[:32],
            "text": text_key(clip.prompt),
            "prompt": clip.prompt,
            "frames": facts.frames,
            "num_frames": facts.longest,
            "references": 1 if clip.reference is not None else min(self.options.references, facts.frames),
            "height": facts.height,
            "width": facts.width,
            "mask": mask_key(mask) if self.settings.masked_video else None,
            "sources": list(sources.values()),
        }

    def write_clip(self, prepared: PreparedEntry) -> dict[str, Any]:
        """Encode a clip unless its file is there; gives its entry."""
        if prepared.raw is None:
            self.kept += 1
        else:
            write_safetensors(self.path(prepared.entry), self.encode(prepared.clip, prepared.raw))
            self.encoded += 1
        return prepared.entry

    def encode(self, clip: VideoClip, raw: RawClip) -> dict[str, Tensor]:
        """The tensors of a clip's file."""
        return encode_clip(self.pipe, raw, clip, self.settings, self.options)

    def path(self, entry: Mapping[str, Any]) -> Path:
        """The file of an entry."""
        return self.folder / "clips" / f"{entry['key']}.safetensors"

    def prepare(self, clip: VideoClip, facts: ClipFacts) -> PreparedEntry:
        """Hash and, if need be, read a clip; runs in a thread."""
        entry = self.entry(clip, facts)
        is_there = self.path(entry).is_file()
        raw = None if is_there else read_raw_clip(clip, facts, self.settings, self.options.references)
        return PreparedEntry(entry, clip, raw)

    def write_clips(
        self, clips: Sequence[tuple[int, VideoClip, ClipFacts]], bar: Progress
    ) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str, str]]]:
        """Encode this process's share; gives entries and faults, each with the clip's place in the list."""
        entries, faults = [], []
        share = self.share(clips)
        ahead = _read_ahead(share, lambda job: self.prepare(job[1], job[2]))
        for (index, clip, _), future in bar.track(ahead, total=len(share), description="clips"):
            try:
                entries.append((index, self.write_clip(future.result())))
            except (ValueError, OSError) as error:
                faults.append((index, clip.name, str(error)))
                logger.warning("%s: %s", clip.name, error)
        return entries, faults


@dataclass(frozen=True)
class PreparedEntry:
    entry: dict[str, Any]
    clip: VideoClip
    raw: RawClip | None
    """None if the cache has the clip."""


def _read_ahead(jobs: Sequence[Any], read: Callable[[Any], Any]) -> Iterator[tuple[Any, Future[Any]]]:
    """The jobs in their order, each with what `read` makes of it in a thread; few are read ahead of use."""
    waiting: deque[tuple[Any, Future[Any]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for job in jobs:
            waiting.append((job, pool.submit(read, job)))
            if len(waiting) > READERS:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
