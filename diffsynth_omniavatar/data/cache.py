"""Caches that `precompute` wrote: their clips, what these share, what identifies their content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..media.timeline import latent_frames
from ..model.config import LATENT_CHANNELS
from ..system.digests import file_sha256
from ..system.tensor_files import DamagedFileError, open_safetensors
from .cache_index import CACHE_INDEX, StaleCacheError, read_index, text_key
from .clips import REFERENCE_SEQUENCE, ClipFacts, ClipSettings, ClipSource, Faults, Footage
from .prepared import load_pt
from .recipe import Recipe

SILENCE_FILE = "silence.safetensors"


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
        StaleCacheError: there is no index, it is not finished, damaged, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        table = self.folder / "metadata.csv"
        if index is None and table.is_file():
            raise StaleCacheError(f"{self.folder} is no cache; for the clips of its table give {table}")
        if index is None:
            raise StaleCacheError(
                f"{self.folder} is no cache, as it has no {CACHE_INDEX}; give a table of clips, a list of directories "
                "or a cache. Of raw footage `omniavatar prepare` makes a table"
            )
        if not index["complete"]:
            raise StaleCacheError(
                f"{self.folder} is no complete cache: run `omniavatar precompute` with the same arguments, it goes on"
            )
        self.settings: dict[str, Any] = index["settings"]
        self.texts: dict[str, list[int]] = index["texts"]
        self._reasons: dict[Any, list[str]] = {}
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
        with _open_tensors(self._text_file(text)) as tensors:
            rows = tensors["context"][:]
        return torch.nn.functional.pad(rows, (0, 0, 0, self.texts[text][0] - len(rows)))

    def silence(self, num_frames: int) -> Tensor:
        """Features [F, C] of silence for a sample of F frames."""
        with _open_tensors(self.folder / SILENCE_FILE) as tensors:
            return tensors[str(num_frames)][:]

    def inspect_shared(self, text: str, longest: int, deep: bool, faults: Faults) -> None:
        """Collect the faults of what clips share: a text by its key, the empty one, silence up to `longest` frames."""
        silence = {str(frames): (frames, self.settings["audio_dim"]) for frames in range(5, longest + 1, 4)}
        self._inspect_once(self.folder / SILENCE_FILE, silence, deep, faults)
        for key in {text: 0, text_key(""): 0}:
            self._inspect_once(self._text_file(key), {"context": (None, self.texts[key][1])}, deep, faults)

    def _text_file(self, text: str) -> Path:
        return self.folder / "text" / f"{text}.safetensors"

    def _inspect_once(self, path: Path, wanted: Mapping[str, Sequence[int | None]], deep: bool, faults: Faults) -> None:
        asked = path, len(wanted), deep
        if asked not in self._reasons:
            found = Faults(path.name)
            found.collect(lambda: _check_tensors(path, wanted, deep))
            self._reasons[asked] = found.reasons
        for reason in self._reasons[asked]:
            faults.add(reason)


@contextmanager
def _open_tensors(path: Path) -> Iterator[dict[str, Any]]:
    """The tensors of a file, .safetensors or .pth, by name; in square brackets what is wanted of one is read."""
    try:
        if path.suffix == ".pth":
            tensors = load_pt(path).get("tensors")
            if not isinstance(tensors, dict):
                raise DamagedFileError(f"{path} has no tensors")
            yield tensors
        else:
            with open_safetensors(path) as content:
                yield {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; run `omniavatar precompute` again") from error
    except DamagedFileError as error:
        raise ValueError(f"{error}; remove it and run `omniavatar precompute` again") from error


def _check_tensors(path: Path, wanted: Mapping[str, Sequence[int | None]], deep: bool) -> None:
    """Compare the shapes of a file's tensors, in which None is any size, and if `deep` read all values.

    Raises:
        ValueError: one is missing, of another shape, or has values that are not finite; the message names the file.
    """
    with _open_tensors(path) as tensors:
        for name, shape in wanted.items():
            if name not in tensors:
                raise ValueError(f"{path} has no {name}; remove it and run `omniavatar precompute` again")
            tensor = tensors[name]
            got = list(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape())
            if len(got) != len(shape) or any(size not in (None, have) for size, have in zip(shape, got, strict=True)):
                raise ValueError(f"{path}: {name} is {got}, wanted {['any' if n is None else n for n in shape]}")
        bad = [name for name, tensor in tensors.items() if deep and not tensor[:].isfinite().all()]
    if bad:
        raise ValueError(f"{path} has NaN or infinite values in {', '.join(bad)}")


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

    def footage(self) -> Footage:
        source = self.entry["sources"][0]  # the video; behind it come sound, reference and mask
        return Footage(Path(source["path"]), source["size"], source["sha256"])

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        self.check_sources()
        entry, longest = self.entry, 0
        size = entry["height"], entry["width"]
        is_still = entry.get("still", False)
        with Faults(self.name) as faults:
            if is_still and not settings.portraits:
                faults.add("it has no video; a portrait and a sound are enough for distillation alone")
            longest = faults.collect(lambda: recipe.longest(entry["num_frames"], *size)) or 0
            faults.collect(lambda: _check_tensors(self.path, self._shapes(settings), deep))
            self.cache.inspect_shared(entry["text"], longest, deep, faults)
        group = (entry["mask"] if settings.masked_video else None,)
        return ClipFacts(
            height=size[0],
            width=size[1],
            frames=entry["frames"],
            longest=longest,
            live=frozenset(),
            group=group,
            is_still=is_still,
        )

    def _shapes(self, settings: ClipSettings) -> dict[str, tuple[int | None, ...]]:
        """Of the tensors that samples need."""
        entry = self.entry
        place = entry["height"] // 8, entry["width"] // 8
        latents = LATENT_CHANNELS, latent_frames(entry["num_frames"]), *place
        shapes: dict[str, tuple[int | None, ...]] = {
            "input_latents": latents,
            "reference_latents": (entry["references"], LATENT_CHANNELS, 1, *place),
            "audio_features": (entry["num_frames"], self.cache.settings["audio_dim"]),
        }
        if settings.masked_video:
            shapes |= {"masked_latents": latents, "mouth_mask_latents": (1, 1, 1, *place)}
        if REFERENCE_SEQUENCE in settings.parts:
            shapes["reference_sequence_latents"] = latents
        if settings.sound:
            shapes["waveform"] = (None,)
        return shapes

    def _read(self, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Tensor]:
        """The clip's own tensors, cut to the sample."""
        count = latent_frames(num_frames)
        names = ["input_latents"] + ["masked_latents"] * settings.masked_video
        names += ["reference_sequence_latents"] * (REFERENCE_SEQUENCE in settings.parts)
        with _open_tensors(self.path) as tensors:
            loaded = {name: tensors[name][:, :count] for name in names}
            loaded["reference_latents"] = tensors["reference_latents"][int(reference * self.entry["references"])]
            loaded["audio_features"] = tensors["audio_features"][:num_frames]
            if settings.sound:
                loaded["waveforms"] = tensors["waveform"][:]
            if settings.masked_video:
                loaded["mouth_mask_latents"] = tensors["mouth_mask_latents"][:].expand(-1, -1, count, -1, -1)
        return {name: tensor.clone() for name, tensor in loaded.items()}

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        loaded = self._read(settings, num_frames, reference)
        return {
            **loaded,
            "silent_features": self.cache.silence(num_frames),
            "context": self.cache.context(self.entry["text"]),
            "empty_context": self.cache.context(text_key(""))[None],
        }
