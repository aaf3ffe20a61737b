"""Writes a cache: its files, the entries of its index, the share of one process."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.progress import Progress
from torch import Tensor

from .. import __version__
from ..generation.pipeline import OmniAvatarPipeline
from ..media.faces.template import Template
from ..media.timeline import SAMPLES_PER_FRAME
from ..model.sampling import NEGATIVE_PROMPT
from ..system.atomic import clear_leftovers, write_text_atomically
from ..system.digests import file_sha256
from ..system.output_folder import reserved
from ..system.tensor_files import DamagedFileError, open_safetensors, write_safetensors
from .cache import SILENCE_FILE, mask_key
from .cache_index import CACHE_FORMAT, CACHE_INDEX, StaleCacheError, read_index, text_key
from .clips import ClipFacts, ClipSettings, reason_of
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
    return plain_settings(settings, recipe, options, pipe.torch_dtype) | {
        "audio_dim": pipe.speech_encoder.feature_dim,
        "vae": network_key(pipe.vae),
        "text_encoder": network_key(pipe.text_encoder),
        "speech_encoder": network_key(pipe.speech_encoder),
    }


def plain_settings(settings: ClipSettings, recipe: Recipe, options: CacheOptions, dtype: torch.dtype) -> dict[str, Any]:
    """Those of `cache_settings` that are known without the networks."""
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
        "dtype": str(dtype).removeprefix("torch."),
        "audio_dtype": str(options.audio_dtype).removeprefix("torch."),
        **({"align": _plain(settings.conventions.template)} if settings.faces == "aligned" else {}),
    }


def _plain(template: Template) -> dict[str, list[float]]:
    """A template as JSON gives it back."""
    return {name: list(pair) for name, pair in asdict(template).items()}


def write_index(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps({"format": CACHE_FORMAT, "version": __version__, **content}, indent=1) + "\n"
    with _named_faults(folder):
        write_text_atomically(folder / CACHE_INDEX, text)


@contextmanager
def _named_faults(folder: Path) -> Iterator[None]:
    """OSErrors of writing a cache get its name; nothing of the file that was being written stays."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written: {error.strerror or error}. What is done is kept, and the same command goes on"
        ) from error


@contextmanager
def reserved_cache(folder: Path, state: PartialState) -> Iterator[None]:
    """Within it no other run can write to the folder; what killed runs left there is cleared away.

    Without an index nothing tells which settings the texts and the silence were made with, so they are removed; the
    names of clips' files stand for them.

    Raises:
        ValueError: another run writes to it.
        OSError: it cannot be written.
    """
    if not state.is_main_process:  # the others write nothing before they have met the main one in the scan
        yield
        return
    with ExitStack() as stack:
        with _named_faults(folder):
            stack.enter_context(reserved(folder))
            for part in (folder, folder / "clips", folder / "text"):
                clear_leftovers(part)
            if not (folder / CACHE_INDEX).is_file():
                for stale in (folder / SILENCE_FILE, *(folder / "text").glob("*.safetensors")):
                    stale.unlink(missing_ok=True)
        yield


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
        for name, value in {"align": None, **settings}.items()  # which only caches of faces that were cut out have
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
        """Encode this process's share of the distinct prompts, and of what guidance has in their place; gives the shape
        [L, D] of each by its key.
        """
        shapes = {}
        for prompt in bar.track(self.share(sorted({*prompts, "", NEGATIVE_PROMPT})), description="texts"):
            path = self.folder / "text" / f"{text_key(prompt)}.safetensors"
            shape = _text_shape(path)
            if shape is None:
                context = self.pipe.encode_prompt(prompt)[0].cpu()
                is_text = context.any(dim=1).nonzero()  # behind the text there are zeros up to L
                used = int(is_text[-1]) + 1 if len(is_text) else 0
                shape = list(context.shape)
                self.save(path, {"context": context[:used].contiguous()}, {SHAPE: json.dumps(shape)})
            shapes[text_key(prompt)] = shape
        return shapes

    def save(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Write a file of the cache, whole or not at all.

        Raises:
            OSError: it cannot be written; the message names the cache and the cause.
        """
        with _named_faults(self.folder):
            write_safetensors(path, tensors, metadata)

    def write_silence(self, longest: int) -> None:
        """Features of silence for every length of a sample."""
        path = self.folder / SILENCE_FILE
        if str(longest) in _names(path):
            return
        silence = {}
        for frames in range(5, longest + 1, 4):
            rows = self.pipe.encode_speech(torch.zeros(frames * SAMPLES_PER_FRAME), frames)
            silence[str(frames)] = rows.to(self.options.audio_dtype).cpu()
        self.save(path, silence)

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
            **({"still": True} if clip.is_still else {}),
        }

    def encode(self, clip: VideoClip, raw: RawClip) -> dict[str, Tensor]:
        """The tensors of a clip's file."""
        return encode_clip(self.pipe, raw, clip, self.settings, self.options)

    def path(self, entry: Mapping[str, Any]) -> Path:
        """The file of an entry."""
        return self.folder / "clips" / f"{entry['key']}.safetensors"

    def prepare(self, clip: VideoClip, facts: ClipFacts) -> PreparedEntry:
        """Hash and, if need be, read a clip; runs in a thread."""
        entry = self.entry(clip, facts)
        is_there = bool(_names(self.path(entry)))
        raw = None if is_there else read_raw_clip(clip, facts, self.settings, self.options.references)
        return PreparedEntry(entry, raw)

    def write_clips(
        self, clips: Sequence[tuple[int, VideoClip, ClipFacts]], bar: Progress
    ) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str, str]]]:
        """Encode this process's share; gives entries and faults, each with the clip's place in the list."""
        entries, faults = [], []
        share = self.share(clips)
        ahead = _read_ahead(share, lambda job: self.prepare(job[1], job[2]))
        for (index, clip, _), future in bar.track(ahead, total=len(share), description="clips"):
            try:
                prepared = future.result()
                tensors = None if prepared.raw is None else self.encode(clip, prepared.raw)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:
                faults.append((index, clip.name, reason_of(error)))
                logger.warning("%s: %s", clip.name, reason_of(error))
                continue
            if tensors is None:
                self.kept += 1
            else:
                self.save(self.path(prepared.entry), tensors)
                self.encoded += 1
            entries.append((index, prepared.entry))
        return entries, faults


@dataclass(frozen=True)
class PreparedEntry:
    entry: dict[str, Any]
    raw: RawClip | None
    """None if the cache has the clip."""


def _names(path: Path) -> list[str]:
    """The tensors of a file; none if it is not there or damaged, so that it is made again."""
    try:
        with open_safetensors(path) as content:
            return list(content.keys())
    except (FileNotFoundError, DamagedFileError):
        return []


def _text_shape(path: Path) -> list[int] | None:
    """The shape that a text's file tells; None if it is to be made."""
    if not _names(path):
        return None
    with open_safetensors(path) as content:
        shape = (content.metadata() or {}).get(SHAPE)
    return None if shape is None else json.loads(shape)


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
